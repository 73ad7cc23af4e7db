"""Images: which there are, and which of them cannot be used and why."""

import random
import time
from collections.abc import Collection, Sequence

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from samcorrect.lib.errors import StoreError, UnknownImageError
from samcorrect.lib.store.records.base import Records, merge_notes
from samcorrect.lib.store.records.listing import next_revision
from samcorrect.lib.store.schema import IMAGE_STATUS_OK, IMAGE_STATUS_QUARANTINED, ImageRow
from samcorrect.lib.store.studies import ImageFile

# A file that the scan refused has no id but its name.
IS_REFUSED = ImageRow.path == ImageRow.id
REASON_GONE = "the file is gone from the studies folder"
# Rows and columns of `IN (...)` are bound one by one, and SQLite binds 32766 at most.
MAX_BOUND = 10_000


class ImageRecords(Records):
    """Reads and writes of images."""

    def sync_images(self, found: Sequence[ImageFile], refused: Sequence[tuple[str, str]] | None = None) -> None:
        """Add new images and note new paths. Images that are gone are quarantined until they are back.

        Args:
            found: Images, some or all of the studies.
            refused: All files that the scan refused, with the reason: they are quarantined, and those that it no longer
                refuses are forgotten. None where the studies were not scanned: `found` then says nothing of the others.

        Raises:
            StoreError: The studies were scanned, and none of their images is known while others are there.
        """
        with self.session(writes=True) as session:
            if refused is not None:
                session.execute(delete(ImageRow).where(IS_REFUSED))
            columns = select(ImageRow.id, ImageRow.path, ImageRow.case_id, ImageRow.reason)
            if refused is None:
                columns = columns.where(ImageRow.id.in_([image.id for image in found]))
            known = {row.id: row for row in session.execute(columns)}
            if refused is not None and known.keys().isdisjoint(image.id for image in found):
                self._require_none(found, [i for i, row in known.items() if row.reason != REASON_GONE])
            new = [image for image in found if image.id not in known]
            _add(session, [(image.id, image.path, image.case, None) for image in new])
            _change(session, [i for i in found if i.id in known and (i.path, i.case) != known[i.id][1:3]])
            _set_status(session, [i.id for i in found if i.id in known and known[i.id].reason == REASON_GONE], None)
            if refused is not None:
                here = {image.id for image in found}
                gone = [i for i, row in known.items() if i not in here and row.reason != REASON_GONE]
                _set_status(session, gone, REASON_GONE)
                taken = here | known.keys()
                _add(session, [(name, name, name, reason) for name, reason in refused if name not in taken])

    def _require_none(self, found: Sequence[ImageFile], others: Sequence[str]) -> None:
        if found and others:
            raise StoreError(
                f"the state folder {self.state_dir} belongs to other studies: it knows {others[0]!r} and not "
                f"{found[0].id!r}, and they share no image; give these studies a folder of their own with --state DIR"
            )

    def image(self, image_id: str) -> ImageRow:
        """The row of one image. Raises UnknownImageError."""
        with self.session() as session:
            return require_image(session, image_id)

    def images(self) -> list[ImageRow]:
        """All images that are not quarantined, in order of id."""
        with self.session() as session:
            query = select(ImageRow).where(ImageRow.status == IMAGE_STATUS_OK)
            return list(session.scalars(query.order_by(ImageRow.id)))

    def image_ids(self) -> list[str]:
        """Ids of all images that are not quarantined, in order."""
        with self.session() as session:
            query = select(ImageRow.id).where(ImageRow.status == IMAGE_STATUS_OK)
            return list(session.scalars(query.order_by(ImageRow.id)))

    def listings(self, since: int = 0) -> Sequence[Row[tuple[str, str, float, str, str, str, int]]]:
        """Images that changed after a revision, quarantined ones too, with what `listing.py` keeps of their labels.

        Of each `id`, `path`, `added_at`, `best_present`, `shown_labels`, `status` and `revision`, in order of the last.
        """
        columns = (ImageRow.id, ImageRow.path, ImageRow.added_at, ImageRow.best_present, ImageRow.shown_labels)
        query = select(*columns, ImageRow.status, ImageRow.revision).where(ImageRow.revision > since)
        with self.session() as session:
            return session.execute(query.order_by(ImageRow.revision, ImageRow.id)).all()

    def update_image_info(self, image_id: str, info: dict) -> None:
        """Merge keys into what clients noted about an image. Raises UnknownImageError."""
        with self.session(writes=True) as session:
            row = require_image(session, image_id)
            row.info = merge_notes(row.info, info)

    def quarantine(self, image_id: str, reason: str) -> None:
        """Take an image out of every stage and keep the reason. A later `release_from_quarantine` lets it back."""
        with self.session(writes=True) as session:
            _set_status(session, [image_id], reason)

    def release_from_quarantine(self) -> None:
        """Let all but files that are refused by name or gone try again; a run calls it at its start, since files get
        repaired.
        """
        may_return = ~IS_REFUSED & (ImageRow.reason != REASON_GONE)
        with self.session(writes=True) as session:
            values = {"status": IMAGE_STATUS_OK, "reason": None, "revision": next_revision(session)}
            session.execute(update(ImageRow).where(may_return).values(values))

    def quarantined(self) -> list[tuple[str, str]]:
        """(image id or file, reason) of every quarantined image."""
        with self.session() as session:
            query = select(ImageRow).where(ImageRow.status == IMAGE_STATUS_QUARANTINED)
            return [(row.id, row.reason or "") for row in session.scalars(query.order_by(ImageRow.id))]


def require_image(session: Session, image_id: str) -> ImageRow:
    """The row of one image. Raises UnknownImageError."""
    row = session.get(ImageRow, image_id)
    if row is None:
        raise UnknownImageError(
            f"no image {image_id[:80]!r} in the store; an image is called by its path below the studies, without the "
            "suffix (GET /datastore/?output=all lists them)"
        )
    return row


def _add(session: Session, images: Sequence[tuple[str, str, str, str | None]]) -> None:
    revision = next_revision(session)
    rows = [
        {
            "id": image_id,
            "path": path,
            "case_id": case,
            "status": IMAGE_STATUS_OK if reason is None else IMAGE_STATUS_QUARANTINED,
            "reason": reason,
            "is_approved": False,
            "draw": random.random(),
            "added_at": time.time(),
            "info": {},
            # A refused file is in no list; its row may go, and a revision must not come twice.
            "revision": revision if reason is None else 0,
        }
        for image_id, path, case, reason in images
    ]
    if rows:
        session.execute(insert(ImageRow), rows)


def _change(session: Session, images: Collection[ImageFile]) -> None:
    if images:
        table = ImageRow.__table__
        statement = (
            update(table)
            .where(table.c.id == bindparam("of"))
            .values(path=bindparam("at"), case_id=bindparam("by"), revision=next_revision(session))
        )
        session.connection().execute(statement, [{"of": i.id, "at": i.path, "by": i.case} for i in images])


def _set_status(session: Session, image_ids: Sequence[str], reason: str | None) -> None:
    values = {"status": IMAGE_STATUS_OK if reason is None else IMAGE_STATUS_QUARANTINED, "reason": reason}
    values["revision"] = next_revision(session)
    for start in range(0, len(image_ids), MAX_BOUND):
        chunk = image_ids[start : start + MAX_BOUND]
        session.execute(update(ImageRow).where(ImageRow.id.in_(chunk)).values(values))
