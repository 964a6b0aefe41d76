"""Runs migrations on the connection that `migrate` hands over, within its transaction."""

from alembic import context

from proxy.adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
