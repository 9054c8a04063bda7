"""Where Alembic finds the connection: that of the JobStore which is being opened, inside its
transaction. Run by Alembic alone."""

from alembic import context

from tunesmith.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
