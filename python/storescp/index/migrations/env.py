"""What Alembic runs: the steps that are asked for, in the transaction that is there already."""

from alembic import context

given = context.config.attributes
context.configure(connection=given["connection"], version_table=given["version_table"])
with context.begin_transaction():
    context.run_migrations()
