"""Memory: sizes of jobs' chunks, what has been learned about estimates, and whether the device is released.

Revision 0002.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("largest_chunk", "longest"):  # unknown of jobs that were prepared before
        op.add_column("jobs", sa.Column(name, sa.Integer(), nullable=True))
    op.create_table(
        "corrections",
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("methods", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("training", sa.Integer(), nullable=False),
        sa.Column("factor", sa.Float(), nullable=False),
        sa.Column("error", sa.Float(), nullable=False),
        sa.Column("packs", sa.Integer(), nullable=False),
        sa.CheckConstraint("training IN (0, 1)", name=op.f("ck_corrections_training")),
        sa.PrimaryKeyConstraint("base", "methods", "rows", "training", name=op.f("pk_corrections")),
    )
    op.create_table(
        "release",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("until", sa.Float(), nullable=True),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("asked", sa.Float(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_release_one_row")),
        sa.CheckConstraint("wanted IN (0, 1)", name=op.f("ck_release_wanted")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: what has been learned would be lost")
