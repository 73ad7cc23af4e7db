"""Choosing one mask among those of many prompts, and putting the structures of an image together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samcorrect.lib.core.quality import MAD_TO_SD, agreement, candidate_likelihoods

# A mask whose log area or centre lies further than this from the cohort (in robust deviations) is of another object.
MAX_COHORT_Z = 3.5
MIN_COHORT = 8


@dataclass(frozen=True)
class CohortShape:
    """What is usual of a structure.

    Attributes:
        center, spread: Robust location and spread of (log area, centre 0, centre 1) over a cohort's masks, all relative
            to the slice.
        believes_confidence: Whether SAM's confidence tells good masks from bad ones there.
    """

    center: np.ndarray
    spread: np.ndarray
    believes_confidence: bool = True


def mask_shapes(masks: np.ndarray) -> np.ndarray:
    """Log area and in-slice centre of masks, over all slices of an image.

    Args:
        masks: (..., D, side, side) bool.

    Returns:
        (..., 3): log of the share of the voxels, centre along both slice axes in [0, 1]; nan where a mask is empty.
    """
    side0, side1 = masks.shape[-2:]
    areas = masks.sum((-3, -2, -1)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        center0 = (masks.sum((-3, -1)) * (np.arange(side0) + 0.5)).sum(-1) / areas / side0
        center1 = (masks.sum((-3, -2)) * (np.arange(side1) + 0.5)).sum(-1) / areas / side1
        shapes = np.stack([np.log(areas / np.prod(masks.shape[-3:])), center0, center1], -1)
    shapes[areas == 0] = np.nan
    return shapes


def cohort_shape(shapes: np.ndarray, confidence_agreements: np.ndarray) -> CohortShape | None:
    """What is usual of a structure.

    Where an object is small or faint SAM can be surest of a mask that fills the box, whatever is in it. Nothing in one
    image tells that, but its other prompts give other masks then: over a cohort, confidence that does not go along with
    their agreement is not believed.

    Args:
        shapes: (N, 3), one mask of each image.
        confidence_agreements: (N,) `core.quality.confidence_agreement` of each image, nan where not defined.

    Returns:
        None below MIN_COHORT defined shapes.
    """
    defined = shapes[np.isfinite(shapes).all(1)]
    if len(defined) < MIN_COHORT:
        return None
    center = np.median(defined, 0)
    spread = MAD_TO_SD * np.median(np.abs(defined - center), 0)
    return CohortShape(center, spread, is_confidence_believed(confidence_agreements))


def is_confidence_believed(confidence_agreements: np.ndarray) -> bool:
    """Whether (N,) `core.quality.confidence_agreement` of a cohort are above 0 in the median; nan are passed over."""
    known = confidence_agreements[np.isfinite(confidence_agreements)]
    return not len(known) or bool(np.median(known) > 0)


def choose_candidate(
    confidences: np.ndarray, shapes: np.ndarray, overlaps: np.ndarray, cohort: CohortShape | None
) -> int:
    """The candidate to take: of those that look like the cohort the one with the highest Dice to be expected if the
    truth is one of them, or the box as given where confidence is not believed.

    How likely each is tells `core.quality.candidate_likelihoods`. So one of which SAM is far surer than of the others
    is taken, and of many that it is about as sure of, the one in their middle.

    Args:
        confidences: (K,) predicted IoU times stability, in [0, 1].
        shapes: (K, 3) from `mask_shapes`; number 0 is of the box as given.
        overlaps: (K, K) from `core.quality.pairwise_dice`.
        cohort: What the structure looks like elsewhere, or None on the first pass.

    Returns:
        Index in [0, K). Where no candidate looks like the cohort, the one nearest to it; where all are empty, 0.
    """
    is_likely = np.isfinite(shapes).all(1)
    if not is_likely.any() or (cohort is not None and not cohort.believes_confidence and is_likely[0]):
        return 0
    if cohort is not None:
        z = np.abs(shapes - cohort.center) / np.maximum(cohort.spread, 1e-6)
        furthest = np.where(is_likely, z.max(1), np.inf)
        if not (furthest <= MAX_COHORT_Z).any():
            return int(np.argmin(furthest))
        is_likely = furthest <= MAX_COHORT_Z
    likelihoods = np.zeros(len(confidences))
    likelihoods[is_likely] = candidate_likelihoods(confidences[is_likely])
    return int(np.argmax(np.where(is_likely, overlaps @ likelihoods, -np.inf)))


def choose_by_peer(masks: np.ndarray, peer: np.ndarray) -> int:
    """The candidate to take once students know the structure: the one with the highest Dice with their mask.

    SAM's confidence has no say here, so that the choice is evidence of its own. Nor have outlines: students know less
    well than SAM where exactly those lie.

    Args:
        masks: (K, D, side, side) bool.
        peer: (D, side, side) bool, from a student that never saw the image.

    Returns:
        Index in [0, K); the first of equals.
    """
    return int(np.argmax([agreement(mask, peer) for mask in masks]))


def smaller_first(masks: Sequence[np.ndarray]) -> list[int]:
    """The numbers of structures in the order in which they win of equal claims: the smaller of their bool masks first,
    of masks of one size the first.
    """
    return sorted(range(len(masks)), key=lambda k: np.count_nonzero(masks[k]))


def merge_structures(soft: Sequence[np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """One label map of soft or bool masks: the strongest structure wins where it is above 0.5.

    Of equal claims, as all are of bool masks, the first by `smaller_first` wins: a structure inside another stays, in
    whichever order they come.

    Args:
        soft: K masks (H, W, D) in [0, 1]; a mask is as large as it has voxels above 0.5.
        indices: Label index of each structure.

    Returns:
        (H, W, D) uint8.
    """
    label_map = np.zeros_like(soft[0], np.uint8)
    strongest = np.zeros_like(soft[0], np.float32)
    for k in reversed(smaller_first([of_structure > 0.5 for of_structure in soft])):
        wins = (soft[k] > 0.5) & (soft[k] >= strongest)
        np.copyto(label_map, np.uint8(indices[k]), where=wins)
        np.copyto(strongest, soft[k], where=wins)
    return label_map
