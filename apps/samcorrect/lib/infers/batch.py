"""Batch inference: pseudo-labels for many images, in a background process of the host."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from samcorrect.lib.errors import RequestError, UnknownModelError
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.workspace import Workspace, log_progress
from samcorrect.lib.store.schema import TAG_ORIGINAL

BATCH_MODEL = "sam"


def check_batch_request(request: Mapping[str, Any]) -> None:
    """Check what a client asks of batch inference.

    Raises:
        UnknownModelError: Another model than `sam`.
        RequestError: Labels would be saved under another tag than `original`.
    """
    if request.get("model") != BATCH_MODEL:
        raise UnknownModelError(
            f"batch inference makes pseudo-labels with {BATCH_MODEL!r}; got {str(request.get('model'))[:80]!r}. "
            "POST /scoring/self_correction corrects all labels"
        )
    tag = request.get("label_tag") or TAG_ORIGINAL
    if tag != TAG_ORIGINAL:
        raise RequestError(
            f"batch inference saves labels with the tag {TAG_ORIGINAL!r}; got {str(tag)[:40]!r}. `final` is a person's"
        )
    size = request.get("max_batch_size") or 0
    if not isinstance(size, int) or size < 0:
        raise RequestError(f"`max_batch_size` is a number of images, 0 for all; got {size!r:.40}")


class PseudoLabelBatch(BatchInferTask):
    """Pseudo-labels through the store: needs no GPU, keeps every finished image, quarantines a bad one."""

    def __init__(self, workspace: Workspace):
        """Label the images of `workspace`."""
        self._workspace = workspace

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Any) -> dict[str, Any]:
        """Label the images that the request names: `images` is all, labeled, unlabeled or a list of ids.

        Returns:
            What `pseudo_label_store` counts.
        """
        check_batch_request(request)
        image_ids = sorted(self.get_images(request, datastore))
        size = request.get("max_batch_size") or len(image_ids)
        asked = image_ids[:size]
        # Only a pass over all images learns what the cohort looks like.
        is_everything = asked == sorted(datastore.list_images())
        return pseudo_label_store(self._workspace, image_ids=None if is_everything else asked, progress=log_progress)
