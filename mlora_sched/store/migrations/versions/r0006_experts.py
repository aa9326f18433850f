"""What the routers of a job's experts do, at the steps of which that is recorded.

Revision 0006.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "experts",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("routers", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_experts_job_id")),
        sa.PrimaryKeyConstraint("job_id", "step", name=op.f("pk_experts")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: what was recorded of routers would be lost")
