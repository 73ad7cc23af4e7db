"""Alembic's scripts: how a ledger of an older samcorrect becomes one of today. A released script is never changed."""
