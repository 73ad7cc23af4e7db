"""Public models `best_label` and `corrected_label`: the label in the store, and what self-correction made of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from samcorrect.lib.errors import UnknownLabelError
from samcorrect.lib.infers.base import MaskTask, Segmented
from samcorrect.lib.infers.request import InferRequest, require_stored
from samcorrect.lib.loop.corrected_labels import correct_image
from samcorrect.lib.store.label_names import name_indices
from samcorrect.lib.store.volumes import Volume


class BestLabelTask(MaskTask):
    """The best stored label, at once: final over corrected over original; a rejected one, to repair it, before none."""

    text = "The best stored label of the image, with its score: nothing is computed"

    def segment(self, infer_request: InferRequest, volume: Volume, request: Mapping[str, Any]) -> Segmented:
        """Read the label. Raises UnknownLabelError where there is none."""
        store = self.workspace.store
        image_id = require_stored(infer_request)
        row = store.ledger.best_label(image_id, with_rejected=True)
        if row is None:
            raise UnknownLabelError(f"{image_id} has no label yet; infer with the model sam makes one")
        names = name_indices(row.info["present_indices"], self.workspace.protocol, row.info.get("label_info", ()))
        quality = store.ledger.quality(row.id).get(0)
        params: dict[str, Any] = {"label_tag": row.tag, "maker": row.maker, "state": row.state}
        if quality is not None:
            params |= {"score": quality.score, "expected_dice": quality.expected_dice, "reasons": quality.reasons}
        return Segmented(label_map=store.read_label(row, volume), names={i: n for n, i in names.items()}, params=params)


class CorrectedLabelTask(MaskTask):
    """The label as self-correction changed it."""

    text = "The label as self-correction changed it, what changed and why"

    def segment(self, infer_request: InferRequest, volume: Volume, request: Mapping[str, Any]) -> Segmented:
        """Read the correction. Raises UnknownLabelError where the label was not corrected."""
        made = correct_image(self.workspace, require_stored(infer_request))
        params = {
            "reasons": made.reasons,
            "score_before": made.score_before,
            "score_after": made.score_after,
            "changes": summarise_changes(made.change_map),
        }
        return Segmented(label_map=made.label_map, params=params)


def summarise_changes(change_map: np.ndarray) -> dict[str, Any]:
    """The change map as JSON: how much changed, where, and which voxels.

    Args:
        change_map: (H, W, D) uint8; anything but 0 is a change.

    Returns:
        `n_voxels`; `box` as [[x0, x1], [y0, y1], [z0, z1]], half-open, in voxels, None where nothing changed; `shape`;
        and `runs`, the changed voxels as [start, length] in the flattened array (z fastest, then y).
    """
    where = np.argwhere(change_map)
    box = (
        [[int(low), int(high) + 1] for low, high in zip(where.min(0), where.max(0), strict=True)]
        if len(where)
        else None
    )
    edges = np.diff(np.concatenate([[0], (change_map != 0).astype(np.int8).ravel(), [0]]))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    runs = np.stack([starts, stops - starts], 1).tolist()
    return {"n_voxels": len(where), "box": box, "shape": list(change_map.shape), "runs": runs}
