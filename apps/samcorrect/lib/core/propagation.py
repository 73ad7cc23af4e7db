"""From one slice of a volume to the next: how it moves, boxes around the neighbour's mask, where a structure ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, label, map_coordinates, zoom
from scipy.special import expit, logit
from skimage.registration import optical_flow_tvl1

from samcorrect.lib.core.boxes import box_of_mask, clip_boxes

# The box around a neighbouring slice's mask is widened by this share of its size, since structures grow and shrink.
NEIGHBOUR_MARGIN = 0.10
# Motion is estimated on frames of this many cells a side, the embedding's: the smooth part of it is what counts.
MOTION_CELLS = 64
# A structure does not double or halve its area from one slice to the next; before its end it does, and is then small.
MAX_AREA_CHANGE = 2.0
# Below this share of the confidence in the slice that was prompted, the network sees no object any more.
MIN_CONFIDENCE_SHARE = 0.5
# SAM and the mask that was carried along together are never surer than this, so that their logits are finite.
MAX_PROBABILITY = 0.9999
# Cells of the embedding around a structure that stand for what it is not.
RING_CELLS = 2


def neighbour_boxes(masks: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes for the next slice from the masks that were carried to it.

    Args:
        masks: (K, side, side) bool.
        limits: (K, 4), no box leaves its own.

    Returns:
        (K, 4) float64 and (K,) bool, whether there is a mask and so a box.
    """
    boxes, is_prompted = limits.astype(np.float64), masks.any((1, 2))
    for number in np.flatnonzero(is_prompted):
        box = box_of_mask(masks[number])
        margin = NEIGHBOUR_MARGIN * (box[:, 1] - box[:, 0])
        low, high = box[:, 0] - margin, box[:, 1] + margin
        boxes[number] = [*np.maximum(low, limits[number, :2]), *np.minimum(high, limits[number, 2:])]
    return clip_boxes(boxes, masks.shape[1:]), is_prompted


def slice_step_px(shape_hwd: tuple[int, int, int], spacing_mm: Sequence[float], content_hw: tuple[int, int]) -> float:
    """The distance between two slices in pixels of a mask whose `content_hw` rows and columns a slice fills."""
    return max(c * spacing_mm[2] / (n * mm) for c, n, mm in zip(content_hw, shape_hwd[:2], spacing_mm[:2], strict=True))


def motion_between(frame: np.ndarray, next_frame: np.ndarray) -> np.ndarray:
    """Where each pixel of a slice was in the slice beside it.

    Zach, Pock & Bischof 2007 (TV-L1 optical flow), by scikit-image with its own constants.

    Args:
        frame: (side, side) intensities of the slice beside it, in [0, 1].
        next_frame: Likewise of the slice; `side` is at most MOTION_CELLS or divides by it.

    Returns:
        (2, cells, cells) float32, rows and columns to add, as shares of the side.
    """
    cells = min(MOTION_CELLS, len(frame))
    coarse, coarse_next = (block_means(f, (cells, cells)) for f in (frame, next_frame))
    return optical_flow_tvl1(coarse_next, coarse) / cells


