"""Transactions of the ledger, which all of its records share."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from samcorrect.lib.errors import RequestError, StoreError
from samcorrect.lib.store.engine import take_write_lock
from samcorrect.lib.store.records.listing import ListingSession

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock has to do
    fcntl = None

# Beside the ledger; who holds it may write.
TURN_NAME = "ledger.lock"
# What clients note about one image or label; every reply that lists it carries it.
MAX_NOTES_BYTES = 2**16


# In `Session.info`.
SENDS_FINALS = "sends_finals"


class Records:
    """A database and its transactions; rows come back detached from the session."""

    state_dir: Path
    # Whether a person's labels are to be sent to a PACS.
    sends_finals: bool = False
    _engine: Engine

    @contextmanager
    def session(self, *, writes: bool = False) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back on an error.

        Args:
            writes: Take the write lock at once. Without it, what another process writes between a read of this block
                and the write that rests on it would be lost.

        Raises:
            StoreError: The disk is full, the files may not be written, or another process held the lock too long.
        """
        try:
            turn = self._turn() if writes else nullcontext()
            with (
                turn,
                ListingSession(self._engine, expire_on_commit=False, info={SENDS_FINALS: self.sends_finals}) as session,
                session.begin(),
            ):
                if writes:
                    take_write_lock(session.connection())
                yield session
        except OperationalError as error:
            raise StoreError(f"the ledger in {self.state_dir} cannot be used: {error.orig}") from error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for one's turn to write: SQLite's own lock goes to whoever happens to try when it is free, so that under
        load a writer can lose for half a minute; this one goes in order, and the kernel frees it with its process.
        """
        if fcntl is None or self._engine.dialect.name != "sqlite":
            yield
            return
        with _open_to_write(self.state_dir / TURN_NAME) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction that sees one state of the ledger in all of its reads, whoever writes in the meantime."""
        with self.session() as session:
            if self._engine.dialect.name == "sqlite":
                session.execute(text("BEGIN"))  # without it, each SELECT would see a snapshot of its own
            else:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session


def _open_to_write(path: Path) -> TextIO:
    try:
        return path.open("a")
    except PermissionError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}. Run this as {_owner(path.parent)}, who owns the state folder"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user of another machine, or of a container
        return f"user {path.stat().st_uid}"


def merge_notes(notes: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Notes with more added. Raises RequestError where they grow beyond MAX_NOTES_BYTES."""
    merged = {**notes, **more}
    n_bytes = len(json.dumps(merged))
    if n_bytes > MAX_NOTES_BYTES:
        raise RequestError(f"the notes would be {n_bytes} bytes long; {MAX_NOTES_BYTES} are the limit")
    return merged
