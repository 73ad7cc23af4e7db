"""Which mask should replace a label that is judged low: candidates, a judge, and the rule that accepts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from samcorrect.lib.core.quality import agreement, edge_contrast, peer_surface_dice

# arXiv 2308.00883, authors' code: dropout passes, and the uncertainty above which the old label stays.
HUANG_PASSES = 5
HUANG_MAX_UNCERTAINTY = 0.2
# The judge must gain more than its own noise: below this the old label stays.
MIN_GAIN = 0.01
# An accepted mask's area lies within the cohort's robust range, widened by this factor to either side.
AREA_SLACK = 1.5

# Students that learnt a fault which most labels share prefer masks with that fault; the image tells by its edges. What
# lies on them by this much less (of `core.quality.edge_contrast`) than the mask that is there does not replace it.
MAX_EDGE_LOSS = 0.1

KEEP = "old label"


@dataclass(frozen=True)
class Choice:
    """What the judge said: the name of the mask taken, its soft mask, and the judge's score before and after, in [0,
    1].
    """

    name: str
    soft: np.ndarray
    score_before: float
    score_after: float

    @property
    def is_changed(self) -> bool:
        """Whether another mask than the old label was taken."""
        return self.name != KEEP


def huang_correct(target: np.ndarray, prediction: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """Uncertainty-based self-correction of arXiv 2308.00883.

    The prediction replaces the label except where more than a fifth of the dropout passes differ from it; there the
    label stays. (The released code runs its passes with dropout off, so its uncertainty is always 0.)

    Args:
        target: (D, side, side) channel numbers of the old label.
        prediction: The same shape, of the deterministic network.
        passes: (T, D, side, side) of T passes with dropout on.

    Returns:
        (D, side, side) channel numbers.
    """
    uncertainty = (passes != prediction[None]).mean(0)
    return np.where(uncertainty > HUANG_MAX_UNCERTAINTY, target, prediction)


def signed_distance_blend(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A soft mask half way between the outlines of two masks, slice by slice.

    Args:
        mask: (D, side, side) bool.
        other: The same shape.

    Returns:
        (D, side, side) float32 in [0, 1], above 0.5 inside; where one of a slice's masks is empty, the other one.
    """
    blended = np.zeros(mask.shape, np.float32)
    for number, (one, two) in enumerate(zip(mask, other, strict=True)):
        if one.any() and two.any():
            distance = (_signed_distance(one) + _signed_distance(two)) / 2
            blended[number] = 1 / (1 + np.exp(-np.clip(distance, -20, 20)))
        else:
            blended[number] = one | two
    return blended


def judge_mask(mask: np.ndarray, judge: np.ndarray) -> float:
    """Agreement with the judge's mask: the mean of Dice and surface Dice, in [0, 1]; 1 where both are empty."""
    return (agreement(mask, judge) + peer_surface_dice(mask, judge)) / 2


def plausible_areas(areas: np.ndarray) -> tuple[float, float]:
    """The range of areas that the trusted labels of a structure span, widened by AREA_SLACK; (0, inf) without any."""
    positive = areas[areas > 0]
    if len(positive) < 3:
        return 0.0, float("inf")
    low, high = np.percentile(positive, [1, 99])
    return float(low / AREA_SLACK), float(high * AREA_SLACK)


def loses_edges(old: np.ndarray, new: np.ndarray, frames: np.ndarray) -> bool:
    """Whether a mask lies on edges of the image by more than MAX_EDGE_LOSS less than another; not where either has no
    outline. Shapes are those of `core.quality.edge_contrast`.
    """
    return edge_contrast(new, frames) < edge_contrast(old, frames) - MAX_EDGE_LOSS


def choose_correction(
    old: np.ndarray,
    candidates: Mapping[str, np.ndarray],
    judge: np.ndarray,
    *,
    area_range: tuple[float, float],
    frames: np.ndarray,
) -> Choice:
    """Let the judge pick among the old label and soft candidates.

    Args:
        old: (D, side, side) bool, the label.
        candidates: Name to (D, side, side) soft mask in [0, 1].
        judge: (D, side, side) bool, the mask of a model that made none of the candidates.
        area_range: Candidates with another area (in frame pixels) are passed over.
        frames: (D, h, w) intensities, as in `core.quality.edge_contrast`; candidates that lie on edges less than the
            label (`loses_edges`) are passed over.

    Returns:
        The best candidate if the judge's score rises by more than MIN_GAIN, else the old label.
    """
    before = judge_mask(old, judge)
    best = Choice(KEEP, old.astype(np.float32), before, before)
    for name, soft in candidates.items():
        mask = soft > 0.5
        if not area_range[0] <= mask.sum() <= area_range[1]:
            continue
        score = judge_mask(mask, judge)
        if score > max(before + MIN_GAIN, best.score_after) and not loses_edges(old, mask, frames):
            best = Choice(name, soft, before, score)
    return best


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    if mask.all():
        # No outline to measure from: scipy would give distances to a point outside the array.
        return np.full(mask.shape, float(max(mask.shape)))
    return distance_transform_edt(mask) - distance_transform_edt(~mask)
