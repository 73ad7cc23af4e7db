"""What became of labels on their way into a PACS: `info["pacs"]` of a version, `{"state": ..., "reason": ...}`."""

from collections import Counter

from sqlalchemy import select

from samcorrect.lib.store.records.audit import append_audit
from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.labels import STANDS
from samcorrect.lib.store.schema import PACS_PENDING, PACS_STORED, TAG_FINAL, LabelVersionRow

EVENT_STORED, ACTOR = "label stored in the PACS", "samcorrect"
STANDING_FINALS = (LabelVersionRow.tag == TAG_FINAL, STANDS)
STATE = LabelVersionRow.info["pacs"]["state"].as_string()


class PublicationRecords(Records):
    """Reads and writes of publications. A submit enters a label as pending, so a killed server leaves it so."""

    def set_publication(self, label_version_id: int, state: str, reason: str = "") -> None:
        """Note what became of a label: `pending`, `stored`, or `refused` where sending it again would not help."""
        with self.session(writes=True) as session:
            row = session.get_one(LabelVersionRow, label_version_id)
            row.info = {**row.info, "pacs": {"state": state, "reason": reason}}
            if state == PACS_STORED:
                append_audit(session, EVENT_STORED, actor=ACTOR, image_id=row.image_id, label_version_id=row.id)

    def pending_publications(self) -> list[int]:
        """Numbers of the label versions that wait for the PACS, oldest first; a rejected one waits for nothing."""
        query = select(LabelVersionRow.id).where(*STANDING_FINALS, STATE == PACS_PENDING)
        with self.session() as session:
            return list(session.scalars(query.order_by(LabelVersionRow.id)))

    def count_publications(self) -> dict[str, int]:
        """State to the number of label versions in it that are not rejected."""
        with self.session() as session:
            return dict(Counter(session.scalars(select(STATE).where(*STANDING_FINALS, STATE.is_not(None)))))
