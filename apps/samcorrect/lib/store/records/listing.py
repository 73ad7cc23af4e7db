"""What lists of all images say of their labels, kept in an image's own row whenever a label or review of it is written.

A list of 100,000 images would otherwise read every version of every label. Slicer asks for one at each next sample, for
the names in one label; Slicer's Reviewer reads who submitted what, and what reviewers thought of it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Row, bindparam, event, func, select, update
from sqlalchemy.orm import Session

from samcorrect.lib.store.schema import DECISION_COMMENT, TAG_FINAL, TAGS, USER, ImageRow, LabelVersionRow, ReviewRow

# What the Reviewer calls a label that a person corrected further; everybody gets the best label as `original`.
VERSION_TAG = re.compile(r"version_\d{1,9}")
META, APPROVED, FLAGGED = "segmentationMeta", "approved", "flagged"
ROWS_AT_ONCE = 1000
_LABEL_COLUMNS = ("id", "image_id", "tag", "maker", "path", "created_at", "is_rejected", "info")
_LISTED = ("best_label_id", "best_present", "shown_labels")


class ListingSession(Session):
    """A session that keeps the listing of every image whose labels or reviews it writes; bulk statements do not."""


@event.listens_for(ListingSession, "after_flush")
def _relist_changed(session: Session, _context: object) -> None:
    changed = {row.image_id for row in (*session.new, *session.dirty) if isinstance(row, (LabelVersionRow, ReviewRow))}
    for image_id in sorted(changed):
        relist(session, image_id)


def next_revision(session: Session) -> int:
    """The revision of what this transaction, which must hold the write lock, changes of images."""
    return (session.scalar(select(func.max(ImageRow.revision))) or 0) + 1


def relist(session: Session, image_id: str | None = None) -> None:
    """Write the listing of one image, or of all that have labels, anew from their labels and reviews."""
    labels = select(*(getattr(LabelVersionRow, name) for name in _LABEL_COLUMNS))
    reviews = select(ReviewRow)
    if image_id is not None:
        labels = labels.where(LabelVersionRow.image_id == image_id)
        reviews = reviews.where(ReviewRow.image_id == image_id)
    with session.no_autoflush:
        last = {row.label_version_id: row for row in session.scalars(reviews.order_by(ReviewRow.id))}
        ordered = labels.order_by(LabelVersionRow.image_id, LabelVersionRow.id)
        rows = session.execute(ordered.execution_options(yield_per=ROWS_AT_ONCE))
        listings = [
            {"of": of} | _listing(list(versions), last) for of, versions in groupby(rows, key=lambda row: row.image_id)
        ]
    if listings:
        table = ImageRow.__table__
        values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in _LISTED}
        values["revision"] = next_revision(session)
        session.connection().execute(update(table).where(table.c.id == bindparam("of")).values(values), listings)


def segmentation_meta(label: LabelVersionRow | Row, review: ReviewRow | None) -> dict[str, Any]:
    """What the Reviewer shows of a label: all of its keys, as it reads every one of them.

    Args:
        label: The label, or its columns.
        review: The last decision about it, or None.
    """
    is_final = label.tag == TAG_FINAL and not label.is_rejected
    decider = review.reviewer if review is not None and review.decision != DECISION_COMMENT else ""
    noted = label.info.get("viewer", {}).get(META)
    return {
        "status": FLAGGED if label.is_rejected else APPROVED if is_final else "",
        "approvedBy": label.maker.removeprefix(USER) if is_final else decider,
        "level": str(noted.get("level", "")) if isinstance(noted, Mapping) else "",
        "comment": "" if review is None else review.reason,
        "editTime": int(label.created_at if review is None else review.created_at),
    }


def _listing(versions: Sequence[Row], last: Mapping[int | None, ReviewRow]) -> dict[str, Any]:
    """The columns of an image with these versions, oldest first, and the last review of each."""
    # A rejected label is shown where there is no other.
    ranked = sorted(versions, key=lambda row: (not row.is_rejected, row.tag == TAG_FINAL, row.id))
    best = next((row for row in reversed(ranked) if row.tag in TAGS), None)
    newest = {row.tag: row for row in ranked if row.tag == TAG_FINAL or VERSION_TAG.fullmatch(row.tag)}
    shown = {tag: {"info": _shown_info(row)} for tag, row in newest.items()}
    present = {} if best is None else {key: best.info.get(key, []) for key in ("present_indices", "label_info")}
    # The Reviewer sends the decision of every tag that has one back: it is told of one.
    if TAG_FINAL in newest:
        shown[TAG_FINAL]["info"][META] = segmentation_meta(newest[TAG_FINAL], last.get(newest[TAG_FINAL].id))
    elif best is not None and best.id in last:
        present[META] = segmentation_meta(best, last[best.id])
    return {
        "new_best_label_id": None if best is None or best.is_rejected else best.id,
        "new_best_present": _compact(present) if present else "",
        "new_shown_labels": _compact(shown) if shown else "",
    }


def _shown_info(row: Row) -> dict[str, Any]:
    return {
        "name": PurePosixPath(row.path).name,
        "ts": int(row.created_at),
        "client_id": row.maker.removeprefix(USER),
        "label_info": row.info.get("label_info", []),
    }


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
