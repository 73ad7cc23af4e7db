"""Masks carried from slice to slice, by batch labelling and by the prompts of a viewer alike."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from samcorrect.lib.core.propagation import (
    Looks,
    blended_logits,
    goes_on,
    held_mask,
    looks_of,
    motion_between,
    moved_masks,
    neighbour_boxes,
    touching_parts,
)
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.networks.clicks import Marked
from samcorrect.lib.networks.sam import stability_scores

# The logit, or its negative, of what SAM says otherwise than the mask that was carried on.
BARELY = 1e-3
# So many slices in a row have to say that a structure has ended: SAM misses it now and then.
N_ENDING = 2
# Of a slice number and (K', 4) boxes of the prompts that are (K,) on, the logits (K', side, side) and predicted IoU.
Decode = Callable[[int, np.ndarray, np.ndarray], tuple[torch.Tensor, np.ndarray]]


@dataclass(frozen=True)
class CarriedMasks:
    """Masks of one slice that were prompted by those beside it.

    Attributes:
        slice_index: The slice.
        is_prompted: (K,) bool, whose mask was not empty.
        logits: (K', side, side) of those, the mean of what SAM and the masks beside it say.
        predicted_iou: (K',).
        masks: (K', side, side) bool, what they say where the motion between the slices leaves it open.
    """

    slice_index: int
    is_prompted: np.ndarray
    logits: torch.Tensor
    predicted_iou: np.ndarray
    masks: np.ndarray


def carry_masks(
    decode: Decode,
    frame: Callable[[int], torch.Tensor],
    masks: np.ndarray,
    slices: range,
    limits: np.ndarray,
    *,
    step_px: float,
) -> Iterator[CarriedMasks]:
    """Prompt slices one after the other, each with the masks before it moved as the image moves, until all are empty.

    A box alone does not follow a structure that runs obliquely: SAM takes what is most distinct in it, and each wrong
    mask makes the next box. So the masks go with the image, and SAM and they draw the edge of what came along.

    Args:
        decode: Asks SAM.
        frame: Function of a slice's number: (side, side) intensities in [0, 1].
        masks: (K, side, side) bool, of the slice before the first one.
        slices: In order.
        limits: (K, 4) boxes that no prompt leaves, in pixels of a mask.
        step_px: Distance between two slices in pixels of a mask.
    """
    for slice_index in slices:
        if not masks.any():
            return
        motion = motion_between(frame(slice_index - slices.step).numpy(), frame(slice_index).numpy())
        depths = moved_masks(masks, motion, limits)
        boxes, is_prompted = neighbour_boxes(depths > 0, limits)
        if not is_prompted.any():
            return
        of_sam, iou = decode(slice_index, boxes[is_prompted], is_prompted)
        depths = depths[is_prompted]
        logits = blended_logits(of_sam.numpy(), depths, step_px)
        masks = np.zeros_like(masks)
        masks[is_prompted] = [held_mask(m, d, step_px) for m, d in zip(logits > 0, depths, strict=True)]
        yield CarriedMasks(slice_index, is_prompted, torch.from_numpy(logits), iou, masks[is_prompted])


def spread_marks(
    slices: Slices, marks: Mapping[int, Marked], *, span: tuple[int, int], limits: np.ndarray
) -> dict[int, np.ndarray]:
    """Carry what is marked in some slices to those between and around them.

    Outwards a mask goes until `core.propagation.goes_on` says that the structure has ended. Between two marked slices
    it comes from both sides, and the logits count by how near their slice is; the structure is on both ends, so only an
    empty mask ends it there.

    Args:
        slices: Of the volume.
        marks: Slice to what is marked there; a marked slice keeps its mask whatever the others are.
        span: First slice and the one after the last that can be reached.
        limits: (4,) box that no prompt leaves, in pixels of a mask.

    Returns:
        Slice to (side, side) bool; slices that were not reached are missing.
    """
    numbers = sorted(marks)
    carried: dict[int, list[tuple[float, np.ndarray]]] = {}
    for place, number in enumerate(numbers):
        before = numbers[place - 1] if place else None
        after = numbers[place + 1] if place + 1 < len(numbers) else None
        up = range(number + 1, span[1] if after is None else after)
        down = range(number - 1, span[0] - 1 if before is None else before, -1)
        for on_the_way, ends in ((up, after is None), (down, before is None)):
            for slice_index, logits in _carry(slices, marks[number], number, on_the_way, limits, ends=ends):
                carried.setdefault(slice_index, []).append((1 / abs(slice_index - number), logits))
    masks = {number: marks[number].mask for number in numbers}
    for slice_index, found in carried.items():
        masks[slice_index] = sum(weight * logits for weight, logits in found) > 0
    return masks


def _carry(
    slices: Slices, marked: Marked, number: int, on_the_way: range, limits: np.ndarray, *, ends: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Slice and logits (side, side) of the mask that goes on; `ends` says whether the structure may end on the way."""
    if not on_the_way or not marked.mask.any():
        return

    def decode(slice_index: int, boxes: np.ndarray, _: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        return slices.sam.decode(slices.embedding(slice_index), boxes=boxes)

    def looks(slice_index: int, mask: np.ndarray) -> Looks:
        return looks_of(slices.frame(slice_index).numpy(), slices.embedding(slice_index).float().numpy(), mask)

    previous, doubtful = marked.mask, []
    start = seen = looks(number, marked.mask)
    carried = carry_masks(decode, slices.frame, marked.mask[None], on_the_way, limits[None], step_px=slices.step_px)
    for found in carried:
        logits, mask = found.logits[0].numpy(), found.masks[0]
        if not mask.any():
            return
        own = touching_parts(logits > 0, mask)
        share = float(found.predicted_iou[0] * stability_scores(found.logits)[0]) / max(marked.confidence, 1e-8)
        now = looks(found.slice_index, mask)
        doubtful.append((found.slice_index, np.where(mask, np.maximum(logits, BARELY), np.minimum(logits, -BARELY))))
        if not ends or goes_on(int(own.sum()), int(previous.sum()), share, now, start, seen):
            yield from doubtful
            doubtful = []
        elif len(doubtful) == N_ENDING:
            return
        previous, seen = mask, now
