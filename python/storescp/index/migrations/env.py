"""What Alembic runs: the steps that are asked for, in the transaction that is there already."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
