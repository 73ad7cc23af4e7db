"""What the promotion gate judges by: images that are held out of training, and labels that were trusted at first."""

from collections.abc import Collection, Iterable

from sqlalchemy import select, update

from samcorrect.lib.store.records.audit import append_audit
from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.events import EVENT_HELD_OUT, SAMCORRECT
from samcorrect.lib.store.schema import GateLabelRow, ImageRow


class GateRecords(Records):
    """Reads and writes of the gate's images and labels; neither is ever taken back."""

    def held_out_images(self) -> set[str]:
        """Ids of the images that nothing learns from."""
        with self.session() as session:
            return set(session.scalars(select(ImageRow.id).where(ImageRow.is_held_out.is_(True))))

    def hold_out(self, image_ids: Collection[str]) -> None:
        """Hold images out of training for good, each with a row in the audit log; those that are already stay so."""
        held_out = self.held_out_images()
        if held_out.issuperset(image_ids):
            return
        with self.session(writes=True) as session:
            for image_id in sorted(set(image_ids) - held_out):
                wanted = (ImageRow.id == image_id, ImageRow.is_held_out.is_(False))
                if session.execute(update(ImageRow).where(*wanted).values(is_held_out=True)).rowcount:
                    append_audit(session, EVENT_HELD_OUT, actor=SAMCORRECT, image_id=image_id)

    def gate_labels(self, protocol_digest: str) -> list[tuple[int, int]]:
        """(label version, structure index) that were frozen for a protocol, in order; empty where none were."""
        columns = select(GateLabelRow.label_version_id, GateLabelRow.structure_index)
        query = columns.where(GateLabelRow.protocol_digest == protocol_digest)
        order = (GateLabelRow.label_version_id, GateLabelRow.structure_index)
        with self.session() as session:
            return list(session.execute(query.order_by(*order)).tuples())

    def freeze_gate(self, protocol_digest: str, labels: Iterable[tuple[int, int]]) -> None:
        """Freeze (label version, structure index) for a protocol, unless some are frozen for it already."""
        known = select(GateLabelRow.label_version_id).where(GateLabelRow.protocol_digest == protocol_digest)
        with self.session(writes=True) as session:
            if session.scalar(known.limit(1)) is None:
                session.add_all(
                    GateLabelRow(protocol_digest=protocol_digest, label_version_id=version, structure_index=index)
                    for version, index in labels
                )
