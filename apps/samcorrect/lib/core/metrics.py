"""Measures of agreement between masks and between score and truth.

Beside a truth, a prediction that is rightly empty is right and counts as such: dropped, it would leave the mean of the
arm that got it right alone. So surface Dice is 1 and the Hausdorff distance 0 there, and the evaluation takes for Dice
`quality.agreement`, which is 1; `dice` itself says nan, for two masks of nothing tell a judge of labels nothing.
"""

import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

N_BOOTSTRAP = 2000


def dice(mask: np.ndarray, other: np.ndarray) -> float:
    """Dice of two boolean masks of one shape: in [0, 1]; 0 where one is empty, nan where both are."""
    total = int(mask.sum()) + int(other.sum())
    return float("nan") if total == 0 else 2.0 * int((mask & other).sum()) / total


def surface_dice(mask: np.ndarray, other: np.ndarray, *, tolerance_mm: float, spacing_mm: Sequence[float]) -> float:
    """Share of both surfaces that lie within a tolerance of the other (Nikolov et al. 2018), by MONAI.

    Args:
        mask: (H, W, D) bool; D = 1 is treated as a 2D image.
        other: The same shape.
        tolerance_mm: At least 0.
        spacing_mm: Three voxel sizes.

    Returns:
        In [0, 1]; 0 where one mask is empty, 1 where both are.
    """
    if not mask.any() and not other.any():
        return 1.0
    if not mask.any() or not other.any():
        return 0.0
    pair, spacing = _for_monai(mask, other, spacing_mm)
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself.
        warnings.simplefilter("ignore", FutureWarning)
        value = compute_surface_dice(*pair, class_thresholds=[tolerance_mm], spacing=spacing)
    return float(value[0, 0])


def hausdorff95(mask: np.ndarray, other: np.ndarray, *, spacing_mm: Sequence[float]) -> float:
    """95th percentile of the distances between both surfaces (the larger of both directions), by MONAI.

    Args:
        mask: (H, W, D) bool; D = 1 is treated as a 2D image.
        other: The same shape.
        spacing_mm: Three voxel sizes.

    Returns:
        In mm, at least 0; the diagonal of the image where one mask is empty, 0 where both are.
    """
    if not mask.any() and not other.any():
        return 0.0
    if not mask.any() or not other.any():
        return float(np.linalg.norm(np.array(mask.shape) * spacing_mm * (np.array(mask.shape) > 1)))
    pair, spacing = _for_monai(mask, other, spacing_mm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as above
        return float(compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)[0, 0])


def rank_correlation(scores: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's rho over the pairs where both are defined; nan below three pairs or where either is constant."""
    both = np.isfinite(scores) & np.isfinite(truth)
    if both.sum() < 3 or np.ptp(scores[both]) == 0 or np.ptp(truth[both]) == 0:
        return float("nan")
    return float(spearmanr(scores[both], truth[both]).statistic)


def auroc_below(scores: np.ndarray, dice_values: np.ndarray, threshold: float) -> float:
    """AUROC of low scores for finding labels with a Dice below `threshold`; nan where all or none are below."""
    both = np.isfinite(scores) & np.isfinite(dice_values)
    is_bad = dice_values[both] < threshold
    if is_bad.all() or not is_bad.any():
        return float("nan")
    return float(roc_auc_score(is_bad, -scores[both]))


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean over n images with its standard deviation and the 95% bootstrap interval of the mean."""

    mean: float
    sd: float
    ci95: tuple[float, float]
    n: int


def bootstrap_mean(values: np.ndarray, *, cases: Sequence[str] | None = None, seed: int = 0) -> MeanWithInterval:
    """Mean and spread over images, and the interval where cases are drawn again, each with all of its images.

    Images of one patient are alike: drawn one by one, they would count as that many patients.

    Args:
        values: (n,) of images; nan is left out.
        cases: (n,) case of each; without, each image is one.
        seed: Of the draws.
    """
    values = np.asarray(values, dtype=np.float64)
    is_defined = np.isfinite(values)
    defined = values[is_defined]
    if len(defined) == 0:
        return MeanWithInterval(float("nan"), float("nan"), (float("nan"), float("nan")), 0)
    of_case = group_by_case((np.arange(len(values)) if cases is None else np.asarray(cases))[is_defined])
    sums, sizes = np.array([defined[numbers].sum() for numbers in of_case]), np.array([len(of) for of in of_case])
    drawn = np.random.default_rng(seed).integers(0, len(of_case), (N_BOOTSTRAP, len(of_case)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
    return MeanWithInterval(float(defined.mean()), sd, (float(low), float(high)), len(defined))


def group_by_case(cases: Iterable[Hashable]) -> list[np.ndarray]:
    """The numbers of the images of each case, in the order in which cases come."""
    numbers: dict[Hashable, list[int]] = {}
    for number, case in enumerate(cases):
        numbers.setdefault(case, []).append(number)
    return [np.array(of_case) for of_case in numbers.values()]


def rounded(value: float) -> float | None:
    """A number for JSON: six decimals, or None where it is not defined, since JSON has no nan."""
    return round(float(value), 6) if np.isfinite(value) else None


def _for_monai(
    mask: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[tuple[torch.Tensor, torch.Tensor], list[float]]:
    """Both masks, cut to what they fill, as background and foreground (1, 2, H, W[, D]), and their spacing."""
    n_dims = 2 if mask.shape[2] == 1 else 3
    window = _joint_box(mask, other)
    cut = [torch.from_numpy(np.ascontiguousarray(m[window]).reshape(m[window].shape[:n_dims])) for m in (mask, other)]
    one, two = (torch.stack([~m, m])[None].float() for m in cut)
    return (one, two), [float(s) for s in spacing_mm[:n_dims]]


def _joint_box(mask: np.ndarray, other: np.ndarray) -> tuple[slice, ...]:
    """Slices around both masks with one voxel of margin: surfaces are found without searching the whole image."""
    both = mask | other
    window = []
    for axis in range(both.ndim):
        filled = np.flatnonzero(both.any(axis=tuple(a for a in range(both.ndim) if a != axis)))
        window.append(slice(max(0, filled[0] - 1), filled[-1] + 2))
    return tuple(window)
