"""A replay of the audit log: which labels, scores, decisions and model it leads to, and where the ledger differs."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from samcorrect.lib.store.records.events import (
    EVENT_APPROVED,
    EVENT_COMMENT,
    EVENT_HELD_OUT,
    EVENT_PROMOTED,
    EVENT_REFUSED_MODEL,
    EVENT_REJECTED,
    EVENT_SCORED,
    EVENT_TAKEN_OVER,
    LABEL_EVENTS,
    ORIGIN,
    canonical,
    label_details,
)
from samcorrect.lib.store.schema import (
    DECISION_APPROVED,
    DECISION_COMMENT,
    DECISION_REJECTED,
    MODEL_PROMOTED,
    TAG_FINAL,
    AuditRow,
    ImageRow,
    LabelVersionRow,
    ModelRow,
    QualityRow,
    ReviewRow,
)

DECISION_OF_EVENT = {
    EVENT_APPROVED: DECISION_APPROVED,
    EVENT_REJECTED: DECISION_REJECTED,
    EVENT_COMMENT: DECISION_COMMENT,
}
ROWS_AT_ONCE = 1000


class Replay:
    """What the rows of the log lead to, row by row; about 200 bytes a label version are kept."""

    def __init__(self) -> None:
        self._labels: dict[int, bytes] = {}
        self._finals: dict[int, str] = {}
        self._rejected: set[int] = set()
        self._held_out: set[str] = set()
        self._scores: dict[int, float | None] = {}
        self._promoted: set[str] = set()
        self._reviews: list[tuple] = []
        self._faults: list[str] = []

    def take(self, row: AuditRow) -> None:
        """Take the next row."""
        try:
            details = json.loads(row.details)
        except ValueError:
            details = None
        if not isinstance(details, dict):
            self._faults.append(f"row {row.id} of the log: its details are no JSON object")
            return
        version = row.label_version_id
        if version is not None and (row.event in LABEL_EVENTS or row.event == EVENT_TAKEN_OVER):
            self._take_label(row, details)
        if row.event == EVENT_REJECTED and version is not None:
            self._rejected.add(version)
        if row.event == EVENT_HELD_OUT:
            self._held_out.add(row.image_id or "")
        if row.event in (EVENT_SCORED, EVENT_TAKEN_OVER) and version is not None and "score" in details:
            self._scores[version] = details["score"]
        if row.event == EVENT_PROMOTED or (row.event == EVENT_TAKEN_OVER and version is None):
            self._promoted = {str(details.get("digest"))}
        if row.event == EVENT_REFUSED_MODEL:
            self._promoted.discard(str(details.get("digest")))
        if row.event in DECISION_OF_EVENT:
            decided = (DECISION_OF_EVENT[row.event], row.image_id, version, row.actor, details.get("reason"))
            self._reviews.append(decided)

    def differences(self, session: Session) -> Iterator[str]:
        """What the ledger holds that the log does not lead to, and the other way round."""
        yield from self._faults
        yield from self._label_differences(session)
        finals = {image_id for version, image_id in self._finals.items() if version not in self._rejected}
        images = (("approved", ImageRow.is_approved, finals), ("held out", ImageRow.is_held_out, self._held_out))
        for what, column, told in images:
            there = set(session.scalars(select(ImageRow.id).where(column.is_(True))))
            yield from (f"image {i} is {what} in the ledger and not by the log" for i in sorted(there - told))
            yield from (f"image {i} is {what} by the log and not in the ledger" for i in sorted(told - there))
        columns = select(QualityRow.label_version_id, QualityRow.score).where(QualityRow.structure_index == 0)
        scores = dict(session.execute(columns).tuples().all())
        for version in sorted(scores.keys() | self._scores.keys()):
            told, is_there = self._scores.get(version, "none"), scores.get(version, "none")
            if told != is_there:
                yield f"label version {version} has the score {is_there} in the ledger and {told} by the log"
        promoted = set(session.scalars(select(ModelRow.digest).where(ModelRow.status == MODEL_PROMOTED)))
        if promoted != self._promoted:
            there, told = (", ".join(sorted(d[:12] for d in found)) or "none" for found in (promoted, self._promoted))
            yield f"the promoted model is {there} in the ledger and {told} by the log"
        names = ("decision", "image_id", "label_version_id", "reviewer", "reason")
        reviews = session.execute(select(*(getattr(ReviewRow, name) for name in names)).order_by(ReviewRow.id)).tuples()
        for number, (told, there) in enumerate(zip_longest(self._reviews, reviews), start=1):
            if told != there:
                yield f"review {number} is not what the log says"

    def _take_label(self, row: AuditRow, details: Mapping[str, Any]) -> None:
        version = row.label_version_id
        if version in self._labels:
            self._faults.append(f"row {row.id} of the log enters label version {version} once more")
        told = {key: details.get(key) for key in (*ORIGIN, "info")}
        self._labels[version] = _digest(row.image_id, told)
        if details.get("tag") == TAG_FINAL:
            self._finals[version] = row.image_id or ""
        if details.get("rejected"):
            self._rejected.add(version)

    def _label_differences(self, session: Session) -> Iterator[str]:
        missing = dict(self._labels)
        query = select(LabelVersionRow).order_by(LabelVersionRow.id).execution_options(yield_per=ROWS_AT_ONCE)
        for row in session.scalars(query):
            told = missing.pop(row.id, None)
            columns = {name: getattr(row, name) for name in (*ORIGIN.values(), "info")}
            if told is None:
                yield f"label version {row.id} of {row.image_id} is in the ledger and not in the log"
            elif told != _digest(row.image_id, label_details(columns)):
                yield f"label version {row.id} of {row.image_id} is not as the log says it was entered"
            elif row.is_rejected != (row.id in self._rejected):
                there, by_log = ("rejected", "not") if row.is_rejected else ("not rejected", "rejected")
                yield f"label version {row.id} of {row.image_id} is {there} in the ledger and {by_log} by the log"
        yield from (f"label version {version} is in the log and not in the ledger" for version in missing)


def _digest(image_id: str | None, details: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(canonical([image_id, details]).encode()).digest()
