"""Transactions of the ledger, which all of its records share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from samcorrect.lib.errors import StoreError
from samcorrect.lib.store.engine import take_write_lock


class Records:
    """A database and its transactions; rows come back detached from the session."""

    state_dir: Path
    _engine: Engine

    @contextmanager
    def session(self, *, writes: bool = False) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back on an error.

        Args:
            writes: Take the write lock at once. Without it, what another process writes between a read of this block
                and the write that rests on it would be lost.

        Raises:
            StoreError: The disk is full, the file cannot be written, or another process held the lock too long.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                if writes:
                    take_write_lock(session.connection())
                yield session
        except OperationalError as error:
            raise StoreError(f"the ledger in {self.state_dir} cannot be used: {error.orig}") from error
