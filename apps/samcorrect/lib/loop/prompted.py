"""A mask from the boxes and points of a viewer."""

from collections.abc import Sequence

import numpy as np

from samcorrect.lib.core.boxes import clip_boxes
from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.pseudo_label import masks_to_grid
from samcorrect.lib.loop.warming import slice_embedding
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.volumes import Volume
from samcorrect.lib.transforms.frame import boxes_to_frame

# LiteMedSAM was trained with boxes: where only points are given, a box of this share of the slice around them goes with
# them.
POINT_BOX_SHARE = 0.15


def segment_prompts(
    workspace: Workspace,
    volume: Volume,
    *,
    slice_index: int | None,
    box_vox: np.ndarray | None,
    foreground: Sequence[tuple[int, int, int]],
    background: Sequence[tuple[int, int, int]],
) -> np.ndarray:
    """Segment what a box and points in one slice, or a 3D box, mark.

    Args:
        workspace: For SAM and its embeddings; needs no protocol.
        volume: The image.
        slice_index: Slice of the prompts; where None, the slices of the box, or that of the last point.
        box_vox: (3, 2) half-open box along the array axes.
        foreground: Voxel indices of points inside the object.
        background: Voxel indices of points outside it.

    Returns:
        (H, W, D) bool; empty in all slices that were not prompted.

    Raises:
        RequestError: No prompt at all, or one that lies outside the image.
    """
    shape = volume.array.shape
    slices = _prompted_slices(shape, slice_index, box_vox, foreground, background)
    # Slices side by side in memory, as a mask goes to a file: of 200 slices only what is marked is touched.
    mask = np.zeros(shape, bool, order="F")
    for number in slices:
        points = [(*p[:2], True) for p in foreground if p[2] == number] + [
            (*p[:2], False) for p in background if p[2] == number
        ]
        box = _slice_box(box_vox, points, shape[:2])
        scale = boxes_to_frame(np.ones((1, 4)), shape[:2], workspace.sam.side_px)[0, :2]
        at = [((p[0] + 0.5) * float(scale[0]), (p[1] + 0.5) * float(scale[1]), p[2]) for p in points]
        embedding = slice_embedding(workspace, volume, number)
        logits, _ = workspace.sam.decode(
            embedding, boxes=boxes_to_frame(box[None], shape[:2], workspace.sam.side_px), points=at
        )
        mask[..., number] = masks_to_grid((logits > 0).numpy(), shape[:2])[..., 0] > 0.5
    return mask


def _prompted_slices(
    shape: tuple[int, int, int],
    slice_index: int | None,
    box_vox: np.ndarray | None,
    foreground: Sequence[tuple[int, int, int]],
    background: Sequence[tuple[int, int, int]],
) -> list[int]:
    if box_vox is None and not foreground:
        raise RequestError("no prompt: give a box (`roi`) or at least one `foreground` point")
    for point in (*foreground, *background):
        if not all(0 <= p < s for p, s in zip(point, shape, strict=True)):
            raise RequestError(f"the point {list(point)} lies outside the image of {shape} voxels")
    if (
        box_vox is not None
        and ((box_vox[:, 1] <= 0) | (box_vox[:, 0] >= shape) | (box_vox[:, 1] <= box_vox[:, 0])).any()
    ):
        raise RequestError(f"the box {box_vox.tolist()} lies outside the image of {shape} voxels")
    if slice_index is not None:
        if not 0 <= slice_index < shape[2]:
            raise RequestError(f"`slice` is {slice_index}; the image has the slices 0 to {shape[2] - 1}")
        if box_vox is None and all(p[2] != slice_index for p in foreground):
            raise RequestError(f"no `foreground` point lies in slice {slice_index}; set one there or give a box")
        return [slice_index]
    if box_vox is not None:
        return list(range(max(0, int(box_vox[2, 0])), min(shape[2], int(np.ceil(box_vox[2, 1])))))
    return [foreground[-1][2]]


def _slice_box(
    box_vox: np.ndarray | None, points: list[tuple[int, int, bool]], shape_hw: tuple[int, int]
) -> np.ndarray:
    if box_vox is not None:
        return clip_boxes(np.concatenate([box_vox[:2, 0], box_vox[:2, 1]])[None].astype(np.float64), shape_hw)[0]
    inside = np.array([p[:2] for p in points if p[2]], dtype=np.float64)
    margin = POINT_BOX_SHARE * max(shape_hw) / 2
    grown = np.concatenate([inside.min(0) - margin, inside.max(0) + margin])
    return clip_boxes(grown[None], shape_hw)[0]
