"""Sharing well: work instead of tokens is charged, forecasts, sweeps, and which jobs have changed since a moment.

Counters start anew: tokens cannot be turned into work without the bases they were trained on.

Revision 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TOUCHING = (
    "seq, id, name, owner, base, spec, method, priority, state, request, epoch, step, total_steps, tokens, crashes, "
    "exactness, loss, eval_loss, error_code, error, stopped_by, created, started, ended, largest_chunk, longest, "
    "artifacts_removed, cache_entry, key, retries, retried, work_seconds, pace, pace_spread, load, sweep, trial, "
    "until, stop"
)
_TOUCH = "BEGIN UPDATE jobs SET touched = (SELECT max(touched) FROM jobs) + 1 WHERE seq = NEW.seq; END"


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_sweeps")),
        sa.UniqueConstraint("id", name=op.f("uq_sweeps_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sweeps_owner_name", "sweeps", ["owner", "name"])
    op.create_index("uq_sweeps_owner_key", "sweeps", ["owner", "key"], unique=True)
    op.add_column("jobs", sa.Column("load", sa.Text(), nullable=True))
    for column in ("starts_low", "starts_high", "ends_low", "ends_high"):
        op.add_column("jobs", sa.Column(column, sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("sweep", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("trial", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("until", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("stop", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("touched", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_jobs_touched", "jobs", ["touched"])
    op.create_index("uq_jobs_sweep_trial", "jobs", ["sweep", "trial"], unique=True)
    op.execute("UPDATE jobs SET touched = seq")
    op.execute(f"CREATE TRIGGER jobs_touched_by_insert AFTER INSERT ON jobs {_TOUCH}")
    op.execute(f"CREATE TRIGGER jobs_touched_by_update AFTER UPDATE OF {_TOUCHING} ON jobs {_TOUCH}")
    op.drop_table("counters")
    op.create_table(
        "counters",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("work", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_counters")),
    )
    op.execute("DELETE FROM virtual_time")


def downgrade() -> None:
    raise NotImplementedError("restore a backup: sweeps and what was charged would be lost")
