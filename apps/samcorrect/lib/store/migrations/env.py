"""Alembic's entry: runs the scripts on the connection, and in the transaction, that `store/engine.py` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
