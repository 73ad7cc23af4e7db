"""Public models `sam`, `sam_prompt` and `sam_volume`: masks from the protocol's prompts, and from a viewer's."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from samcorrect.lib.core.pseudo_label import merge_structures
from samcorrect.lib.errors import RequestError, UnknownLabelError
from samcorrect.lib.infers.base import MaskTask, Segmented
from samcorrect.lib.infers.request import InferRequest, parse_prompt_request, require_stored
from samcorrect.lib.loop.prompted import segment_prompts
from samcorrect.lib.loop.pseudo_label import pseudo_label_image
from samcorrect.lib.loop.warming import warm_beside
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.files import image_sha256
from samcorrect.lib.store.label_names import name_indices
from samcorrect.lib.store.schema import TAG_ORIGINAL
from samcorrect.lib.store.volumes import Volume


class SamTask(MaskTask):
    """The pseudo-label of an image from the protocol's prompts."""

    text = "SAM with the prompts of the protocol: the pseudo-label before any correction"
    saved_tag = TAG_ORIGINAL

    def segment(self, infer_request: InferRequest, volume: Volume, request: Mapping[str, Any]) -> Segmented:
        """Choose among SAM's candidates of every structure."""
        made = pseudo_label_image(self.workspace, volume, _image_name(self.workspace, infer_request))
        sam = self.workspace.sam
        return Segmented(
            label_map=made.label_map,
            params={"prompts": made.prompts},
            maker=f"sam:{sam.name}",
            model_digest=sam.digest,
            runtime=sam.runtime,
            prompts=made.prompts,
            info={**made.info, "image_sha256": image_sha256(infer_request.image_path)},
        )


class SamPromptTask(MaskTask):
    """The masks of structures from the boxes, points and earlier masks of a person in a viewer."""

    infer_type = InferType.DEEPGROW
    dimension_shown = 2
    text = "SAM with your own box or points: in one slice or in all slices of a 3D box"
    spreads: ClassVar[bool] = False

    def segment(self, infer_request: InferRequest, volume: Volume, request: Mapping[str, Any]) -> Segmented:
        """Segment what is marked. A single structure has the value 1, as viewers expect of an interactive model;
        several have 1, 2, ... in the order of the request, and a voxel of two is the smaller one's.
        """
        asked = parse_prompt_request(request, volume.array.shape, spreads=self.spreads)
        stored = self._stored(infer_request, volume) if asked.refines_stored else None
        masks = []
        for prompts in asked.structures:
            start = None if stored is None else self._mask_of(stored, prompts.label)
            masks.append(segment_prompts(self.workspace, volume, replace(prompts, start=start)))
        # 50 million voxels are not copied at a click.
        label_map = masks[0].view(np.uint8) if len(masks) == 1 else merge_structures(masks, range(1, len(masks) + 1))
        names = [prompts.label for prompts in asked.structures]
        warm_beside(self.workspace, infer_request.image_path, asked.structures[0])
        return Segmented(label_map=label_map, names=dict(enumerate(names, start=1)), params={"label": names[0]})

    def _stored(self, infer_request: InferRequest, volume: Volume) -> tuple[np.ndarray, Mapping[str, int]]:
        store = self.workspace.store
        row = store.ledger.best_label(require_stored(infer_request))
        if row is None:
            raise UnknownLabelError(f"{infer_request.image_id} has no label that `mask` could name; leave it out")
        names = name_indices(row.info["present_indices"], self.workspace.protocol, row.info.get("label_info", ()))
        return store.read_label(row, volume), names

    @staticmethod
    def _mask_of(stored: tuple[np.ndarray, Mapping[str, int]], name: str) -> np.ndarray:
        label_map, names = stored
        if name not in names:
            raise RequestError(f"`mask`: the stored label has no {name!r}; it has {', '.join(names) or 'nothing'}")
        return label_map == names[name]


class SamVolumeTask(SamPromptTask):
    """The same, carried from the slices that were prompted to all others."""

    dimension_shown = 3
    text = "SAM with your own box or points in any slices, carried through the volume"
    spreads = True


def _image_name(workspace: Workspace, infer_request: InferRequest) -> str:
    """What a boxes file calls the image: its path below the studies, or the name of its file in an upload session."""
    image_id = infer_request.image_id
    return infer_request.image_path.name if image_id is None else workspace.store.ledger.image(image_id).path
