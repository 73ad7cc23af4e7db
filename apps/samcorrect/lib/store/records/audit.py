"""The audit log: what happened to every label, model and setting, in rows of which each seals the one before."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.schema import AuditHeadRow, AuditRow

EVENT_MADE, EVENT_CORRECTED, EVENT_SUBMITTED = "label made", "label corrected", "label submitted"
EVENT_SCORED, EVENT_RESTORED = "label scored", "label restored"
EVENT_APPROVED, EVENT_REJECTED, EVENT_COMMENT = "label approved", "label rejected", "comment"
EVENT_PROMOTED, EVENT_REFUSED_MODEL = "model promoted", "model refused"
EVENT_STARTED, EVENT_REFUSED_REQUEST = "started", "request refused"
# What the first row seals.
GENESIS_HASH = "0" * 64
HEAD_ID = 1
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class AuditVerdict:
    """`first_broken` is the number of the first row that is not as it was written, or None; `why` says what is off."""

    n_rows: int
    first_broken: int | None = None
    why: str = ""


class AuditRecords(Records):
    """Appends to and reads the audit log; nothing changes a row."""

    def audit(self, event: str, *, actor: str, details: Mapping[str, Any] | None = None) -> None:
        """Append an event that is about no image."""
        with self.session(writes=True) as session:
            append_audit(session, event, actor=actor, details=details)

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

    def verify_audit(self) -> AuditVerdict:
        """Walk the chain. A row that was forged, taken out, put in or moved breaks it where it is."""
        previous, number = GENESIS_HASH, 0
        for row in self.audit_rows():
            number += 1
            if row.id != number:
                return AuditVerdict(number - 1, number, f"row {number} is missing: the next one is {row.id}")
            if row.hash != _hash_of(row, previous):
                return AuditVerdict(
                    number - 1, number, f"row {number} is not as it was written, or one before it is not"
                )
            previous = row.hash
        with self.session() as session:
            head = session.get(AuditHeadRow, HEAD_ID)
            # A row may have been added since the walk.
            n_rows = session.scalar(select(func.count()).select_from(AuditRow)) or 0
        if head is not None and (head.n_rows > n_rows or (head.n_rows == number and head.hash != previous)):
            return AuditVerdict(number, number + 1, f"the log ends after row {number}; {head.n_rows} were written")
        if head is None and number:
            return AuditVerdict(number, number + 1, "what says how long the log is was taken away")
        return AuditVerdict(number)


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
    row = AuditRow(
        id=head.n_rows + 1,
        at=time.time(),
        event=event,
        actor=actor,
        image_id=image_id,
        label_version_id=label_version_id,
        details=_canonical(details or {}),
    )
    row.hash = _hash_of(row, head.hash)
    session.add(row)
    head.n_rows, head.hash = row.id, row.hash


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _hash_of(row: AuditRow, previous: str) -> str:
    told = [row.id, row.at, row.event, row.actor, row.image_id, row.label_version_id, row.details, previous]
    return hashlib.sha256(_canonical(told).encode()).hexdigest()
