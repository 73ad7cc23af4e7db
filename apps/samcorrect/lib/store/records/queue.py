"""The queue of images that wait for a person, and who has reserved which."""

from sqlalchemy import Select, select

from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.images import require_image
from samcorrect.lib.store.schema import IMAGE_STATUS_OK, ImageRow, LeaseRow


class QueueRecords(Records):
    """Reads of the queue, and leases."""

    def queue_head(self, holder: str, limit: int, *, now: float) -> list[ImageRow]:
        """Images that a holder may be given, worst score first; images never scored come before all others.

        Approved, quarantined and images leased to somebody else are left out.
        """
        query = _waiting(holder, now).order_by(ImageRow.queue_score.asc().nulls_first(), ImageRow.id)
        with self.session() as session:
            return list(session.scalars(query.limit(limit)))

    def queue_random(self, holder: str, limit: int, *, now: float) -> list[ImageRow]:
        """The same images as `queue_head` in a random order, which an image's `draw` fixed when it came.

        What is served from its front is a sample drawn at random without replacement, at the cost of an index.
        """
        with self.session() as session:
            return list(session.scalars(_waiting(holder, now).order_by(ImageRow.draw).limit(limit)))

    def take_lease(self, image_id: str, holder: str, *, now: float, lease_s: float, why: str = "") -> bool:
        """Reserve an image; False where somebody else holds it or a person has approved it in the meantime."""
        with self.session(writes=True) as session:
            if require_image(session, image_id).is_approved:
                return False
            lease = session.get(LeaseRow, image_id)
            if lease is not None and lease.expires_at > now and lease.holder != holder:
                return False
            session.merge(LeaseRow(image_id=image_id, holder=holder, expires_at=now + lease_s, why=why))
            return True

    def held_by(self, holder: str, *, now: float) -> list[str]:
        """Image ids that a holder has reserved."""
        query = select(LeaseRow.image_id).where(LeaseRow.holder == holder, LeaseRow.expires_at > now)
        with self.session() as session:
            return list(session.scalars(query))


def _waiting(holder: str, now: float) -> Select[tuple[ImageRow]]:
    taken = select(LeaseRow.image_id).where(LeaseRow.expires_at > now, LeaseRow.holder != holder)
    return select(ImageRow).where(
        ImageRow.status == IMAGE_STATUS_OK, ImageRow.is_approved.is_(False), ImageRow.id.not_in(taken)
    )
