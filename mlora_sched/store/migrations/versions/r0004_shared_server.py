"""A shared server: tokens of users, quotas and what counts against them, who did what; jobs that wait for others, are
tried again or are submitted once; how fast a job trains.

Revision 0004.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("key", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("retries", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("retried", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("work_seconds", sa.Float(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("pace", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("pace_spread", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("position", sa.Integer(), nullable=True))
    op.add_column("events", sa.Column("step", sa.Integer(), nullable=True))
    op.create_index("uq_jobs_owner_key", "jobs", ["owner", "key"], unique=True)
    op.create_table(
        "job_after",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("after_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_after_job_id")),
        sa.ForeignKeyConstraint(["after_id"], ["jobs.id"], name=op.f("fk_job_after_after_id")),
        sa.PrimaryKeyConstraint("job_id", "after_id", name=op.f("pk_job_after")),
    )
    op.create_index("ix_job_after_after_id", "job_after", ["after_id"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("admin", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=True),
        sa.Column("revoked", sa.Float(), nullable=True),
        sa.CheckConstraint("admin IN (0, 1)", name=op.f("ck_tokens_admin")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_tokens_hash")),
    )
    op.create_table(
        "quotas",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_quotas")),
    )
    op.create_table(
        "usage",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "day", name=op.f("pk_usage")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("via", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: tokens, quotas and the record of who did what would be lost")
