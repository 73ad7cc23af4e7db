"""95% intervals of how well scores rank labels, by redrawing patients with all of their labels.

A redraw is told by how often it holds each label, so that ranks and measures of all redraws are computed at once.
"""

from collections.abc import Sequence

import numpy as np

from samcorrect.lib.core.metrics import rounded

N_BOOTSTRAP = 1000
# An interval of the few redraws that happen to define a measure would be too narrow.
MIN_DEFINED_SHARE = 0.9


def redraw_cases(cases: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """(N_BOOTSTRAP, n) how often each redraw holds a label, by its patient; (0, n) of fewer than two patients."""
    names, owner = np.unique(np.asarray(cases), return_inverse=True)
    if len(names) < 2:
        return np.zeros((0, len(owner)), np.int64)
    drawn = rng.integers(0, len(names), (N_BOOTSTRAP, len(names)))
    flat = drawn + len(names) * np.arange(N_BOOTSTRAP)[:, None]
    counts = np.bincount(flat.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts[:, owner]


def ranks_of(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(R, n) rank of each of n values in each redraw; equal ones share the mean of theirs."""
    order = np.argsort(values, kind="stable")
    _, group, n_equal = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(n_equal) - n_equal
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    return (np.cumsum(sizes, 1) - sizes + (sizes + 1) / 2)[:, group]


def spearmans(ranks: np.ndarray, others: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(R,) Spearman's rho of two (R, n) ranks; nan where either is constant or fewer than three labels are drawn."""
    n_drawn = counts.sum(1)
    middle = (n_drawn[:, None] + 1) / 2
    one, other = ranks - middle, others - middle
    product, spread, other_spread = ((counts * a * b).sum(1) for a, b in ((one, other), (one, one), (other, other)))
    # Ranks are halves of whole numbers, so that a constant has a spread of exactly 0.
    is_defined = (spread > 0) & (other_spread > 0) & (n_drawn >= 3)
    return np.where(is_defined, product / np.sqrt(np.where(is_defined, spread * other_spread, 1)), np.nan)


def aurocs(ranks: np.ndarray, is_bad: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(R,) AUROC of low scores, of (R, n) ranks, for finding the bad labels; nan where all or none that are drawn are
    bad.
    """
    bad = counts * is_bad
    n_bad, n_good = bad.sum(1), (counts * ~is_bad).sum(1)
    # Mann and Whitney: in how many pairs the bad label has the higher score, an equal one as half.
    n_wrong = (bad * ranks).sum(1) - n_bad * (n_bad + 1) / 2
    n_pairs = n_bad * n_good
    return np.where(n_pairs > 0, 1 - n_wrong / np.maximum(n_pairs, 1), np.nan)


def interval(values: np.ndarray) -> list[float | None]:
    """The middle 95% of a measure's (R,) values; [None, None] where too few redraws define it."""
    defined = values[np.isfinite(values)]
    if not len(defined) or len(defined) < MIN_DEFINED_SHARE * len(values):
        return [None, None]
    return [rounded(v) for v in np.percentile(defined, [2.5, 97.5])]
