"""Alembic's entry: run the migrations on the connection that `mlora_sched.store.db` passes in.

For the developer's `alembic revision` too; there is no offline mode, since a migration may need to see the data.
"""

from alembic import context

from mlora_sched.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
