"""Upkeep: whether waiting jobs are held back, what was removed of ended jobs, when files were last of use.

Revision 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("artifacts_removed", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("cache_entry", sa.Text(), nullable=True))  # unknown of jobs prepared before
    op.add_column("spool", sa.Column("used", sa.Float(), nullable=True))  # of earlier uploads not since `created`
    op.create_table(
        "drain",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("asked", sa.Float(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_drain_one_row")),
        sa.CheckConstraint("wanted IN (0, 1)", name=op.f("ck_drain_wanted")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drain")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: what was removed of jobs would be forgotten")
