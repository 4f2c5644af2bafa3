"""The entry that Alembic runs: the steps, on the caller's connection and within its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
