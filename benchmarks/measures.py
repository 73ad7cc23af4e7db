"""How well a score without ground truth ranks labels and finds the bad ones, measured with ground truth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from redraws import aurocs, interval, ranks_of, redraw_cases, spearmans
from sklearn.metrics import average_precision_score

from samcorrect.lib.core.calibration import COVERAGE, expect_dice
from samcorrect.lib.core.metrics import auroc_below, group_by_case, rank_correlation, rounded

DICE_THRESHOLDS = (0.8, 0.9)
# Where fewer or more labels are bad, AUROC rests on a handful of them.
BAD_SHARE_RANGE = (0.1, 0.9)
COVERAGES = (0.05, *(tenth / 10 for tenth in range(1, 11)))
N_TERCILES = 3
# Calibration: approved labels, and how often they are drawn anew.
N_APPROVED, N_REDRAWS = 20, 200


def measure_scores(
    scores: np.ndarray,
    dice: np.ndarray,
    *,
    cases: Sequence[str],
    sizes: np.ndarray,
    rng: np.random.Generator,
    fused: np.ndarray | None = None,
) -> dict[str, Any]:
    """Rank correlation, AUROC and what else one row of the table says.

    Args:
        scores: (N,) higher is better; nan is not ranked.
        dice: (N,) true Dice, 1 where there is nothing to find and nothing found; nan where there is no truth.
        cases: The patient of each label, for bootstrap and calibration.
        sizes: (N,) size of the true structure.
        rng: Of bootstrap and calibration.
        fused: (N,) scores to compare these with; None of the row "fused" itself.

    Returns:
        `spearman` with `spearman_ci95`, `auroc` with `auroc_ci95` and `auprc` by threshold ("median" is the set's own,
        in redraws too), `n_below`, `n`, `risk_coverage` (the mean 1 - Dice of the labels kept, best scores first, by
        the share of COVERAGES that is kept) and `risk_coverage_area` (its mean over all numbers of labels kept),
        `spearman_by_size` (small to large), what `measure_calibration` says, and with `fused` `fused_minus_ci95`, the
        interval of its Spearman less this one's over the labels that both rank. Intervals are of 95%.
    """
    both = np.isfinite(scores) & np.isfinite(dice)
    of_case = group_by_case(np.asarray(cases)[both])
    s, d = scores[both], dice[both]
    thresholds = {"median": float(np.median(d)) if len(d) else np.nan} | {str(t): t for t in DICE_THRESHOLDS}
    n_below = {name: int((d < threshold).sum()) for name, threshold in thresholds.items()}
    is_measured = {name: _is_measured(n, len(d)) for name, n in n_below.items()}
    counts = redraw_cases(np.asarray(cases)[both], rng)
    ranks, risks = ranks_of(s, counts), _risks(s, d)
    return {
        "spearman": rounded(rank_correlation(s, d)),
        "spearman_ci95": interval(spearmans(ranks, ranks_of(d, counts), counts)),
        "auroc": {n: rounded(auroc_below(s, d, t)) if is_measured[n] else None for n, t in thresholds.items()},
        "auroc_ci95": {
            n: interval(aurocs(ranks, d < t, counts)) if is_measured[n] else [None, None] for n, t in thresholds.items()
        },
        "auprc": {
            n: rounded(average_precision_score(d < t, -s)) if is_measured[n] else None for n, t in thresholds.items()
        },
        "n_below": n_below,
        "n": len(d),
        "risk_coverage": {
            f"{share:g}": rounded(risks[max(1, round(share * len(d))) - 1]) if len(d) else None for share in COVERAGES
        },
        "risk_coverage_area": rounded(risks.mean()) if len(d) else None,
        "spearman_by_size": [
            rounded(rank_correlation(s[part], d[part])) for part in np.array_split(np.argsort(sizes[both]), N_TERCILES)
        ],
        **measure_calibration(s, d, of_case, rng),
        **({} if fused is None else {"fused_minus_ci95": _gain_of(fused, scores, dice, np.asarray(cases), rng)}),
    }


def measure_calibration(
    scores: np.ndarray, dice: np.ndarray, of_case: Sequence[np.ndarray], rng: np.random.Generator
) -> dict[str, Any]:
    """How the expected Dice and its 90% interval fare on the labels left, calibrated with N_APPROVED drawn at random.

    Patients are drawn until there are enough labels; the rest of the last one's is in neither part.

    Args:
        scores: (N,) of labels.
        dice: (N,) their true Dice.
        of_case: The numbers of each patient's labels.
        rng: Of the draws.

    Returns:
        Means over N_REDRAWS: `coverage` and `coverage_by_score` (thirds, worst scores first), `width` and `mae` (of the
        expected Dice), and `width_ratio` and `mae_ratio` against the median of the approved labels with the split
        conformal interval around it, which ignore the score. None where N_APPROVED labels and as many more of other
        patients are not there, whoever is drawn.
    """
    names = ("coverage", "width", "mae", "width_ratio", "mae_ratio")
    n_drawn_at_most = N_APPROVED - 1 + max(map(len, of_case), default=1)
    if len(scores) < n_drawn_at_most + N_APPROVED:
        return dict.fromkeys((*names, "coverage_by_score"))
    told, blind, thirds = [], [], []
    for _ in range(N_REDRAWS):
        drawn = [of_case[number] for number in rng.permutation(len(of_case))]
        n_cases = 1 + int(np.searchsorted(np.cumsum([len(numbers) for numbers in drawn]), N_APPROVED))
        approved, left = np.concatenate(drawn[:n_cases])[:N_APPROVED], np.concatenate(drawn[n_cases:])
        # The score is on the scale of a Dice already, so it is its own prior.
        expected = expect_dice(scores[left], scores[left], scores[approved], dice[approved])
        is_covered = (expected.low <= dice[left]) & (dice[left] <= expected.high)
        error = np.abs(expected.mean - dice[left]).mean()
        told.append([is_covered.mean(), (expected.high - expected.low).mean(), error])
        thirds.append([is_covered[third].mean() for third in np.array_split(np.argsort(scores[left]), N_TERCILES)])
        median = np.median(dice[approved])
        bound = np.sort(np.abs(dice[approved] - median))[math.ceil((N_APPROVED + 1) * COVERAGE) - 1]
        width = np.clip(median + bound, 0, 1) - np.clip(median - bound, 0, 1)
        blind.append([width, np.abs(median - dice[left]).mean()])
    coverage, width, mae = np.mean(told, 0)
    blind_width, blind_mae = np.maximum(np.mean(blind, 0), 1e-12)
    values = (coverage, width, mae, width / blind_width, mae / blind_mae)
    return {n: rounded(float(v)) for n, v in zip(names, values, strict=True)} | {
        "coverage_by_score": [rounded(float(v)) for v in np.mean(thirds, 0)]
    }


def _is_measured(n_below: int, n: int) -> bool:
    return n > 0 and BAD_SHARE_RANGE[0] <= n_below / n <= BAD_SHARE_RANGE[1]


def _gain_of(
    fused: np.ndarray, scores: np.ndarray, dice: np.ndarray, cases: np.ndarray, rng: np.random.Generator
) -> list[float | None]:
    """The interval of Spearman of the fusion less that of other scores, both of the same redraws of the labels (N,)
    that both rank.
    """
    all_three = np.isfinite(fused) & np.isfinite(scores) & np.isfinite(dice)
    counts = redraw_cases(cases[all_three], rng)
    of_fused, of_scores, truth = (ranks_of(values[all_three], counts) for values in (fused, scores, dice))
    return interval(spearmans(of_fused, truth, counts) - spearmans(of_scores, truth, counts))


def _risks(s: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(n,) mean 1 - Dice of the best label by its score, of the best two, and so on."""
    return np.cumsum(1 - d[np.argsort(-s, kind="stable")]) / np.arange(1, len(d) + 1)
