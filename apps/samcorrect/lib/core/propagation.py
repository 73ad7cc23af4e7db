"""From one slice of a volume to the next: boxes around the neighbour's mask, and when the structure has ended."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, label

from samcorrect.lib.core.boxes import box_of_mask, clip_boxes

# The box around a neighbouring slice's mask is widened by this share of its size, since structures grow and shrink.
NEIGHBOUR_MARGIN = 0.10
# A structure does not double or halve its area from one slice to the next; before its end it does, and is then small.
MAX_AREA_CHANGE = 2.0
# Below this share of the confidence in the slice that was prompted, the network sees no object any more.
MIN_CONFIDENCE_SHARE = 0.5
# Cells of the embedding around a structure that stand for what it is not.
RING_CELLS = 2


def neighbour_boxes(masks: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes for the next slice from the masks beside it.

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

    def resembles(self, start: "Looks") -> bool:
        """Whether the inside looks more like the structure than like its surroundings, both as they were at the start:
        by intensity where that told them apart there, else by the embedding.
        """
        contrast = start.grey_inside - start.grey_outside
        if contrast and abs(contrast) >= start.grey_sd:
            return (self.grey_inside - start.grey_outside) / contrast > 0.5
        return bool(self.inside @ start.inside > self.inside @ start.outside)


def looks_of(frame: np.ndarray, embedding: np.ndarray, mask: np.ndarray) -> Looks:
    """How what a mask marks looks.

    Args:
        frame: (H, W) intensities.
        embedding: (C, h, w) of the slice; h and w divide H and W.
        mask: (H, W) bool.

    Returns:
        The surroundings are the RING_CELLS cells of the embedding around the mask.
    """
    rows, columns = (side // cells for side, cells in zip(mask.shape, embedding.shape[1:], strict=True))
    share = mask.reshape(embedding.shape[1], rows, embedding.shape[2], columns).mean((1, 3))
    ring = binary_dilation(share > 0, iterations=RING_CELLS) & (share == 0)
    means = [(embedding * weight).sum((1, 2)) for weight in (share, ring)]
    inside, outside = (mean / max(float(np.linalg.norm(mean)), 1e-8) for mean in means)
    greys = [frame[mask], frame[np.kron(ring, np.ones((rows, columns), bool))]]
    grey_inside, grey_outside = (float(g.mean()) if g.size else float("nan") for g in greys)
    variances = [g.var() for g in greys if g.size]
    return Looks(inside, outside, grey_inside, grey_outside, float(np.sqrt(np.mean(variances))) if variances else 0.0)


def goes_on(area: int, previous_area: int, confidence_share: float, looks: Looks, start: Looks) -> bool:
    """Whether a mask that was carried over from the neighbouring slice still shows the structure.

    Args:
        area: Of the mask, in pixels.
        previous_area: Of the neighbour's, above 0.
        confidence_share: SAM's confidence as a share of that in the prompted slice.
        looks: Of the mask.
        start: Of the mask in the slice that was prompted.

    Returns:
        True where its area, its confidence and its looks say so.
    """
    is_steady = previous_area / MAX_AREA_CHANGE <= area <= previous_area * MAX_AREA_CHANGE
    return is_steady and confidence_share >= MIN_CONFIDENCE_SHARE and looks.resembles(start)
