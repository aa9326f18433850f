"""Jobs, their files, metrics, events and checkpoints; the spool; fairness counters; the worker's status.

Revision 0001, the first. Values of enums are written out: a migration does not follow the code.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _jobs()
    _of_a_job()
    _of_the_daemon()


def downgrade() -> None:
    raise NotImplementedError("restore a backup: there is nothing before the first schema")


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("priority", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("total_steps", sa.Integer(), nullable=True),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("exactness", sa.Text(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("eval_loss", sa.Float(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("stopped_by", sa.Text(), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("started", sa.Float(), nullable=True),
        sa.Column("ended", sa.Float(), nullable=True),
        sa.CheckConstraint("(state = 'FAILED') = (error_code IS NOT NULL)", name=op.f("ck_jobs_failed_has_code")),
        sa.CheckConstraint(
            "(state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')) = (ended IS NOT NULL)",
            name=op.f("ck_jobs_ended_when_final"),
        ),
        sa.CheckConstraint("priority IN ('low', 'normal', 'high')", name=op.f("ck_jobs_priority")),
        sa.CheckConstraint("request IN ('none', 'pause', 'resume', 'cancel')", name=op.f("ck_jobs_request")),
        sa.CheckConstraint(
            "state IN ('PREPARING', 'QUEUED', 'RUNNING', 'PAUSED', 'SUCCEEDED', 'FAILED', 'CANCELLED')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED') OR request = 'none'",
            name=op.f("ck_jobs_final_has_no_request"),
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_jobs")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_jobs_owner_name"), "jobs", ["owner", "name"], unique=False)
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False)


def _of_a_job() -> None:
    op.create_table(
        "job_files",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_files_job_id")),
        sa.PrimaryKeyConstraint("job_id", "name", name=op.f("pk_job_files")),
    )
    op.create_table(
        "metrics",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=False),
        sa.Column("lr", sa.Float(), nullable=True),
        sa.Column("grad_norm", sa.Float(), nullable=True),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("extra", sa.Text(), nullable=False),
        sa.CheckConstraint("event IN ('step', 'eval')", name=op.f("ck_metrics_event")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_metrics_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metrics")),
        sa.UniqueConstraint("job_id", "event", "step", name=op.f("uq_metrics_job_id_event_step")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_job_id"), "events", ["job_id"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("best", sa.Integer(), nullable=False),
        sa.CheckConstraint("best IN (0, 1)", name=op.f("ck_checkpoints_best")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_checkpoints_job_id")),
        sa.PrimaryKeyConstraint("job_id", "step", name=op.f("pk_checkpoints")),
    )


def _of_the_daemon() -> None:
    op.create_table(
        "spool",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", "owner", name=op.f("pk_spool")),
    )
    op.create_table(
        "counters",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_counters")),
    )
    op.create_table(
        "virtual_time",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("floor", sa.Float(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_virtual_time_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_virtual_time")),
    )
    op.create_table(
        "worker_status",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_worker_status_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker_status")),
    )
