"""The audit log: what happened to every label, model and setting, in rows of which each seals the one before.

Nothing secret goes into a hash: whoever can write to the database can also write a whole new log. It then has to agree
with the ledger, and with an end of the log that was noted elsewhere before; `verify_audit` checks both.
"""

import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from samcorrect.lib.errors import RequestError
from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.events import EVENT_REFUSED_REQUEST, GENESIS_HASH, SEALED, canonical, sealed
from samcorrect.lib.store.records.replay import Replay
from samcorrect.lib.store.schema import AuditHeadRow, AuditRow, ImageRow

HEAD_ID = 1
ROWS_AT_ONCE = 1000
# Refused requests that are written in one window; the others are counted, so that nobody fills the disk with them.
MAX_REFUSALS, REFUSALS_WINDOW_S = 20, 60.0
MAX_NAME = 200
# Control characters and halves of a pair of UTF-16: terminals obey the first, and no database takes the second.
CONTROL_CATEGORIES = ("Cc", "Cs")


@dataclass(frozen=True)
class AuditVerdict:
    """What a check of the log found.

    Attributes:
        n_rows: Rows up to the first that is broken.
        head: Hash of the last of them.
        first_broken: Number of the first row that is not as it was written, or None.
        why: What is off with it.
        differences: Where the ledger is not what the log, replayed, says; empty where the chain itself is broken.
    """

    n_rows: int
    head: str = GENESIS_HASH
    first_broken: int | None = None
    why: str = ""
    differences: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Nothing is off."""
        return self.first_broken is None and not self.differences


class Refusals:
    """Which refused requests are written: one of a kind and MAX_REFUSALS in all in a window; the others are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends_at = 0.0
        self._seen: set[tuple] = set()
        self._n_unwritten = 0

    def admit(self, kind: tuple, now: float) -> int | None:
        """How many went unwritten since the last row, where this one is to be written; None where it is not."""
        with self._lock:
            if now >= self._ends_at:
                self._ends_at, self._seen = now + REFUSALS_WINDOW_S, set()
            if kind in self._seen or len(self._seen) >= MAX_REFUSALS:
                self._n_unwritten += 1
                return None
            self._seen.add(kind)
            n_unwritten, self._n_unwritten = self._n_unwritten, 0
            return n_unwritten


