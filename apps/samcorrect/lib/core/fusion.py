"""One score of several features of a label, without ground truth."""

from collections.abc import Collection, Iterable, Mapping, Sequence
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

    The features are fused as normal scores of their ranks. Which labels have a feature can itself go along with how
    good they are (what was corrected has lost what SAM said of it), so that one which only some have counts from the
    level and with the spread that the others of its source have among them, or, where none of these is complete, the
    anchors. The score of the label at some rank is then the value at the same rank of the feature `scale`: a cohort of
    good labels scores high as a whole, and a doubtful one low.

    Args:
        features: Name to (N,) values in [0, 1], 1 the best, nan where not defined.
        sources: Source to its features.
        anchors: The sources believed beforehand; where none has values, all sources together take their place.
        scale: The feature that gives the scores their values; where it has none, or tells no label from another, the
            mean of all does.

    Returns:
        The fusion. Below eight labels, where correlations mean nothing: the mean of the anchors' means, or of all where
        a label has nothing of theirs.
    """
    n_labels = len(next(iter(features.values())))
    known = {s: [f for f in names if f in features and np.isfinite(features[f]).any()] for s, names in sources.items()}
    known = {source: names for source, names in known.items() if names}
    names = [name for of_source in known.values() for name in of_source]
    nowhere = dict.fromkeys(names, float("nan"))
    if not known:
        return Fusion(np.full(n_labels, np.nan), {}, {})
    believed = [known[source] for source in anchors if source in known] or list(known.values())
    if n_labels < MIN_LABELS_FOR_FUSION:
        plain, of_all = (_mean_of_sources(features, of) for of in (believed, known.values()))
        plain = np.where(np.isfinite(plain), plain, of_all)
        shares = {f: 1 / len(believed) / len(of) for of in believed for f in of}
        return Fusion(plain, dict.fromkeys(names, 0.0) | shares, nowhere)
    normal, level = _on_levels({name: _normal_scores(features[name]) for name in names}, known.values(), believed)
    correlations = {f: _correlation(normal[f], _reference(normal, believed, {*names} - {f})) for f in names}
    fused, weights = _weigh_sources(normal, list(known.values()), believed, correlations, level)
    if scale in names and (_varies(features[scale]) or not _varies(fused)):
        reference = features[scale]
    else:
        reference = mean_of_defined(_rows(features, names))
    return Fusion(_on_scale(fused, reference), weights, correlations)


def mean_of_defined(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Column means of the defined values, weighted by row; nan, without numpy's warning, where a column has none."""
    defined = np.isfinite(rows) * (np.ones(len(rows)) if weights is None else weights)[:, None]
    totals = defined.sum(0)
    return np.where(totals > 0, (np.nan_to_num(rows) * defined).sum(0) / np.where(totals > 0, totals, 1), np.nan)


def _mean_of_sources(features: Mapping[str, np.ndarray], sources: Iterable[Sequence[str]]) -> np.ndarray:
    return mean_of_defined(np.stack([mean_of_defined(_rows(features, of)) for of in sources]))


def _weigh_sources(
    normal: Mapping[str, np.ndarray],
    sources: Sequence[Sequence[str]],
    believed: Sequence[Sequence[str]],
    correlations: Mapping[str, float],
    level: np.ndarray,
) -> tuple[np.ndarray, dict[str, float]]:
    """The (N,) fused normal scores, and the weights of the features, which sum to 1."""
    reference = _reference(normal, believed, normal)
    spoken, weights, shares = [], [], []
    for names in sources:
        inner = np.array([_positive(correlations[name]) for name in names])
        if names in believed and not inner.any():
            # Nothing to compare with, or features that contradict each other: all alike.
            inner = np.ones(len(names))
        spoken.append(_standardised(mean_of_defined(_rows(normal, names), inner), level))
        weights.append(1.0 if names in believed else _positive(_correlation(spoken[-1], reference)) ** 2)
        shares.append(dict(zip(names, (inner / max(inner.sum(), 1e-12)).tolist(), strict=True)))
    fused = mean_of_defined(np.stack(spoken), np.array(weights))
    return fused, {
        f: share * w / sum(weights) for w, of in zip(weights, shares, strict=True) for f, share in of.items()
    }


def _reference(
    normal: Mapping[str, np.ndarray], believed: Sequence[Sequence[str]], among: Collection[str]
) -> np.ndarray:
    """(N,) what the believed sources say, each alike, by some of the features; nan where nothing is left."""
    left = [[name for name in names if name in among] for names in believed]
    left = [names for names in left if names]
    return _mean_of_sources(normal, left) if left else np.full(len(next(iter(normal.values()))), np.nan)


def _correlation(values: np.ndarray, others: np.ndarray) -> float:
    """The rank correlation of the labels that have both; nan where they are too few to mean anything."""
    n_both = (np.isfinite(values) & np.isfinite(others)).sum()
    return rank_correlation(values, others) if n_both >= MIN_LABELS_FOR_FUSION else float("nan")


def _varies(values: np.ndarray) -> bool:
    defined = values[np.isfinite(values)]
    return bool(len(defined)) and bool(np.ptp(defined) > 0)


def _positive(correlation: float) -> float:
    return max(0.0, correlation) if np.isfinite(correlation) else 0.0


def _rows(features: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.stack([features[name] for name in names])


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Ranks as quantiles of a normal deviate; nan stays."""
    scores, defined = np.full(values.shape, np.nan), np.isfinite(values)
    scores[defined] = norm.ppf((rankdata(values[defined]) - 0.5) / defined.sum())
    return scores


def _on_levels(
    scores: Mapping[str, np.ndarray], sources: Iterable[Sequence[str]], believed: Sequence[Sequence[str]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Normal scores, those that only some labels have where these labels are, and the level of the believed."""
    is_label = np.isfinite(_rows(scores, list(scores))).any(0)
    complete = {name for name, values in scores.items() if np.isfinite(values[is_label]).all()}
    level, placed = _reference(scores, believed, complete), dict(scores)
    for names in sources:
        own = _reference(scores, [names], complete)
        for name in {*names} - complete:
            placed[name] = _on_level(scores[name], own if np.isfinite(own).any() else level)
    return placed, level


def _on_level(scores: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Normal scores with the mean and the spread that `level` has among the same labels."""
    both = np.isfinite(scores) & np.isfinite(level)
    return level[both].mean() + level[both].std() * scores if _varies(level[both]) else scores


def _standardised(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Scaled to the mean square that `level` has of the same labels, or else to 1; a constant stays 0."""
    both = np.isfinite(values) & np.isfinite(level)
    size = np.sqrt(np.mean(values[np.isfinite(values)] ** 2)) if np.isfinite(values).any() else 0.0
    of_level = np.sqrt(np.mean(level[both] ** 2)) if both.any() else 0.0
    return values * ((of_level or 1.0) / size) if size > 0 else values


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