def block_means(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The means of (H, W) values in as many blocks of one size as `shape` says; it divides H and W."""
    return values.reshape(shape[0], -1, shape[1], values.shape[1] // shape[1]).mean((1, 3))


def moved_masks(masks: np.ndarray, motion: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Masks as the motion between two slices carries them, by how deep each pixel lies within.

    Args:
        masks: (K, side, side) bool.
        motion: From `motion_between`.
        limits: (K, 4), no mask leaves its own.

    Returns:
        (K, side, side) float64, the distance to the edge in pixels: positive inside, negative outside; of an empty mask
        -inf.
    """
    side = masks.shape[-1]
    where = np.indices((side, side)) + side * zoom(motion, (1, side / motion.shape[1], side / motion.shape[2]), order=1)
    depths = np.full(masks.shape, -np.inf)
    for number in np.flatnonzero(masks.any((1, 2))):
        mask, outside = masks[number], np.ones((side, side), bool)
        start0, start1, stop0, stop1 = np.rint(limits[number]).astype(int)
        outside[start0:stop0, start1:stop1] = False
        depth = distance_transform_edt(mask) - distance_transform_edt(~mask)
        moved = map_coordinates(depth, where, order=1, mode="nearest")
        depths[number] = np.where(outside, np.minimum(moved, -1.0), moved)
    return depths


def blended_logits(logits: np.ndarray, depth: np.ndarray, step_px: float) -> np.ndarray:
    """The mean of what SAM says of each pixel and of what the mask that was carried here does, whose edge may lie a
    slice step off.

    SAM alone errs from slice to slice, the carried mask alone drifts; they err differently.

    Args:
        logits: (..., H, W) of SAM.
        depth: (..., H, W) of the carried masks, from `moved_masks`; finite.
        step_px: From `slice_step_px`.

    Returns:
        (..., H, W) float32 logits of the mean of both probabilities.
    """
    mean = (expit(logits) + expit(depth / step_px)) / 2
    return logit(np.clip(mean, 1 - MAX_PROBABILITY, MAX_PROBABILITY)).astype(np.float32)


def held_mask(mask: np.ndarray, depth: np.ndarray, step_px: float) -> np.ndarray:
    """What a new mask (H, W) says within one slice step of the edge of the mask that was carried here.

    A surface that is no flatter than 45 degrees to the slices moves its outline by no more than the step between them.

    Args:
        mask: (H, W) bool.
        depth: (H, W) of the carried mask, from `moved_masks`.
        step_px: From `slice_step_px`.

    Returns:
        (H, W) bool, the parts that lie over the carried mask; empty where the new mask does not.
    """
    if not mask[depth > 0].any():
        return np.zeros_like(mask)
    return touching_parts((mask | (depth > step_px)) & (depth > -step_px), depth > 0)


def touching_parts(mask: np.ndarray, neighbour: np.ndarray) -> np.ndarray:
    """The connected parts of a mask (H, W) that lie over the neighbouring slice's mask (H, W)."""
    parts, _ = label(mask)
    return np.isin(parts, np.setdiff1d(np.unique(parts[neighbour]), [0]))


@dataclass(frozen=True)
class Looks:
    """How a structure and its surroundings look in a slice.

    Attributes:
        inside, outside: (C,) mean embedding of each, of length 1; 0 where there is no cell.
        grey_inside, grey_outside: Mean intensity of each; nan where there is no pixel.
        grey_sd: Standard deviation of the intensity within both.
    """

    inside: np.ndarray
    outside: np.ndarray
    grey_inside: float
    grey_outside: float
    grey_sd: float

    def resembles(self, start: "Looks", previous: "Looks") -> bool:
        """Whether the inside looks more like the structure than like its surroundings: by intensity as it was at the
        start where that told them apart there, else by what sets both apart in the embedding of the slice before. An
        intensity means the same in all slices; an embedding changes with all that lies around.
        """
        contrast = start.grey_inside - start.grey_outside
        if contrast and abs(contrast) >= start.grey_sd:
            return (self.grey_inside - start.grey_outside) / contrast > 0.5
        # Inside with inside and outside with outside against the two crossed: what the whole slice changes cancels out.
        return bool((self.inside - self.outside) @ (previous.inside - previous.outside) > 0)


def looks_of(frame: np.ndarray, embedding: np.ndarray, mask: np.ndarray) -> Looks:
    """How what a mask marks looks.

    Args:
        frame: (H', W') intensities; H and W divide H' and W'.
        embedding: (C, h, w) of the slice; h and w divide H and W.
        mask: (H, W) bool.

    Returns:
        The surroundings are the RING_CELLS cells of the embedding around the mask.
    """
    rows, columns = (side // cells for side, cells in zip(mask.shape, embedding.shape[1:], strict=True))
    frame, share = block_means(frame, mask.shape), block_means(mask, embedding.shape[1:])
    ring = binary_dilation(share > 0, iterations=RING_CELLS) & (share == 0)
    means = [(embedding * weight).sum((1, 2)) for weight in (share, ring)]
    inside, outside = (mean / max(float(np.linalg.norm(mean)), 1e-8) for mean in means)
    greys = [frame[mask], frame[np.kron(ring, np.ones((rows, columns), bool))]]
    grey_inside, grey_outside = (float(g.mean()) if g.size else float("nan") for g in greys)
    variances = [g.var() for g in greys if g.size]
    return Looks(inside, outside, grey_inside, grey_outside, float(np.sqrt(np.mean(variances))) if variances else 0.0)


def goes_on(
    area: int, previous_area: int, confidence_share: float, looks: Looks, start: Looks, previous: Looks
) -> bool:
    """Whether a mask that was carried over from the neighbouring slice still shows the structure.

    Args:
        area: Of the mask, in pixels.
        previous_area: Of the neighbour's, above 0.
        confidence_share: SAM's confidence as a share of that in the prompted slice.
        looks: Of the mask.
        start: Of the mask in the slice that was prompted.
        previous: Of the neighbour's.

    Returns:
        True where its area, its confidence and its looks say so.
    """
    is_steady = previous_area / MAX_AREA_CHANGE <= area <= previous_area * MAX_AREA_CHANGE
    return is_steady and confidence_share >= MIN_CONFIDENCE_SHARE and looks.resembles(start, previous)
