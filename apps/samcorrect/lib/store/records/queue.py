"""The queue of images that wait for a person, and who has reserved which."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.orm import Session

from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.images import require_image
from samcorrect.lib.store.schema import IMAGE_STATUS_OK, ImageRow, LeaseRow, QualityRow

# A submit after the end of a lease still says why the image had been served.
KEEP_EXPIRED_S = 7 * 24 * 3600


@dataclass(frozen=True)
class Waiting:
    """An image of the queue, the quality of its best label where that is scored, and the lease that it is under."""

    image: ImageRow
    quality: QualityRow | None
    lease: LeaseRow | None


class QueueRecords(Records):
    """Reads of the queue, and leases."""

    def queue_head(self, holder: str | None, limit: int, *, now: float) -> list[ImageRow]:
        """Images that a holder may be given, worst score first; images never scored come before all others.

        Approved, quarantined and images leased to somebody else (without a holder: to anybody) are left out.
        """
        query = _free(holder, now).order_by(*_WORST_FIRST)
        with self.session() as session:
            return list(session.scalars(query.limit(limit)))

    def queue_random(self, holder: str | None, limit: int, *, now: float) -> list[ImageRow]:
        """The same images as `queue_head` in a random order, which an image's `draw` fixed when it came.

        What is served from its front is a sample drawn at random without replacement, at the cost of an index.
        """
        with self.session() as session:
            return list(session.scalars(_free(holder, now).order_by(ImageRow.draw).limit(limit)))

    def queue(self, limit: int, *, now: float) -> list[Waiting]:
        """The head of the queue with the images that are leased, worst score first."""
        with self.session() as session:
            return _told(session, select(ImageRow).where(*_WAITS).order_by(*_WORST_FIRST).limit(limit), now)

    def waiting(self, image_id: str, *, now: float) -> Waiting:
        """One image as `queue` tells of it, approved or not. Raises UnknownImageError."""
        with self.session() as session:
            require_image(session, image_id)
            return _told(session, select(ImageRow).where(ImageRow.id == image_id), now)[0]

    def take_lease(self, image_id: str, holder: str, *, now: float, lease_s: float, why: str = "") -> bool:
        """Reserve an image; False where somebody else holds it or a person has approved it in the meantime.

        Whoever takes it again while they hold it has it for longer, and for the reason that it was first served for.
        """
        with self.session(writes=True) as session:
            session.execute(delete(LeaseRow).where(LeaseRow.expires_at <= now - KEEP_EXPIRED_S))
            if require_image(session, image_id).is_approved:
                return False
            lease = session.get(LeaseRow, image_id)
            if lease is not None and lease.expires_at > now:
                if lease.holder != holder:
                    return False
                why = lease.why
            session.merge(LeaseRow(image_id=image_id, holder=holder, expires_at=now + lease_s, why=why))
            return True

    def release(self, holder: str, image_id: str | None = None, *, now: float) -> list[str]:
        """Give back what a holder has reserved, one image or all; returns the ids, which are free from now on."""
        mine = [LeaseRow.holder == holder, LeaseRow.expires_at > now]
        if image_id is not None:
            mine.append(LeaseRow.image_id == image_id)
        with self.session(writes=True) as session:
            image_ids = list(session.scalars(select(LeaseRow.image_id).where(*mine).order_by(LeaseRow.image_id)))
            session.execute(delete(LeaseRow).where(*mine))
            return image_ids

    def held_by(self, holder: str, *, now: float) -> list[str]:
        """Image ids that a holder has reserved."""
        query = select(LeaseRow.image_id).where(LeaseRow.holder == holder, LeaseRow.expires_at > now)
        with self.session() as session:
            return list(session.scalars(query))


_WAITS: Sequence[ColumnElement[bool]] = (ImageRow.status == IMAGE_STATUS_OK, ImageRow.is_approved.is_(False))
_WORST_FIRST = (ImageRow.queue_score.asc().nulls_first(), ImageRow.id)


def _free(holder: str | None, now: float) -> Select[tuple[ImageRow]]:
    taken = select(LeaseRow.image_id).where(LeaseRow.expires_at > now)
    if holder is not None:
        taken = taken.where(LeaseRow.holder != holder)
    return select(ImageRow).where(*_WAITS, ImageRow.id.not_in(taken))


def _told(session: Session, images: Select[tuple[ImageRow]], now: float) -> list[Waiting]:
    is_whole = (QualityRow.label_version_id == ImageRow.best_label_id) & (QualityRow.structure_index == 0)
    is_held = (LeaseRow.image_id == ImageRow.id) & (LeaseRow.expires_at > now)
    query = images.add_columns(QualityRow, LeaseRow).outerjoin(QualityRow, is_whole).outerjoin(LeaseRow, is_held)
    return [Waiting(*row) for row in session.execute(query)]
