"""Public models `sam` and `sam_prompt`: masks from the protocol's prompts, and from a viewer's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from samcorrect.lib.infers.base import MaskTask, Segmented
from samcorrect.lib.infers.request import InferRequest, parse_prompt_request
from samcorrect.lib.loop.prompted import segment_prompts
from samcorrect.lib.loop.pseudo_label import pseudo_label_image
from samcorrect.lib.loop.warming import warm_beside
from samcorrect.lib.loop.workspace import Workspace
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
            info=made.info,
        )


class SamPromptTask(MaskTask):
    """The mask of one structure from the box and points that a person sets in a viewer."""

    infer_type = InferType.DEEPGROW
    dimension_shown = 2
    text = "SAM with your own box or points: one structure, in one slice or in all slices of a 3D box"

    def segment(self, infer_request: InferRequest, volume: Volume, request: Mapping[str, Any]) -> Segmented:
        """Segment what is marked; the mask has the value 1, as viewers expect of an interactive model."""
        prompts = parse_prompt_request(request, volume.array.shape)
        mask = segment_prompts(
            self.workspace,
            volume,
            slice_index=prompts.slice_index,
            box_vox=prompts.box_vox,
            foreground=list(prompts.foreground),
            background=list(prompts.background),
        )
        warm_beside(self.workspace, infer_request.image_path, prompts.clicked_slice)
        return Segmented(label_map=mask.view(np.uint8), names={1: prompts.label}, params={"label": prompts.label})


def _image_name(workspace: Workspace, infer_request: InferRequest) -> str:
    """What a boxes file calls the image: its path below the studies, or the name of its file in an upload session."""
    image_id = infer_request.image_id
    return infer_request.image_path.name if image_id is None else workspace.store.ledger.image(image_id).path
