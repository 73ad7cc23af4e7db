"""How good is a label, without ground truth: features of one label, each in [0, 1] with 1 the best.

Masks are (D, side, side) in the student's frame unless said otherwise. "Peer" is a student that never saw the label's
image. `core.fusion` makes one score of them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_gradient_magnitude

from samcorrect.lib.core.metrics import dice

# The tolerance of surface Dice: the field's usual one where the spacing is known, within what the frame can show.
SURFACE_TOLERANCE_MM = 2.0
SURFACE_TOLERANCE_PX = 2.0
MIN_SURFACE_TOLERANCE_PX = 1.0
BAND_PX = 3
# cleanlab's default temperature for the softmin of pixel scores (segmentation/rank.py).
SOFTMIN_TEMPERATURE = 0.1
# Where each feature that is fused takes its evidence from; features of one source err together.
EVIDENCE = {
    "peer": ("peer_dice",),
    # What else peers say: they are believed in it as far as it agrees with the others.
    "peer_besides": ("choice_surface_dice", "choice_dice", "peer_area", "asked_area"),
    # What SAM takes when it is asked with the box that peers see.
    "asked": ("asked_dice",),
    "prompt": ("prompt_dice", "stability", "predicted_iou"),
    "cohort": ("cohort_area", "cohort_position", "cohort_shape"),
    "image": ("edge_contrast", "neighbour_dice"),
}
# The same peers look at outlines too: that tells a person where, but the score no more than their Dice does. How far
# prompts agree, however unlikely they are, is of the image more than of its label.
FEATURES = (
    *(name for names in EVIDENCE.values() for name in names),
    *("peer_surface_dice", "band_softmin", "present_peer_dice", "prompt_agreement"),
)
# How much surer SAM must be of one mask than of another for it to be e times as likely the truth.
CONFIDENCE_TEMPERATURE = 0.03
# A structure whose labels lie below these in the median is contradicted by students, by SAM's other prompts, or by the
# image: 0.8 is where a label counts as bad, 0.5 is the contrast of an outline drawn anywhere.
WITNESSES = {"present_peer_dice": 0.8, "prompt_agreement": 0.8, "edge_contrast": 0.5}
# The scales of robust deviations: 1.4826 x their median, 1.2533 x their mean is the standard deviation of normal data.
MAD_TO_SD, MEAN_AD_TO_SD = 1.4826, 1.2533
# Below as many forms nothing is usual: of two, each is as far from the median as the other.
MIN_FORMS = 3


def surface_tolerance_px(spacing_mm: Sequence[float] | None, shape_hw: tuple[int, int], side_px: int) -> float:
    """The tolerance of surface Dice in pixels of the frame.

    Args:
        spacing_mm: Of the image's first two axes; None where a file says nothing of it, as PNG.
        shape_hw: The slice.
        side_px: Of the frame.

    Returns:
        2 mm, but at least one pixel and at most two, which is also what an unknown spacing gets.
    """
    if spacing_mm is None:
        return SURFACE_TOLERANCE_PX
    pixel_mm = float(np.mean(spacing_mm[:2])) * max(shape_hw) / side_px
    return float(np.clip(SURFACE_TOLERANCE_MM / pixel_mm, MIN_SURFACE_TOLERANCE_PX, SURFACE_TOLERANCE_PX))


def peer_surface_dice(mask: np.ndarray, peer: np.ndarray, *, tolerance_px: float = SURFACE_TOLERANCE_PX) -> float:
    """Share of the in-slice outlines of both masks within `tolerance_px` of the other.

    The outline of a mask is its pixels with a background neighbour (4-connected, in the slice).

    Returns:
        In [0, 1]; 0 where one mask is empty, 1 where both are.
    """
    outline, peer_outline = _outline(mask), _outline(peer)
    n_outline, n_peer = int(outline.sum()), int(peer_outline.sum())
    if n_outline == 0 and n_peer == 0:
        return 1.0
    if n_outline == 0 or n_peer == 0:
        return 0.0
    n_near = 0
    for one, other in zip(outline, peer_outline, strict=True):
        if one.any() and other.any():
            n_near += int((distance_transform_edt(~other)[one] <= tolerance_px).sum())
            n_near += int((distance_transform_edt(~one)[other] <= tolerance_px).sum())
    return n_near / (n_outline + n_peer)


def agreement(mask: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks of one shape, in [0, 1]; 1 where both are empty: they agree that the structure is not there."""
    return dice(mask, other) if mask.any() or other.any() else 1.0


def log_area_ratio(mask: np.ndarray, peer: np.ndarray) -> float:
    """How much larger a mask is than its peer: log((a + 1) / (b + 1)), a and b their voxels; 0 where both are empty.

    What a student gets wrong at an outline here and there cancels out in its area, and an outline that lies too far out
    or in all along does not: Dice cannot tell these apart.
    """
    return float(np.log(mask.sum() + 1) - np.log(peer.sum() + 1))


