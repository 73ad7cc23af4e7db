"""One score of several features of a label, without ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from samcorrect.lib.core.metrics import rank_correlation

# Below this, correlations between features mean nothing.
MIN_LABELS_FOR_FUSION = 8


@dataclass(frozen=True)
class Fusion:
    """Fused scores and the weight each feature had in them.

    Attributes:
        scores: (N,) in [0, 1]; nan where no feature with a weight above 0 is defined.
        weights: Feature to weight; they sum to 1.
        correlations: Feature to its rank correlation with the anchors' other features; nan where there are none.
    """

    scores: np.ndarray
    weights: dict[str, float]
    correlations: dict[str, float]


def fuse_features(
    features: Mapping[str, np.ndarray], sources: Mapping[str, Sequence[str]], *, anchors: Sequence[str], scale: str
) -> Fusion:
    """Fuse features into one score without ground truth.

    Features of one source of evidence err together, so each source speaks once, however many features it has. The
    anchors are sources that are believed beforehand, each with the weight 1; another source weighs the square of its
    rank correlation with them, a feature in its source the correlation itself, neither below 0. So a useless feature
    does no harm, and many weak features that err together do not outvote the anchors.

    The features are fused as normal scores of their ranks. The score of the label at some rank is then the value at the
    same rank of the feature `scale`: a cohort of good labels scores high as a whole, and a doubtful one low.

    Args:
        features: Name to (N,) values in [0, 1], 1 the best, nan where not defined.
        sources: Source to its features.
        anchors: The sources believed beforehand; where none has values, all sources together take their place.
        scale: The feature that gives the scores their values; where it has none, the mean of all does.

    Returns:
        The fusion. Below eight labels, where correlations mean nothing: the mean of the sources' means.
    """
    n_labels = len(next(iter(features.values())))
    known = {s: [f for f in names if f in features and np.isfinite(features[f]).any()] for s, names in sources.items()}
    known = {source: names for source, names in known.items() if names}
    names = [name for of_source in known.values() for name in of_source]
    nowhere = dict.fromkeys(names, float("nan"))
    if not known:
        return Fusion(np.full(n_labels, np.nan), {}, {})
    if n_labels < MIN_LABELS_FOR_FUSION:
        plain = mean_of_defined(np.stack([mean_of_defined(_rows(features, of)) for of in known.values()]))
        return Fusion(plain, {f: 1 / len(known) / len(of) for of in known.values() for f in of}, nowhere)
    normal = {name: _normal_scores(features[name]) for name in names}
    believed = [known[source] for source in anchors if source in known] or list(known.values())
    correlations = {f: rank_correlation(normal[f], _reference(normal, believed, without=f)) for f in names}
    fused, weights = _weigh_sources(normal, list(known.values()), believed, correlations)
    reference = features[scale] if scale in names else mean_of_defined(_rows(features, names))
    return Fusion(_on_scale(fused, reference), weights, correlations)


def mean_of_defined(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Column means of the defined values, weighted by row; nan, without numpy's warning, where a column has none."""
    defined = np.isfinite(rows) * (np.ones(len(rows)) if weights is None else weights)[:, None]
    totals = defined.sum(0)
    return np.where(totals > 0, (np.nan_to_num(rows) * defined).sum(0) / np.where(totals > 0, totals, 1), np.nan)


def _weigh_sources(
    normal: Mapping[str, np.ndarray],
    sources: Sequence[Sequence[str]],
    believed: Sequence[Sequence[str]],
    correlations: Mapping[str, float],
) -> tuple[np.ndarray, dict[str, float]]:
    """The (N,) fused normal scores, and the weights of the features, which sum to 1."""
    reference = _reference(normal, believed)
    spoken, weights, shares = [], [], []
    for names in sources:
        inner = np.array([_positive(correlations[name]) for name in names])
        if names in believed and not inner.any():
            # Nothing to compare with, or features that contradict each other: all alike.
            inner = np.ones(len(names))
        spoken.append(_standardised(mean_of_defined(_rows(normal, names), inner)))
        weights.append(1.0 if names in believed else _positive(rank_correlation(spoken[-1], reference)) ** 2)
        shares.append(dict(zip(names, (inner / max(inner.sum(), 1e-12)).tolist(), strict=True)))
    fused = mean_of_defined(np.stack(spoken), np.array(weights))
    return fused, {
        f: share * w / sum(weights) for w, of in zip(weights, shares, strict=True) for f, share in of.items()
    }


def _reference(
    normal: Mapping[str, np.ndarray], believed: Sequence[Sequence[str]], *, without: str | None = None
) -> np.ndarray:
    """(N,) what the believed sources say, each alike, without one feature; nan where nothing is left."""
    left = [[name for name in names if name != without] for names in believed]
    rows = [mean_of_defined(_rows(normal, names)) for names in left if names]
    return mean_of_defined(np.stack(rows)) if rows else np.full(len(next(iter(normal.values()))), np.nan)


def _positive(correlation: float) -> float:
    return max(0.0, correlation) if np.isfinite(correlation) else 0.0


def _rows(features: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.stack([features[name] for name in names])


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Ranks as quantiles of a normal deviate; nan stays."""
    scores, defined = np.full(values.shape, np.nan), np.isfinite(values)
    scores[defined] = norm.ppf((rankdata(values[defined]) - 0.5) / defined.sum())
    return scores


def _standardised(values: np.ndarray) -> np.ndarray:
    """Scaled to unit mean square over the defined values; a constant stays 0."""
    size = np.sqrt(np.nanmean(values**2)) if np.isfinite(values).any() else 0.0
    return values / size if size > 0 else values


def _on_scale(fused: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The values of a reference in the order of the fused scores; nan where those are.

    A label without a value of its own lies between those that have one: it moves none of them.
    """
    scores, defined = np.full(fused.shape, np.nan), np.isfinite(fused)
    both = defined & np.isfinite(reference)
    if both.any():
        shares = (np.arange(both.sum()) + 0.5) / both.sum()
        ranks = (rankdata(fused[both]) - 0.5) / both.sum()
        order = np.argsort(fused[both])
        values = np.interp(ranks, shares, np.sort(reference[both]))
        scores[defined] = np.interp(fused[defined], fused[both][order], values[order])
    return scores


def worst_structure(values: np.ndarray) -> int:
    """Which of (K,) scores is the lowest: what the whole label counts as; the first where none is defined."""
    return int(np.nanargmin(values)) if np.isfinite(values).any() else 0


def places_in_ledger(values: np.ndarray, indices: Sequence[int]) -> list[tuple[int, int]]:
    """(structure index, number among the (K,) scores) of each row of a label's quality: 0 is the whole label, which
    counts as its worst structure.
    """
    return [(0, worst_structure(values)), *((index, k) for k, index in enumerate(indices))]
