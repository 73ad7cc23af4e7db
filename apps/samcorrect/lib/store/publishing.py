"""Labels that a person approved, from the ledger into the PACS as DICOM SEG. A machine's label never goes there.

A label is in the ledger first, marked as pending; whatever happens to the PACS or to this process, it goes there later.
"""

import logging
import time

from samcorrect.lib.errors import DependencyError, ImageError, LabelError, StoreError
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.dicom_seg import Origin, write_seg
from samcorrect.lib.store.dicomweb import DicomWebStudies
from samcorrect.lib.store.image_ids import log_name
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.schema import PACS_PENDING, PACS_REFUSED, PACS_STORED, TAG_FINAL, USER, LabelVersionRow

logger = logging.getLogger(__name__)

# What waited is sent along with a submit, whose sender waits for the reply.
RETRY_BUDGET_S = 10.0
REJECTED = "rejected"


class Publisher:
    """Sends approved labels to the PACS that their images come from."""

    def __init__(self, store: LabelStore, studies: DicomWebStudies, protocol: Protocol | None):
        """Publish for `store`; `protocol` names the structures.

        Args:
            store: The labels.
            studies: Where their images come from and their SEGs go to.
            protocol: None takes the names that the viewer submitted.
        """
        self._store, self._studies, self._protocol = store, studies, protocol
        self._failed_at_s: dict[int, float] = {}

    def publish(self, image_id: str) -> dict[str, str]:
        """Send the newest final label of an image that is not rejected, then what waits.

        Returns:
            `state` and `reason`, as the ledger has them; empty where there is no label to be published.
        """
        row = self._store.ledger.latest_label(image_id, TAG_FINAL)
        if row is None:
            return {}
        if row.info.get("pacs", {}).get("state") == PACS_PENDING:
            self.publish_pending(row.id)
        return self._store.ledger.label_version(row.id).info.get("pacs", {})

    def publish_pending(self, first: int | None = None) -> None:
        """Send what waits, label version `first` before the others, until the PACS fails or the time is up.

        The ledger says what waits: people approve by commands and on other servers too. What failed goes last, so that
        a label which the PACS never takes holds up no other one.
        """
        ends_at_s = time.monotonic() + RETRY_BUDGET_S
        waiting = self._store.ledger.pending_publications()
        for number in sorted(waiting, key=lambda number: (number != first, self._failed_at_s.get(number, 0.0))):
            is_done = self._publish(self._store.ledger.label_version(number))
            if not is_done:
                self._failed_at_s[number] = time.monotonic()
            if not is_done or time.monotonic() > ends_at_s:
                break

    def _publish(self, row: LabelVersionRow) -> bool:
        """Send one label and note what became of it; False where it has to wait."""
        state, reason = PACS_STORED, ""
        try:
            seg = write_seg(
                self._store.read_label(row),
                self._names(row),
                self._studies.headers(row.image_id),
                self._origin(row),
            )
            # Whoever rejected it meanwhile must not find it in the PACS.
            if self._store.ledger.label_version(row.id).is_rejected:
                raise LabelError(REJECTED)
            self._studies.store(seg)
        except (StoreError, DependencyError) as error:
            state, reason = PACS_PENDING, str(error)
        except (ImageError, LabelError) as error:
            state, reason = PACS_REFUSED, str(error)
        self._store.ledger.set_publication(row.id, state, reason)
        if state == PACS_STORED:
            logger.info("label %d of %s is in the PACS", row.id, log_name(row.image_id))
        else:
            # The reason is in the ledger: it can name the series.
            logger.warning("label %d of %s is not in the PACS: %s", row.id, log_name(row.image_id), state)
        return state != PACS_PENDING

    def _names(self, row: LabelVersionRow) -> dict[int, str]:
        """Index to name of all structures that the label could hold."""
        if self._protocol is not None:
            return dict(zip(self._protocol.indices, self._protocol.names, strict=True))
        submitted = {entry["idx"]: entry["name"] for entry in row.info.get("label_info", ()) if entry["idx"] > 0}
        return {index: f"label {index}" for index in row.info["present_indices"]} | submitted

    def _origin(self, row: LabelVersionRow) -> Origin:
        made_from = row
        while made_from.maker.startswith(USER) and made_from.parent_id is not None:
            made_from = self._store.ledger.label_version(made_from.parent_id)
        is_drawn = made_from.maker.startswith(USER)
        return Origin(
            user=row.maker.removeprefix(USER),
            key=f"{row.image_id}/{row.content_sha256}/{row.created_at}",
            algorithm="" if is_drawn else made_from.maker,
            algorithm_version="" if is_drawn else made_from.model_digest[:12],
        )