def band_softmin(mask: np.ndarray, peer_prob: np.ndarray) -> float:
    """Soft minimum of the peer's probability of the label's own choice, over the object and a band around it.

    cleanlab's segmentation score takes the whole image, where background drowns a small object; the band keeps it in
    sight.

    Args:
        mask: (D, side, side) bool.
        peer_prob: (D, side, side) probability of the structure.

    Returns:
        In [0, 1]; nan where the mask is empty.
    """
    if not mask.any():
        return float("nan")
    band = binary_dilation(mask, structure=np.ones((1, 3, 3), bool), iterations=BAND_PX)
    agreement = np.where(mask, peer_prob, 1 - peer_prob)[band].astype(np.float64)
    emphasis = np.exp((1 - agreement) / SOFTMIN_TEMPERATURE)
    return float((agreement * emphasis).sum() / emphasis.sum())


def pairwise_dice(masks: np.ndarray) -> np.ndarray:
    """Dice of each of K masks with each: 0 where one of two is empty, even of an empty mask with itself.

    Args:
        masks: (K, ...) bool.

    Returns:
        (K, K) float32 in [0, 1]; 1 on the diagonal where a mask is not empty.
    """
    flat = masks.reshape(len(masks), -1)
    flat = flat[:, flat.any(0)].astype(np.float32)
    sizes = flat.sum(1)
    return 2 * (flat @ flat.T) / np.maximum(sizes[:, None] + sizes[None], 1)


def prompt_agreement(overlaps: np.ndarray) -> float:
    """Mean pairwise Dice of the masks of K prompts.

    Args:
        overlaps: (K, K) `pairwise_dice` of the masks, K at least 2.

    Returns:
        In [0, 1]; nan where fewer than two masks are not empty.
    """
    if (overlaps.diagonal() > 0).sum() < 2:
        return float("nan")
    return float(overlaps[np.triu_indices(len(overlaps), 1)].mean())


def confidence_agreement(overlaps: np.ndarray, confidences: np.ndarray) -> float:
    """Whether SAM is more confident of those of its masks that its other prompts confirm.

    Args:
        overlaps: (K, K) `pairwise_dice` of the masks of K prompts of one object.
        confidences: (K,).

    Returns:
        The correlation of the confidences with each mask's mean Dice with the others, in [-1, 1]; nan below three masks
        that are not empty, and where either is the same for all. Linear, since what is chosen is what lies far out.
    """
    is_filled = overlaps.diagonal() > 0
    if is_filled.sum() < 3:
        return float("nan")
    surest, confirmed = confidences[is_filled], overlaps[is_filled][:, is_filled].mean(1, dtype=np.float64)
    if np.ptp(surest) == 0 or np.ptp(confirmed) == 0:
        return float("nan")
    return float(np.corrcoef(surest, confirmed)[0, 1])


def candidate_likelihoods(confidences: np.ndarray) -> np.ndarray:
    """How likely each of SAM's masks is the truth: (K,) exp(confidence / CONFIDENCE_TEMPERATURE), the highest 1."""
    return np.exp((confidences - confidences.max()) / CONFIDENCE_TEMPERATURE)


def prompt_dice(mask: np.ndarray, candidates: np.ndarray, confidences: np.ndarray) -> float:
    """The Dice of a label that is to be expected if the truth is one of SAM's masks.

    Args:
        mask: (D, side, side) bool.
        candidates: (K, D, side, side) bool masks of K prompts.
        confidences: (K,) at least 0; each counts by `candidate_likelihoods`.

    Returns:
        In [0, 1]; nan where no candidate has a confidence.
    """
    if not (confidences > 0).any():
        return float("nan")
    dices = [agreement(mask, candidate) for candidate in candidates]
    return float(np.average(dices, weights=candidate_likelihoods(confidences)))


def edge_contrast(mask: np.ndarray, frames: np.ndarray) -> float:
    """Whether the outline lies on edges of the image: the gradient on it against that beside it.

    Args:
        mask: (D, side, side) bool.
        frames: (D, h, w) intensities, h and w at most `side`: what the image fills of the square, since where it ends
            is no edge.

    Returns:
        g / (g + h), g the mean gradient magnitude within one pixel of the outline, h that from there to BAND_PX + 1
        pixels: 0.5 where the outline means nothing to the image; nan where the mask is empty or the image is flat.
    """
    outline = _outline(mask[:, : frames.shape[1], : frames.shape[2]])
    if not outline.any():
        return float("nan")
    plane = np.ones((1, 3, 3), bool)
    near = binary_dilation(outline, structure=plane)
    beside = binary_dilation(near, structure=plane, iterations=BAND_PX) & ~near
    gradient = np.stack([gaussian_gradient_magnitude(frame.astype(np.float32), 1.0) for frame in frames])
    on_it, off_it = float(gradient[near].mean()), float(gradient[beside].mean()) if beside.any() else 0.0
    return on_it / (on_it + off_it) if on_it + off_it > 0 else float("nan")


