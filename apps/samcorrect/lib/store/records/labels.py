"""Label versions and their quality. A version is never changed once written, but for what viewers note about it."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from sqlalchemy import ColumnElement, case, delete, func, select, update
from sqlalchemy.orm import Session

from samcorrect.lib.errors import UnknownLabelError
from samcorrect.lib.store.records.audit import append_audit, shown_name
from samcorrect.lib.store.records.base import SENDS_FINALS, Records, merge_notes
from samcorrect.lib.store.records.events import (
    EVENT_CORRECTED,
    EVENT_MADE,
    EVENT_RESTORED,
    EVENT_SCORED,
    EVENT_SUBMITTED,
    ORIGIN,
    SAMCORRECT,
    label_details,
)
from samcorrect.lib.store.schema import (
    IMAGE_STATUS_OK,
    PACS_PENDING,
    TAG_CORRECTED,
    TAG_FINAL,
    TAG_ORIGINAL,
    TAGS,
    USER,
    ImageRow,
    LabelVersionRow,
    LeaseRow,
    QualityRow,
)

EVENT_OF_TAG = {TAG_ORIGINAL: EVENT_MADE, TAG_CORRECTED: EVENT_CORRECTED}
RESTORED_BY = "restored_by"
STANDS = LabelVersionRow.is_rejected.is_(False)
# PostgreSQL's INTEGER; both databases refuse greater numbers than they know.
MAX_INTEGER = 2**31 - 1
# SQLite takes 32,766 variables in a statement, older ones 999.
IDS_PER_QUERY = 900


class LabelRecords(Records):
    """Reads and writes of label versions."""

    def add_label(self, row: LabelVersionRow) -> LabelVersionRow:
        """Enter a label version whose file is on the disk.

        A `final` one approves its image and ends its lease; why the image had been served is kept as `why_served`. What
        a machine makes is entered as rejected where it equals the content that a person rejected last.
        """
        with self.session(writes=True) as session:
            enter_label(session, row)
        return row

    def add_copy(self, label: LabelVersionRow, *, restored_by: str | None = None, **changes: object) -> LabelVersionRow:
        """Enter a version once more as the newest, with its quality, and itself as the parent.

        Args:
            label: The version.
            restored_by: The person who does it; None where a machine does.
            changes: Of its columns.
        """
        with self.session(writes=True) as session:
            if restored_by is None:
                return copy_label(session, label, **changes)
            told = {"event": EVENT_RESTORED, "actor": restored_by}
            return copy_label(session, label, **told, info={**label.info, RESTORED_BY: restored_by}, **changes)

    def latest_label(self, image_id: str, tag: str, *, with_rejected: bool = False) -> LabelVersionRow | None:
        """The newest version of one tag that is not rejected, or None; `with_rejected` the rejected one before none."""
        return self._first(image_id, LabelVersionRow.tag == tag, with_rejected=with_rejected)

    def best_label(self, image_id: str, *, with_rejected: bool = False) -> LabelVersionRow | None:
        """The best label by `best_of`; None where there is no label; `with_rejected` a rejected one before none."""
        return self._first(image_id, LabelVersionRow.tag.in_(TAGS), with_rejected=with_rejected)

    def _first(self, image_id: str, condition: ColumnElement[bool], *, with_rejected: bool) -> LabelVersionRow | None:
        query = select(LabelVersionRow).where(LabelVersionRow.image_id == image_id, condition)
        if not with_rejected:
            query = query.where(STANDS)
        is_final = case((LabelVersionRow.tag == TAG_FINAL, 1), else_=0)
        order = (LabelVersionRow.is_rejected, is_final.desc(), LabelVersionRow.id.desc())
        with self.session() as session:
            return session.scalars(query.order_by(*order).limit(1)).first()

    def versions(self, image_id: str) -> list[LabelVersionRow]:
        """All label versions of an image, oldest first."""
        query = select(LabelVersionRow).where(LabelVersionRow.image_id == image_id)
        with self.session() as session:
            return list(session.scalars(query.order_by(LabelVersionRow.id)))

    def tags(self, image_id: str) -> list[str]:
        """The tags that an image has labels of, in order."""
        query = select(LabelVersionRow.tag).where(LabelVersionRow.image_id == image_id).distinct()
        with self.session() as session:
            return sorted(session.scalars(query))

    def image_ids_with(self, tag: str) -> set[str]:
        """Ids of the images that have a label of a tag which is not rejected."""
        query = select(LabelVersionRow.image_id).where(LabelVersionRow.tag == tag, STANDS).distinct()
        with self.session() as session:
            return set(session.scalars(query))

    def first_finals(self) -> list[LabelVersionRow]:
        """Of every approved image the first label that a person submitted, in order of submission."""
        first = select(func.min(LabelVersionRow.id)).where(LabelVersionRow.tag == TAG_FINAL)
        query = select(LabelVersionRow).where(LabelVersionRow.id.in_(first.group_by(LabelVersionRow.image_id)))
        with self.session() as session:
            return list(session.scalars(query.order_by(LabelVersionRow.id)))

    def names_in_finals(self) -> list[tuple[int, list[dict[str, Any]], dict[str, int]]]:
        """The names that people's labels of today were submitted with, each set of names once.

        Of each the oldest label version that has it, its `label_info` and its `value_to_index`.
        """
        is_final = (LabelVersionRow.tag == TAG_FINAL, STANDS)
        newest = select(func.max(LabelVersionRow.id)).where(*is_final).group_by(LabelVersionRow.image_id)
        names = [LabelVersionRow.info[key].as_string().label(key) for key in ("label_info", "value_to_index")]
        finals = select(LabelVersionRow.id, *names).where(LabelVersionRow.id.in_(newest)).subquery()
        kinds = (finals.c.label_info, finals.c.value_to_index)
        with self.session() as session:
            found = session.execute(select(func.min(finals.c.id), *kinds).group_by(*kinds)).tuples()
            return [(version, json.loads(a), json.loads(b)) for version, a, b in found if a and b]

    def latest_labels(self, *, with_rejected: bool = False) -> dict[tuple[str, str], LabelVersionRow]:
        """(image id, tag) to the newest version, for the whole store; of those that are not rejected, or of all."""
        newest = select(func.max(LabelVersionRow.id)).group_by(LabelVersionRow.image_id, LabelVersionRow.tag)
        if not with_rejected:
            newest = newest.where(STANDS)
        with self.session() as session:
            rows = session.scalars(select(LabelVersionRow).where(LabelVersionRow.id.in_(newest)))
            return {(row.image_id, row.tag): row for row in rows}

    def rejected_labels(self) -> list[LabelVersionRow]:
        """All versions that a person rejected, oldest first."""
        query = select(LabelVersionRow).where(LabelVersionRow.is_rejected.is_(True)).order_by(LabelVersionRow.id)
        with self.session() as session:
            return list(session.scalars(query))

    def run_label(self, image_id: str, tag: str, run_id: int, round_number: int) -> LabelVersionRow | None:
        """The version that a run made in a round, rejected or not: the checkpoint of one image."""
        query = select(LabelVersionRow).where(
            LabelVersionRow.image_id == image_id,
            LabelVersionRow.tag == tag,
            LabelVersionRow.run_id == run_id,
            LabelVersionRow.round == round_number,
        )
        with self.session() as session:
            return session.scalars(query.order_by(LabelVersionRow.id.desc()).limit(1)).first()

    def run_labels(self, tag: str, run_id: int, round_number: int) -> dict[str, LabelVersionRow]:
        """Image id to the version that a run made in a round and nobody rejected, for the whole store."""
        query = select(LabelVersionRow).where(
            LabelVersionRow.run_id == run_id, LabelVersionRow.tag == tag, LabelVersionRow.round == round_number, STANDS
        )
        with self.session() as session:
            return {row.image_id: row for row in session.scalars(query.order_by(LabelVersionRow.id))}

    def label_version(self, label_version_id: int) -> LabelVersionRow:
        """One label version by its number. Raises UnknownLabelError."""
        with self.session() as session:
            row = session.get(LabelVersionRow, label_version_id) if abs(label_version_id) <= MAX_INTEGER else None
        if row is None:
            raise UnknownLabelError(f"no label version {label_version_id} in the ledger")
        return row

    def update_label_notes(self, label_version_id: int, notes: dict) -> None:
        """Merge keys into what viewers noted about a label; nothing else of a version can be changed."""
        with self.session(writes=True) as session:
            row = session.get_one(LabelVersionRow, label_version_id)
            row.info = {**row.info, "viewer": merge_notes(row.info.get("viewer", {}), notes)}

    def set_quality(self, label_version_id: int, rows: Sequence[QualityRow]) -> None:
        """Replace the quality of a label version. That of the best label, of index 0, sets its image's place in the
        queue, unless the newest label was rejected: such an image stays at the head until it has a new one.
        """
        with self.session(writes=True) as session:
            _replace_quality(session, session.get_one(LabelVersionRow, label_version_id), rows)

    def quality(self, label_version_id: int) -> dict[int, QualityRow]:
        """Structure index to quality; 0 is the whole label. Empty where the label is not scored."""
        with self.session() as session:
            rows = session.scalars(select(QualityRow).where(QualityRow.label_version_id == label_version_id))
            return {row.structure_index: row for row in rows}

    def qualities(self, label_version_ids: Iterable[int]) -> dict[int, dict[int, QualityRow]]:
        """Label version to its quality as in `quality`, for those of many labels that are scored."""
        found: dict[int, dict[int, QualityRow]] = {}
        ids = sorted(label_version_ids)
        with self.session() as session:
            for start in range(0, len(ids), IDS_PER_QUERY):
                chosen = QualityRow.label_version_id.in_(ids[start : start + IDS_PER_QUERY])
                for row in session.scalars(select(QualityRow).where(chosen)):
                    found.setdefault(row.label_version_id, {})[row.structure_index] = row
        return found

    def scored_labels(self) -> set[int]:
        """The label versions that are scored."""
        query = select(QualityRow.label_version_id).where(QualityRow.structure_index == 0)
        with self.session() as session:
            return set(session.scalars(query))

    def update_quality(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Set columns of quality rows, where the place of no image in the queue changes by it.

        Args:
            rows: Of each `id` and the columns to set, the same of all.
        """
        with self.session(writes=True) as session:
            session.execute(update(QualityRow), list(rows))
            scored = QualityRow.id.in_([row["id"] for row in rows if "score" in row])
            for whole in session.scalars(select(QualityRow).where(scored, QualityRow.structure_index == 0)):
                _audit_score(session, session.get_one(LabelVersionRow, whole.label_version_id), whole)

    def counts(self) -> dict[str, int]:
        """Images in all, approved, scored, and labels by tag, for status pages."""
        with self.session() as session:
            return _counts(session)


