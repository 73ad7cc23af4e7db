"""Boxes: (2, 2) or (3, 2) arrays of half-open [start, stop) in voxels along the array axes."""

from collections.abc import Sequence

import numpy as np

# Voxels up to this ratio of their sides look alike in slices along all axes.
MAX_VOXEL_RATIO = 2.0


def candidate_boxes(
    box_hw: np.ndarray, shape_hw: tuple[int, int], *, n_candidates: int, rng: np.random.Generator
) -> np.ndarray:
    """Prompts around a rough box: the box itself, scaled boxes, then boxes with independently moved sides.

    Half of the jittered boxes move each side by a normal deviate of 5% of the box's length on that axis, half by 10%.

    Args:
        box_hw: (2, 2) box in the slice.
        shape_hw: Size of the slice; boxes are clipped to it.
        n_candidates: At least 1; the first is the box itself.
        rng: Source of the jitter.

    Returns:
        (n_candidates, 4) float64 of [start0, start1, stop0, stop1], each at least one voxel wide.
    """
    size = box_hw[:, 1] - box_hw[:, 0]
    flat = np.concatenate([box_hw[:, 0], box_hw[:, 1]])
    outward = np.concatenate([-size, size])
    boxes = [flat + share * outward for share in (0.0, 0.05, 0.10, 0.20, -0.05)]
    n_jittered = max(0, n_candidates - len(boxes))
    for number in range(n_jittered):
        deviation = 0.05 if number % 2 == 0 else 0.10
        boxes.append(flat + rng.normal(0.0, deviation, 4) * np.concatenate([size, size]))
    return clip_boxes(np.array(boxes[:n_candidates]), shape_hw)


def slice_axis(size_mm: Sequence[float], spacing_mm: Sequence[float]) -> int:
    """Along which axis of a volume to cut slices, so that a box around a structure fits it in each of them.

    A box touches its structure on every side, a slice through it need not: of one that runs obliquely each shows a
    part, the smaller the longer the box is across the slices. So the box is short across them.

    Args:
        size_mm: Of the box along the array axes.
        spacing_mm: Of the volume. Where its voxels are longer than MAX_VOXEL_RATIO times their width, only the slices
            that were acquired show anything. They lie across the axis along which voxels are that much longer than
            along both others, as in a sagittal volume that was stored in another order; else along the last one.

    Returns:
        0, 1 or 2; the last of equals.
    """
    finest, second, thickest = sorted(range(3), key=lambda axis: spacing_mm[axis])
    if spacing_mm[thickest] > MAX_VOXEL_RATIO * spacing_mm[second]:
        return thickest
    if spacing_mm[thickest] > MAX_VOXEL_RATIO * spacing_mm[finest]:
        return 2
    return max(range(3), key=lambda axis: (-size_mm[axis], axis))


def looks_alike_along_all_axes(spacing_mm: Sequence[float]) -> bool:
    """Whether slices of a volume show as much along any axis: none of its voxels' sides is too long for that."""
    return max(spacing_mm) <= MAX_VOXEL_RATIO * min(spacing_mm)


def clip_boxes(boxes: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Clip (N, 4) boxes to a slice and keep each at least one voxel wide."""
    limits = np.array([*shape_hw, *shape_hw], dtype=np.float64)
    clipped = np.clip(boxes, 0, limits)
    clipped[:, :2] = np.minimum(clipped[:, :2], limits[:2] - 1)
    clipped[:, 2:] = np.maximum(clipped[:, 2:], clipped[:, :2] + 1)
    return clipped


def box_of_mask(mask: np.ndarray) -> np.ndarray | None:
    """The tight box of a mask of any dimension, (n, 2) half-open; None where it is empty."""
    if not mask.any():
        return None
    spans = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        spans.append([filled[0], filled[-1] + 1])
    return np.array(spans, dtype=np.float64)
