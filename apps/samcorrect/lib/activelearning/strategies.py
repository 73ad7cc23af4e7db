"""Strategies `lowest_quality` and `random`: the image that a person gets next."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from samcorrect.lib.errors import ImageError
from samcorrect.lib.loop.queue import NextImage, next_image
from samcorrect.lib.loop.warming import warm_queue
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.files import image_sha256
from samcorrect.lib.store.image_ids import log_name
from samcorrect.lib.store.schema import IMAGE_STATUS_OK
from samcorrect.lib.store.volumes import suffix_of

logger = logging.getLogger(__name__)


class QueueStrategy(Strategy):
    """Serves the queue; an image is reserved for the client that got it."""

    strategy: ClassVar[str]
    text: ClassVar[str]

    def __init__(self, workspace: Workspace):
        """Serve the queue of `workspace`."""
        super().__init__(self.text)
        self.workspace = workspace

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The next image for the client: `id`, what the viewer shows of it, and why it was chosen.

        An image whose file cannot be read is quarantined with the reason, and the next one served.

        Returns:
            None where every image is approved or reserved for somebody else.
        """
        holder = str(request.get("client_id") or "unknown")[:200]
        store, served = self.workspace.store, None
        while served is None:
            chosen = next_image(self.workspace, holder, strategy=self.strategy)
            if chosen is None:
                return None
            try:
                path = store.image_path(store.ledger.image(chosen.image_id))
                # Without it Slicer takes a file of the same name that it downloaded once, from whatever server.
                served = f"SHA256:{image_sha256(path)}"
            except ImageError as error:
                self._set_aside(chosen.image_id, holder, error)
        warm_queue(self.workspace, chosen.image_id)
        return {
            "id": chosen.image_id,
            "name": display_name(path, chosen),
            "checksum": served,
            "score": chosen.score,
            "expected_dice": chosen.expected_dice,
            "expected_dice_interval": [chosen.expected_dice_low, chosen.expected_dice_high],
            "expected_dice_is_prior": chosen.is_prior,
            "reasons": chosen.reasons,
            "why": chosen.why,
        }

    def _set_aside(self, image_id: str, holder: str, error: ImageError) -> None:
        """Quarantine an image that cannot be served; one that is only gone comes back by itself, as with its disk."""
        store = self.workspace.store
        store.ledger.release(holder, image_id, now=time.time())
        store.rescan()
        if store.ledger.image(image_id).status == IMAGE_STATUS_OK:
            store.ledger.quarantine(image_id, str(error))
        logger.warning("image %s is set aside: %s", log_name(image_id), type(error).__name__)


class LowestQuality(QueueStrategy):
    """Worst label first."""

    strategy = "lowest_quality"
    text = "Worst label first, at random for the audit share; never an image that is approved or that somebody else has"


class Random(QueueStrategy):
    """Any image that waits."""

    strategy = "random"
    text = "An image at random; never one that is approved or that somebody else has"


def display_name(path: Path, chosen: NextImage) -> str:
    """The name that Slicer gives the volume and its downloaded file: with the score, and the suffix that it needs."""
    if chosen.score is None:
        return path.name
    suffix = suffix_of(path)
    return f"{path.name[: -len(suffix)]} (score {chosen.score:.2f}){path.name[-len(suffix) :]}"