def slice_center(mask: np.ndarray) -> float:
    """Where along the slices a (D, side, side) mask has its centre, in [0, 1]; nan where it is empty."""
    areas = mask.sum((1, 2))
    return float(np.average(np.arange(len(mask)) + 0.5, weights=areas) / len(mask)) if areas.any() else float("nan")


def neighbour_dice(mask: np.ndarray) -> float:
    """Mean Dice of neighbouring slices between the first and the last that the mask touches.

    Returns:
        In [0, 1]; nan where it touches fewer than two slices, as in 2D.
    """
    filled = np.flatnonzero(mask.any((1, 2)))
    if len(filled) < 2:
        return float("nan")
    slices = mask[filled[0] : filled[-1] + 1]
    return float(np.mean([np.nan_to_num(dice(a, b)) for a, b in pairwise(slices)]))


def outline_ratio(mask: np.ndarray) -> float:
    """Pixels of the outline over the square root of the area, slice by slice: how ragged or long a mask is; nan where
    it is empty.
    """
    areas = mask.sum((1, 2))
    filled = areas > 0
    return float((_outline(mask).sum((1, 2))[filled] / np.sqrt(areas[filled])).mean()) if filled.any() else float("nan")


def cohort_typicality(forms: np.ndarray) -> np.ndarray:
    """How ordinary each label's form is among its cohort.

    Args:
        forms: (N, m) of m measures of a form, such as the log area; nan where the mask is empty.

    Returns:
        (N,) in [0, 1]: exp(-z^2 / 2), z^2 the mean square of the robust z of those measures that differ at all; 1 at
        the median. An empty mask gets twice the share of the masks that are empty, at most 1: where half are, it is as
        ordinary as any. Below MIN_FORMS nothing is usual: nan of the masks if fewer are not empty, of all if they are
        no more altogether.
    """
    is_empty = ~np.isfinite(forms).all(1)
    defined = forms[~is_empty]
    if len(forms) < MIN_FORMS or not len(defined):
        return np.full(len(forms), np.nan)
    n_differing = max(1, (np.ptp(defined, 0) > 0).sum())
    z = np.stack([robust_z(column) for column in forms.T], 1)  # 0 where all are equal
    typicality = np.exp(-0.5 * (np.clip(z, -6, 6) ** 2).sum(1) / n_differing)
    if len(defined) < MIN_FORMS:
        typicality[:] = np.nan
    return np.where(is_empty, min(1.0, 2 * is_empty.mean()), typicality)


def structure_doubts(features: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Why the labels of a structure are doubtful as a whole: a bias that all of them share shows in no ranking.

    Args:
        features: Name to (N,) values of all labels of the structure.

    Returns:
        The WITNESSES whose median over the labels is too low, if they are at least half of those that are defined;
        otherwise none.
    """
    medians = {n: np.median(v[np.isfinite(v)]) for n, v in features.items() if n in WITNESSES and np.isfinite(v).any()}
    against = tuple(name for name, median in medians.items() if median < WITNESSES[name])
    return against if against and 2 * len(against) >= len(medians) else ()


def median_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Of the defined values, the median and the standard deviation that their MAD stands for, or, where more than half
    are the same, their mean absolute deviation (Iglewicz and Hoaglin, 1993); nan where none is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    center = np.median(known)
    deviations = np.abs(known - center)
    return float(center), float(MAD_TO_SD * np.median(deviations) or MEAN_AD_TO_SD * np.mean(deviations))


def robust_z(values: np.ndarray) -> np.ndarray:
    """(value - median) / spread of `median_and_spread` over the defined values; 0 everywhere where all are equal."""
    center, spread = median_and_spread(values)
    return np.where(np.isfinite(values), 0.0, np.nan) if spread == 0 else (values - center) / spread


def label_features(
    mask: np.ndarray, peer_prob: np.ndarray, peer_mask: np.ndarray, *, tolerance_px: float = SURFACE_TOLERANCE_PX
) -> dict[str, float]:
    """The features that compare one label with its peer; see the functions for each."""
    return {
        "peer_surface_dice": peer_surface_dice(mask, peer_mask, tolerance_px=tolerance_px),
        "peer_dice": agreement(mask, peer_mask),
        # Of students that see a structure nowhere, those labels where it is not there say nothing good.
        "present_peer_dice": dice(mask, peer_mask),
        "band_softmin": band_softmin(mask, peer_prob),
    }


def _outline(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return mask & ~inside
