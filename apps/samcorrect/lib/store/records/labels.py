"""Label versions and their quality. A version is never changed once written, but for what viewers note about it."""

import time
from collections.abc import Iterable, Sequence
from math import isfinite

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.orm import Session

from samcorrect.lib.errors import UnknownLabelError
from samcorrect.lib.store.records.audit import (
    EVENT_CORRECTED,
    EVENT_MADE,
    EVENT_RESTORED,
    EVENT_SCORED,
    EVENT_SUBMITTED,
    append_audit,
)
from samcorrect.lib.store.records.base import Records, merge_notes
from samcorrect.lib.store.schema import (
    IMAGE_STATUS_OK,
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
SCORER = "samcorrect"


class LabelRecords(Records):
    """Reads and writes of label versions."""

    def add_label(self, row: LabelVersionRow) -> LabelVersionRow:
        """Enter a label version whose file is on the disk.

        A `final` one approves its image and ends its lease; why the image had been served is kept as `why_served`.
        """
        with self.session(writes=True) as session:
            if row.tag == TAG_FINAL:
                session.execute(update(ImageRow).where(ImageRow.id == row.image_id).values(is_approved=True))
                lease = session.get(LeaseRow, row.image_id)
                if lease is not None:
                    row.info = {**(row.info or {}), "why_served": lease.why}
                    session.delete(lease)
            session.add(row)
            session.flush()
            _audit_label(session, row)
        return row

    def add_copy(self, label: LabelVersionRow, **changes: object) -> LabelVersionRow:
        """Enter a version once more as the newest, with its quality, and itself as the parent."""
        columns = {c.key: getattr(label, c.key) for c in LabelVersionRow.__table__.columns if c.key != "id"}
        copy = self.add_label(LabelVersionRow(**columns | {"parent_id": label.id, "created_at": time.time()} | changes))
        rows = self.quality(label.id).values()
        names = [c.key for c in QualityRow.__table__.columns if c.key not in ("id", "label_version_id")]
        copies = [QualityRow(label_version_id=copy.id, **{name: getattr(row, name) for name in names}) for row in rows]
        self.set_quality(copy.id, copies)
        return copy

    def latest_label(self, image_id: str, tag: str) -> LabelVersionRow | None:
        """The newest version of one tag, or None."""
        query = select(LabelVersionRow).where(LabelVersionRow.image_id == image_id, LabelVersionRow.tag == tag)
        with self.session() as session:
            return session.scalars(query.order_by(LabelVersionRow.id.desc()).limit(1)).first()

    def best_label(self, image_id: str) -> LabelVersionRow | None:
        """The best label by `best_of`; None where there is no label."""
        query = select(LabelVersionRow).where(LabelVersionRow.image_id == image_id, LabelVersionRow.tag.in_(TAGS))
        is_final = case((LabelVersionRow.tag == TAG_FINAL, 1), else_=0)
        with self.session() as session:
            return session.scalars(query.order_by(is_final.desc(), LabelVersionRow.id.desc()).limit(1)).first()

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
        """Ids of the images that have a label of a tag."""
        query = select(LabelVersionRow.image_id).where(LabelVersionRow.tag == tag).distinct()
        with self.session() as session:
            return set(session.scalars(query))

    def first_finals(self) -> list[LabelVersionRow]:
        """Of every approved image the first label that a person submitted, in order of submission."""
        first = select(func.min(LabelVersionRow.id)).where(LabelVersionRow.tag == TAG_FINAL)
        query = select(LabelVersionRow).where(LabelVersionRow.id.in_(first.group_by(LabelVersionRow.image_id)))
        with self.session() as session:
            return list(session.scalars(query.order_by(LabelVersionRow.id)))

    def latest_labels(self) -> dict[tuple[str, str], LabelVersionRow]:
        """(image id, tag) to the newest version, for the whole store."""
        newest = select(func.max(LabelVersionRow.id)).group_by(LabelVersionRow.image_id, LabelVersionRow.tag)
        with self.session() as session:
            rows = session.scalars(select(LabelVersionRow).where(LabelVersionRow.id.in_(newest)))
            return {(row.image_id, row.tag): row for row in rows}

    def run_label(self, image_id: str, tag: str, run_id: int, round_number: int) -> LabelVersionRow | None:
        """The version that a run made in a round: the checkpoint of one image."""
        query = select(LabelVersionRow).where(
            LabelVersionRow.image_id == image_id,
            LabelVersionRow.tag == tag,
            LabelVersionRow.run_id == run_id,
            LabelVersionRow.round == round_number,
        )
        with self.session() as session:
            return session.scalars(query.order_by(LabelVersionRow.id.desc()).limit(1)).first()

    def run_labels(self, tag: str, run_id: int, round_number: int) -> dict[str, LabelVersionRow]:
        """Image id to the version that a run made in a round, for the whole store."""
        query = select(LabelVersionRow).where(
            LabelVersionRow.run_id == run_id, LabelVersionRow.tag == tag, LabelVersionRow.round == round_number
        )
        with self.session() as session:
            return {row.image_id: row for row in session.scalars(query.order_by(LabelVersionRow.id))}

    def label_version(self, label_version_id: int) -> LabelVersionRow:
        """One label version by its number. Raises UnknownLabelError."""
        with self.session() as session:
            row = session.get(LabelVersionRow, label_version_id)
        if row is None:
            raise UnknownLabelError(f"no label version {label_version_id} in the ledger")
        return row

    def update_label_notes(self, label_version_id: int, notes: dict) -> None:
        """Merge keys into what viewers noted about a label; nothing else of a version can be changed."""
        with self.session(writes=True) as session:
            row = session.get_one(LabelVersionRow, label_version_id)
            row.info = {**row.info, "viewer": merge_notes(row.info.get("viewer", {}), notes)}

    def set_quality(self, label_version_id: int, rows: Sequence[QualityRow]) -> None:
        """Replace the quality of a label version; index 0, the whole label, sets the image's place in the queue."""
        with self.session(writes=True) as session:
            session.execute(delete(QualityRow).where(QualityRow.label_version_id == label_version_id))
            session.add_all(rows)
            whole = next((row for row in rows if row.structure_index == 0), None)
            if whole is not None:
                image_id = session.get_one(LabelVersionRow, label_version_id).image_id
                session.execute(update(ImageRow).where(ImageRow.id == image_id).values(queue_score=whole.score))
                details = {"score": whole.score if whole.score is None or isfinite(whole.score) else None}
                of = {"image_id": image_id, "label_version_id": label_version_id}
                append_audit(session, EVENT_SCORED, actor=SCORER, details=details, **of)

    def quality(self, label_version_id: int) -> dict[int, QualityRow]:
        """Structure index to quality; 0 is the whole label. Empty where the label is not scored."""
        with self.session() as session:
            rows = session.scalars(select(QualityRow).where(QualityRow.label_version_id == label_version_id))
            return {row.structure_index: row for row in rows}

    def counts(self) -> dict[str, int]:
        """Images in all, approved, scored, and labels by tag, for status pages."""
        with self.session() as session:
            return _counts(session)


def best_of(labels: Iterable[LabelVersionRow | None]) -> LabelVersionRow | None:
    """A person's label, else the newest of the machine's.

    A correction is newer than the label it was made from, so it outranks that one; it does not outrank an original that
    was made or imported after it, for example by another protocol.
    """
    found = [label for label in labels if label is not None and label.tag in TAGS]
    return max(found, key=lambda label: (label.tag == TAG_FINAL, label.id), default=None)


def _audit_label(session: Session, row: LabelVersionRow) -> None:
    info = row.info or {}
    event = EVENT_OF_TAG.get(row.tag, EVENT_SUBMITTED)
    actor = row.maker
    if row.maker.startswith(USER):
        event, actor = EVENT_SUBMITTED, row.maker.removeprefix(USER)
    if "restored_by" in info:
        event, actor = EVENT_RESTORED, info["restored_by"]
    details = {"tag": row.tag, "sha256": row.content_sha256, "parent": row.parent_id, "round": row.round}
    details |= {"maker": row.maker, "model": row.model_digest, "runtime": row.runtime, "prompts": row.prompts}
    append_audit(session, event, actor=actor, image_id=row.image_id, label_version_id=row.id, details=details)


def _counts(session: Session) -> dict[str, int]:
    count = select(func.count()).select_from(ImageRow).where(ImageRow.status == IMAGE_STATUS_OK)
    n_approved = session.scalar(count.where(ImageRow.is_approved.is_(True)))
    is_waiting = ImageRow.is_approved.is_(False) & ImageRow.queue_score.is_not(None)
    counts = {"images": session.scalar(count), "approved": n_approved}
    counts["scored_waiting"] = session.scalar(count.where(is_waiting))
    n_images = func.count(LabelVersionRow.image_id.distinct())
    tags = session.execute(select(LabelVersionRow.tag, n_images).group_by(LabelVersionRow.tag))
    return counts | {f"tag_{tag}": n for tag, n in tags.tuples()}
