"""What people decide about labels: approvals without a change, rejections with their reason, comments."""

import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from samcorrect.lib.errors import ConflictError, LabelError, RequestError, UnknownLabelError
from samcorrect.lib.store.records.audit import MAX_NAME, append_audit, is_control
from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.events import EVENT_APPROVED, EVENT_COMMENT, EVENT_REJECTED
from samcorrect.lib.store.records.images import require_image
from samcorrect.lib.store.records.labels import STANDS, copy_label, newest_label
from samcorrect.lib.store.schema import (
    DECISION_APPROVED,
    DECISION_COMMENT,
    DECISION_REJECTED,
    STATE_IN_REVIEW,
    STATE_OF_TAG,
    STATE_UNLABELLED,
    TAG_FINAL,
    USER,
    LabelVersionRow,
    LeaseRow,
    ReviewRow,
)

MAX_TEXT = 2000


class ReviewRecords(Records):
    """Decisions of people; each is written with what it changes and its audit row in one transaction."""

    def reject(self, image_id: str, label_version_id: int, *, reviewer: str, reason: str) -> LabelVersionRow:
        """Reject a label version, also a final one: nothing is learnt from it, and its image is the queue's first.

        The image stays approved only where another final label of it stands. Its lease ends.

        Raises:
            RequestError: Name or reason is blank, too long, or holds control characters.
            UnknownImageError, UnknownLabelError: No such image or version.
            LabelError: The version is another image's.
            ConflictError: The version is rejected already.
        """
        reviewer, reason = check_text("reviewer", reviewer, MAX_NAME), check_text("reason", reason)
        with self.session(writes=True) as session:
            label = _require_version(session, image_id, label_version_id)
            if label.is_rejected:
                raise ConflictError(f"version {label.id} of {image_id} is rejected already; comment on it instead")
            label.is_rejected = True
            session.flush()
            image = require_image(session, image_id)
            finals = select(LabelVersionRow.id).where(
                LabelVersionRow.image_id == image_id, LabelVersionRow.tag == TAG_FINAL, STANDS
            )
            image.is_approved = session.scalar(finals.limit(1)) is not None
            image.queue_score = None
            lease = session.get(LeaseRow, image_id)
            if lease is not None:
                session.delete(lease)
            _decide(session, DECISION_REJECTED, label, reviewer, reason)
            of = {"image_id": image_id, "label_version_id": label.id}
            append_audit(session, EVENT_REJECTED, actor=reviewer, details={"reason": reason}, **of)
        return label

    def comment(self, image_id: str, label_version_id: int, *, reviewer: str, text: str) -> None:
        """Keep a comment on a label version. Raises as `reject`, but for ConflictError."""
        reviewer, text = check_text("reviewer", reviewer, MAX_NAME), check_text("comment", text)
        with self.session(writes=True) as session:
            label = _require_version(session, image_id, label_version_id)
            _decide(session, DECISION_COMMENT, label, reviewer, text)
            of = {"image_id": image_id, "label_version_id": label.id}
            append_audit(session, EVENT_COMMENT, actor=reviewer, details={"reason": text}, **of)

    def approve(
        self,
        label_version_id: int,
        *,
        reviewer: str,
        comment: str = "",
        expected_best: int | None = None,
        even_rejected: bool = False,
    ) -> LabelVersionRow:
        """Enter a version once more as a person's final label; see `LabelStore.approve_label`."""
        reviewer = check_text("reviewer", reviewer, MAX_NAME)
        comment = check_text("comment", comment) if comment.strip() else ""
        with self.session(writes=True) as session:
            label = session.get(LabelVersionRow, label_version_id)
            if label is None:
                raise UnknownLabelError(f"no label version {label_version_id} in the ledger")
            if label.is_rejected and not even_rejected:
                raise ConflictError(
                    f"version {label.id} of {label.image_id} was rejected; approve another version, or say with "
                    "`even_rejected` that you mean this one although it was rejected"
                )
            seen, maker = label.id if expected_best is None else expected_best, f"{USER}{reviewer}"
            newer = select(LabelVersionRow).where(
                LabelVersionRow.image_id == label.image_id,
                LabelVersionRow.tag == TAG_FINAL,
                LabelVersionRow.id > seen,
                LabelVersionRow.maker != maker,
                STANDS,
            )
            other = session.scalars(newer.order_by(LabelVersionRow.id.desc()).limit(1)).first()
            if other is not None:
                raise ConflictError(
                    f"{other.maker.removeprefix(USER)} approved version {other.id} of {label.image_id} in the "
                    f"meantime; look at it, then approve with {other.id} as the version that you saw"
                )
            told = {"event": EVENT_APPROVED, "actor": reviewer, "details": {"reason": comment}}
            copy = copy_label(session, label, **told, tag=TAG_FINAL, maker=maker)
            _decide(session, DECISION_APPROVED, copy, reviewer, comment)
        return copy

    def reviews(self, image_id: str) -> list[ReviewRow]:
        """All decisions about an image's labels, oldest first."""
        query = select(ReviewRow).where(ReviewRow.image_id == image_id).order_by(ReviewRow.id)
        with self.session() as session:
            return list(session.scalars(query))

    def last_review(self, label_version_id: int) -> ReviewRow | None:
        """The last decision about a label version, or None."""
        query = select(ReviewRow).where(ReviewRow.label_version_id == label_version_id)
        with self.session() as session:
            return session.scalars(query.order_by(ReviewRow.id.desc()).limit(1)).first()

    def rejection(self, image_id: str) -> ReviewRow | None:
        """The last rejection of an image whose newest label is rejected; else None."""
        query = select(ReviewRow).where(ReviewRow.image_id == image_id, ReviewRow.decision == DECISION_REJECTED)
        with self.session() as session:
            newest = newest_label(session, image_id)
            if newest is None or not newest.is_rejected:
                return None
            return session.scalars(query.order_by(ReviewRow.id.desc()).limit(1)).first()

    def state(self, image_id: str, *, now: float | None = None) -> str:
        """State of an image: unlabelled, pseudo, corrected, in review, approved or rejected (its newest label is).

        Raises:
            UnknownImageError: No such image.
        """
        now = time.time() if now is None else now
        with self.session() as session:
            image = require_image(session, image_id)
            lease = session.get(LeaseRow, image_id)
            if lease is not None and lease.expires_at > now:
                return STATE_IN_REVIEW
            if image.is_approved:
                return STATE_OF_TAG[TAG_FINAL]
            newest = newest_label(session, image_id)
            return STATE_UNLABELLED if newest is None else newest.state


def check_text(name: str, value: str, most: int = MAX_TEXT) -> str:
    """A name, reason or comment on one line, without space around it.

    Raises:
        RequestError: It is blank, longer than `most` characters, or holds control characters.
    """
    text = " ".join(str(value).split())
    if not text or len(text) > most:
        raise RequestError(f"the {name} has 1 to {most} characters; got {len(text)}")
    if any(map(is_control, text)):
        raise RequestError(f"the {name} holds control characters; got {text!r:.80}")
    return text


def _require_version(session: Session, image_id: str, label_version_id: int) -> LabelVersionRow:
    require_image(session, image_id)
    label = session.get(LabelVersionRow, label_version_id)
    if label is None:
        raise UnknownLabelError(f"no label version {label_version_id} in the ledger")
    if label.image_id != image_id:
        raise LabelError(f"version {label_version_id} is not of the image {image_id!r:.80}")
    return label


def _decide(session: Session, decision: str, label: LabelVersionRow, reviewer: str, reason: str) -> None:
    row = ReviewRow(image_id=label.image_id, label_version_id=label.id, decision=decision, reviewer=reviewer)
    row.reason, row.created_at = reason, time.time()
    session.add(row)
