"""How good is a label, without ground truth: features of one label, each in [0, 1] with 1 the best, and their fusion.

Masks are (D, side, side) in the student's frame unless said otherwise. "Peer" is a student that never saw the label's
image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt
from scipy.stats import rankdata, spearmanr

from samcorrect.lib.core.metrics import dice

SURFACE_TOLERANCE_PX = 2.0
BAND_PX = 3
# cleanlab's default temperature for the softmin of pixel scores (segmentation/rank.py).
SOFTMIN_TEMPERATURE = 0.1
FEATURES = (
    "peer_surface_dice",
    "peer_dice",
    "band_softmin",
    "prompt_agreement",
    "stability",
    "predicted_iou",
    "cohort_area",
)
MIN_LABELS_FOR_FUSION = 8
# The scale of robust deviations: 1.4826 x MAD is the standard deviation of normal data.
MAD_TO_SD = 1.4826


def peer_surface_dice(mask: np.ndarray, peer: np.ndarray, *, tolerance_px: float = SURFACE_TOLERANCE_PX) -> float:
    """Share of the in-slice outlines of both masks within `tolerance_px` of the other.

    The outline of a mask is its pixels with a background neighbour (4-connected, in the slice).

    Returns:
        In [0, 1]; 0 where one mask is empty, nan where both are.
    """
    outline, peer_outline = _outline(mask), _outline(peer)
    n_outline, n_peer = int(outline.sum()), int(peer_outline.sum())
    if n_outline == 0 and n_peer == 0:
        return float("nan")
    if n_outline == 0 or n_peer == 0:
        return 0.0
    n_near = 0
    for one, other in zip(outline, peer_outline, strict=True):
        if one.any() and other.any():
            n_near += int((distance_transform_edt(~other)[one] <= tolerance_px).sum())
            n_near += int((distance_transform_edt(~one)[other] <= tolerance_px).sum())
    return n_near / (n_outline + n_peer)


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


def prompt_agreement(masks: np.ndarray) -> float:
    """Mean pairwise Dice of the masks of K prompts.

    Args:
        masks: (K, ...) bool, K at least 2.

    Returns:
        In [0, 1]; nan where fewer than two masks are not empty.
    """
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    sizes = flat.sum(1)
    if (sizes > 0).sum() < 2:
        return float("nan")
    overlaps = flat @ flat.T
    upper = np.triu_indices(len(flat), 1)
    totals = (sizes[:, None] + sizes[None])[upper]
    return float((2 * overlaps[upper] / np.maximum(totals, 1)).mean())


def cohort_typicality(values: np.ndarray) -> np.ndarray:
    """How ordinary each value is among its cohort.

    Args:
        values: (N,) positive, for example areas; nan or 0 is not defined.

    Returns:
        (N,) in [0, 1]: exp(-z^2 / 2) of the robust z of the logarithm; 1 at the median, nan where not defined.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(values > 0, np.log(values), np.nan)
    z = robust_z(logs)
    return np.exp(-0.5 * np.clip(z, -6, 6) ** 2)


def robust_z(values: np.ndarray) -> np.ndarray:
    """(value - median) / (1.4826 MAD) over the defined values; 0 everywhere where they do not spread."""
    if not np.isfinite(values).any():
        return np.full(values.shape, np.nan)
    center = np.nanmedian(values)
    spread = MAD_TO_SD * np.nanmedian(np.abs(values - center))
    return (values - center) / spread if spread > 0 else np.where(np.isfinite(values), 0.0, np.nan)


@dataclass(frozen=True)
class Fusion:
    """Fused scores and the weight each feature had in them.

    Attributes:
        scores: (N,) in [0, 1]; nan where no feature with a weight above 0 is defined.
        weights: Feature to weight; they sum to 1.
        correlations: Feature to its rank correlation with the mean of the others.
    """

    scores: np.ndarray
    weights: dict[str, float]
    correlations: dict[str, float]


def fuse_features(features: Mapping[str, np.ndarray]) -> Fusion:
    """Fuse features into one score without ground truth.

    A feature weighs as much as its ranks agree with the mean rank of the others (never below 0), so that one useless
    feature does no harm. The score is the weighted mean of the features themselves, not of ranks: a cohort of good
    labels scores high as a whole.

    Args:
        features: Name to (N,) values in [0, 1], 1 the best, nan where not defined.

    Returns:
        The fusion; equal weights below eight labels, where correlations mean nothing.
    """
    names = [name for name in features if np.isfinite(features[name]).any()]
    n_labels = len(next(iter(features.values())))
    if not names:
        return Fusion(np.full(n_labels, np.nan), {}, {})
    values = np.stack([features[name] for name in names])
    correlations = dict.fromkeys(names, float("nan"))
    weights = np.ones(len(names))
    if n_labels >= MIN_LABELS_FOR_FUSION and len(names) > 2:
        ranks = np.stack([_rank_share(row) for row in values])
        for number, name in enumerate(names):
            correlations[name] = _spearman(ranks[number], _mean_of_defined(np.delete(ranks, number, axis=0)))
        weights = (
            np.array([max(0.0, correlations[name]) if np.isfinite(correlations[name]) else 0.0 for name in names]) ** 2
        )
        if weights.sum() == 0:
            weights = np.ones(len(names))
    defined = np.isfinite(values)
    share = defined * weights[:, None]
    totals = share.sum(0)
    with np.errstate(invalid="ignore"):
        scores = np.where(
            totals > 0,
            np.nansum(np.where(defined, values, 0) * share, axis=0) / np.where(totals > 0, totals, 1),
            np.nan,
        )
    return Fusion(scores, dict(zip(names, (weights / weights.sum()).tolist(), strict=True)), correlations)


def label_features(mask: np.ndarray, peer_prob: np.ndarray, peer_mask: np.ndarray) -> dict[str, float]:
    """The features that compare one label with its peer; see the functions for each."""
    return {
        "peer_surface_dice": peer_surface_dice(mask, peer_mask),
        "peer_dice": dice(mask, peer_mask),
        "band_softmin": band_softmin(mask, peer_prob),
    }


def _outline(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return mask & ~inside


def _rank_share(values: np.ndarray) -> np.ndarray:
    ranks = np.full(values.shape, np.nan)
    defined = np.isfinite(values)
    ranks[defined] = rankdata(values[defined]) / max(1, defined.sum())
    return ranks


def _mean_of_defined(rows: np.ndarray) -> np.ndarray:
    """Column means of the defined values; nan, without numpy's warning, where a column has none."""
    counts = np.isfinite(rows).sum(0)
    return np.where(counts > 0, np.nansum(rows, axis=0) / np.maximum(counts, 1), np.nan)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 3 or np.ptp(one[both]) == 0 or np.ptp(other[both]) == 0:
        return float("nan")
    return float(spearmanr(one[both], other[both]).statistic)