def best_of(labels: Iterable[LabelVersionRow | None]) -> LabelVersionRow | None:
    """Of those that are not rejected a person's label, else the newest of the machine's.

    A correction is newer than the label it was made from, so it outranks that one; it does not outrank an original that
    was made or imported after it, for example by another protocol.
    """
    found = [label for label in labels if label is not None and label.tag in TAGS and not label.is_rejected]
    return max(found, key=lambda label: (label.tag == TAG_FINAL, label.id), default=None)


def enter_label(
    session: Session,
    row: LabelVersionRow,
    *,
    event: str | None = None,
    actor: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add a version, with its audit row, in a transaction that holds the write lock.

    Args:
        session: The transaction.
        row: The version.
        event: By default what its maker and tag say.
        actor: The person who enters it; by default its maker.
        details: More for the audit row.
    """
    is_persons = actor is not None or row.maker.startswith(USER)
    row.is_rejected = not is_persons and _is_thrown_out(session, row)
    if row.tag == TAG_FINAL and not row.is_rejected:
        session.execute(update(ImageRow).where(ImageRow.id == row.image_id).values(is_approved=True))
        lease = session.get(LeaseRow, row.image_id)
        if lease is not None:
            row.info = {**(row.info or {}), "why_served": lease.why}
            session.delete(lease)
    if row.tag == TAG_FINAL and session.info[SENDS_FINALS]:
        row.info = {**(row.info or {}), "pacs": {"state": PACS_PENDING, "reason": ""}}
    session.add(row)
    session.flush()
    event = event or (EVENT_SUBMITTED if row.maker.startswith(USER) else EVENT_OF_TAG.get(row.tag, EVENT_SUBMITTED))
    told = label_details({name: getattr(row, name) for name in (*ORIGIN.values(), "info")})
    told |= {"rejected": True} if row.is_rejected else {}
    told |= {"reasons": row.info["reasons"]} if row.info and "reasons" in row.info else {}
    of = {"image_id": row.image_id, "label_version_id": row.id}
    actor = shown_name(actor or row.maker.removeprefix(USER))
    append_audit(session, event, actor=actor, details={**told, **(details or {})}, **of)


def copy_label(
    session: Session,
    label: LabelVersionRow,
    *,
    event: str | None = None,
    actor: str | None = None,
    details: Mapping[str, Any] | None = None,
    **changes: object,
) -> LabelVersionRow:
    """`enter_label` of a version once more, with its quality, and itself as the parent; it begins as not rejected."""
    columns = {c.key: getattr(label, c.key) for c in LabelVersionRow.__table__.columns if c.key != "id"}
    info = {key: value for key, value in label.info.items() if key != RESTORED_BY}
    columns |= {"parent_id": label.id, "created_at": time.time(), "info": info}
    copy = LabelVersionRow(**columns | changes)
    enter_label(session, copy, event=event, actor=actor, details=details)
    names = [c.key for c in QualityRow.__table__.columns if c.key not in ("id", "label_version_id")]
    rows = session.scalars(select(QualityRow).where(QualityRow.label_version_id == label.id)).all()
    if rows:
        copies = [QualityRow(label_version_id=copy.id, **{name: getattr(row, name) for name in names}) for row in rows]
        _replace_quality(session, copy, copies)
    return copy


def newest_label(session: Session, image_id: str) -> LabelVersionRow | None:
    """The newest version of an image, rejected or not, but for tags of a viewer's own."""
    query = select(LabelVersionRow).where(LabelVersionRow.image_id == image_id, LabelVersionRow.tag.in_(TAGS))
    return session.scalars(query.order_by(LabelVersionRow.id.desc()).limit(1)).first()


def _is_thrown_out(session: Session, row: LabelVersionRow) -> bool:
    """Whether a person rejected the same content the last time that it was entered for the same image."""
    same = (
        LabelVersionRow.image_id == row.image_id,
        LabelVersionRow.content_sha256 == row.content_sha256,
        LabelVersionRow.tag.in_(TAGS),
    )
    query = select(LabelVersionRow.is_rejected).where(*same).order_by(LabelVersionRow.id.desc()).limit(1)
    return bool(session.scalar(query))


def _replace_quality(session: Session, label: LabelVersionRow, rows: Sequence[QualityRow]) -> None:
    session.execute(delete(QualityRow).where(QualityRow.label_version_id == label.id))
    session.add_all(rows)
    whole = next((row for row in rows if row.structure_index == 0), None)
    if whole is None:
        return
    newest = newest_label(session, label.image_id)
    if not (label.is_rejected or (newest is not None and newest.is_rejected)):
        # A label that is scored while another is the best is not what a person would be shown.
        is_shown = (ImageRow.id == label.image_id) & (ImageRow.best_label_id == label.id)
        session.execute(update(ImageRow).where(is_shown).values(queue_score=whole.score))
    _audit_score(session, label, whole)


def _audit_score(session: Session, label: LabelVersionRow, whole: QualityRow) -> None:
    details = {name: _stored(getattr(whole, name)) for name in ("score", "expected_dice")}
    of = {"image_id": label.image_id, "label_version_id": label.id}
    append_audit(session, EVENT_SCORED, actor=SAMCORRECT, details=details, **of)


def _stored(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _counts(session: Session) -> dict[str, int]:
    count = select(func.count()).select_from(ImageRow).where(ImageRow.status == IMAGE_STATUS_OK)
    n_approved = session.scalar(count.where(ImageRow.is_approved.is_(True)))
    is_waiting = ImageRow.is_approved.is_(False) & ImageRow.queue_score.is_not(None)
    counts = {"images": session.scalar(count), "approved": n_approved}
    counts["scored_waiting"] = session.scalar(count.where(is_waiting))
    n_images = func.count(LabelVersionRow.image_id.distinct())
    tags = session.execute(select(LabelVersionRow.tag, n_images).where(STANDS).group_by(LabelVersionRow.tag))
    return counts | {f"tag_{tag}": n for tag, n in tags.tuples()}