class AuditRecords(Records):
    """Appends to and reads the audit log; nothing changes a row."""

    _refusals: Refusals

    def audit(self, event: str, *, actor: str, details: Mapping[str, Any] | None = None) -> None:
        """Append an event that is about no image."""
        with self.session(writes=True) as session:
            append_audit(session, event, actor=actor, details=details)

    def audit_refusal(
        self,
        method: str,
        route: str,
        status: int,
        error: str,
        user: str,
        *,
        image_id: str | None = None,
        now: float | None = None,
    ) -> None:
        """Append that a request which would have written was refused.

        At most MAX_REFUSALS rows are written in REFUSALS_WINDOW_S, and one of a kind; the next row says how many others
        there were (`unwritten`; a process that ends forgets those since its last row).

        Args:
            method: For example "PUT".
            route: The route's template, for example "/datastore/label", never the path or the query of the request.
            status: Of the reply.
            error: Its kind, for example "LabelError", never the message, which can hold names of files.
            user: Who asked, as far as is known.
            image_id: Kept only where there is such an image.
            now: Seconds since the epoch.
        """
        now = time.time() if now is None else now
        user = shown_name(user)
        n_unwritten = self._refusals.admit((method, route, status, error, user, image_id), now)
        if n_unwritten is None:
            return
        details = {"method": method, "route": route, "status": status, "error": error}
        if n_unwritten:
            details["unwritten"] = n_unwritten
        with self.session(writes=True) as session:
            is_known = image_id is not None and session.get(ImageRow, image_id) is not None
            of = image_id if is_known else None
            append_audit(session, EVENT_REFUSED_REQUEST, actor=user, image_id=of, details=details)

    def audit_rows(self, image_id: str | None = None) -> Iterator[AuditRow]:
        """Rows in order, of one image or all; read in parts, so that memory does not grow with the log."""
        newest = 0
        while True:
            query = select(AuditRow).where(AuditRow.id > newest).order_by(AuditRow.id).limit(ROWS_AT_ONCE)
            if image_id is not None:
                query = query.where(AuditRow.image_id == image_id)
            with self.session() as session:
                rows = list(session.scalars(query))
            if not rows:
                return
            yield from rows
            newest = rows[-1].id

    def verify_audit(self, noted: tuple[int, str] | None = None) -> AuditVerdict:
        """Walk the chain, replay it and compare the result with the ledger, all in one snapshot.

        A row that was forged, taken out, put in or moved breaks the chain where it is. A log that was cut off, or
        written anew, with an end that fits it, differs from the ledger, or from what was noted of it.

        Args:
            noted: Number and hash of a row, as an earlier verdict gave them in `n_rows` and `head`.

        Raises:
            RequestError: `noted` is no row's number.
        """
        if noted is not None and noted[0] < 1:
            raise RequestError(f"a row of the audit log has a number from 1; got {noted[0]}")
        previous, number, replay = GENESIS_HASH, 0, Replay()
        with self.snapshot() as session:
            rows = session.scalars(select(AuditRow).order_by(AuditRow.id).execution_options(yield_per=ROWS_AT_ONCE))
            for row in rows:
                fault = _fault(row, number + 1, previous, noted)
                if fault:
                    return AuditVerdict(number, previous, number + 1, fault)
                previous, number = row.hash, row.id
                replay.take(row)
            head = session.get(AuditHeadRow, HEAD_ID)
            told = (0, GENESIS_HASH) if head is None else (head.n_rows, head.hash)
            if told != (number, previous):
                why = f"the log ends after row {number}; {told[0]} were written, the last with the hash {told[1]:.16}"
                return AuditVerdict(number, previous, number + 1, why)
            if noted is not None and noted[0] > number:
                return AuditVerdict(
                    number, previous, number + 1, f"the log ends after row {number} of {noted[0]} noted"
                )
            return AuditVerdict(number, previous, differences=tuple(replay.differences(session)))


def append_audit(
    session: Session,
    event: str,
    *,
    actor: str,
    image_id: str | None = None,
    label_version_id: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append an event in the transaction of what it tells; the transaction must hold the write lock."""
    head = session.get(AuditHeadRow, HEAD_ID)
    if head is None:
        head = AuditHeadRow(id=HEAD_ID, n_rows=0, hash=GENESIS_HASH)
        session.add(head)
    columns = {
        "id": head.n_rows + 1,
        "at": time.time(),
        "event": event,
        "actor": actor,
        "image_id": image_id,
        "label_version_id": label_version_id,
        "details": canonical(details or {}),
    }
    row = AuditRow(**columns, hash=sealed(columns, head.hash))
    session.add(row)
    head.n_rows, head.hash = row.id, row.hash


def shown_name(name: str) -> str:
    """A name that a client gave, such that every database takes it and no terminal obeys it."""
    return "".join("?" if is_control(character) else character for character in name[:MAX_NAME]) or "unknown"


def is_control(character: str) -> bool:
    """Whether a character belongs into no name and no reason."""
    return unicodedata.category(character) in CONTROL_CATEGORIES


def _fault(row: AuditRow, number: int, previous: str, noted: tuple[int, str] | None) -> str:
    if row.id != number:
        return f"row {number} is missing: the next one is {row.id}"
    try:
        is_as_written = row.hash == sealed({name: getattr(row, name) for name in SEALED}, previous)
    except (TypeError, ValueError):  # SQLite takes a value of any type; JSON does not
        is_as_written = False
    if not is_as_written:
        return f"row {number} is not as it was written, or one before it is not"
    if noted is not None and noted[0] == number and noted[1] != row.hash:
        return f"row {number} has another hash than was noted, so it or one before it was written anew"
    return ""
