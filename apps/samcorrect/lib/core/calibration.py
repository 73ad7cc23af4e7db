"""From a quality score to an expected Dice with a 90% interval: a prior, then what approved labels make of it."""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

COVERAGE = 0.9
# Before enough approvals nothing measured bounds the error; the interval is at least this wide to either side.
PRIOR_MIN_HALF_WIDTH = 0.1
# Two-sided 90% of a normal deviate.
Z_90 = 1.645
# With fewer, no order statistic of the residuals covers 90%: ceil((n + 1) 0.9) exceeds n.
MIN_APPROVED = 9
# Two readers differ by about this much: a Dice of 0.995 says no more of a label than 0.99.
MIN_ERROR = 0.01


@dataclass(frozen=True)
class ExpectedDice:
    """Expected Dice of each label with the bounds of a 90% interval, all (N,) in [0, 1]; nan where the score is.

    Attributes:
        mean: The expectation (calibrated, it is the median).
        low, high: The bounds.
        n_approved: (N,) int, approved labels that each was calibrated with; 0 means that it is a prior.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_approved: np.ndarray


def expect_dice(
    scores: np.ndarray, reference_dice: np.ndarray, approved_scores: np.ndarray, approved_dice: np.ndarray
) -> ExpectedDice:
    """What the scores of one structure's labels say of their Dice.

    Args:
        scores: (N,) in [0, 1] or nan.
        reference_dice: (N,) Dice of label and who is believed to be about right (out-of-fold students, or SAM's
            prompts), or nan: the prior.
        approved_scores: (n,) scores of labels that were drawn at random and then seen by a person. Labels that were
            served worst first must not be among them: they are not exchangeable with the others.
        approved_dice: (n,) Dice of those labels with what the person made of them, or nan.

    Returns:
        Calibrated from MIN_APPROVED approved labels on, else the prior.
    """
    prior = prior_expected_dice(scores, reference_dice)
    known = np.isfinite(approved_scores) & np.isfinite(approved_dice)
    if known.sum() < MIN_APPROVED or not np.isfinite(prior.mean).any():
        return prior
    at_approved = _prior_mean(approved_scores[known], scores, reference_dice)
    return _calibrate(prior.mean, at_approved, approved_dice[known])


def nothing_expected(n_labels: int) -> ExpectedDice:
    """Of labels about whose Dice nothing is said."""
    return ExpectedDice(*(np.full(n_labels, np.nan) for _ in range(3)), np.zeros(n_labels, int))


def each_of_its_kind(kinds: np.ndarray, one: ExpectedDice, other: ExpectedDice) -> ExpectedDice:
    """Of the labels of which (N,) bool `kinds` is false what `one` says, of the others what `other` does."""
    pairs = ((one.mean, other.mean), (one.low, other.low), (one.high, other.high), (one.n_approved, other.n_approved))
    return ExpectedDice(*(np.where(kinds, b, a) for a, b in pairs))


def prior_expected_dice(scores: np.ndarray, reference_dice: np.ndarray) -> ExpectedDice:
    """What the score says of the Dice as long as too few approved labels can calibrate it.

    The Dice with the reference, made monotone in the score. It assumes that the reference is about right; a bias that
    it shares with the label is not seen, so this is a prior and is reported as one.

    Args:
        scores: (N,) in [0, 1] or nan.
        reference_dice: (N,) Dice of label and reference, or nan.

    Returns:
        nan everywhere where no label has both.
    """
    mean = _prior_mean(scores, scores, reference_dice)
    both = np.isfinite(scores) & np.isfinite(reference_dice)
    if not both.any():
        return ExpectedDice(mean, mean.copy(), mean.copy(), np.zeros(mean.shape, int))
    half_width = max(PRIOR_MIN_HALF_WIDTH, Z_90 * float(np.std(reference_dice[both] - mean[both])))
    low, high = np.clip(mean - half_width, 0, 1), np.clip(mean + half_width, 0, 1)
    return ExpectedDice(mean, low, high, np.zeros(mean.shape, int))


def _prior_mean(at: np.ndarray, scores: np.ndarray, reference_dice: np.ndarray) -> np.ndarray:
    """Isotonic regression of the Dice with the reference on the score, read off `at` other scores; nan where not
    defined.
    """
    both = np.isfinite(scores) & np.isfinite(reference_dice)
    mean = np.full(at.shape, np.nan)
    defined = np.isfinite(at)
    if both.any() and defined.any():
        regression = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(
            scores[both], reference_dice[both]
        )
        mean[defined] = regression.predict(at[defined])
    return mean


def _calibrate(prior_mean: np.ndarray, prior_at_approved: np.ndarray, approved_dice: np.ndarray) -> ExpectedDice:
    """Correct the prior by approved labels, and bound it by the jackknife.

    The logarithm of the error, 1 - Dice, is a line in that of the prior's error: its spread is about the same for good
    and bad labels, where the spread of the Dice itself is not, so that one quantile of the residuals gives narrow
    intervals to good labels and wide ones to bad ones. The line is drawn towards the prior itself (no shift, slope 1)
    by as much as one approved label weighs: the unit information prior of Kass and Wasserman (1995). Residuals are
    those of the line without the label itself (the jackknife of Barber et al., 2021); their ceil((n + 1) 0.9)-th is the
    bound of split conformal prediction, at no cost of labels held back.
    """
    x, y = _log_error(prior_at_approved), _log_error(approved_dice)
    n = len(y)
    bound = np.sort(_left_out_residuals(x, y))[math.ceil((n + 1) * COVERAGE) - 1]
    intercept, slope = _line(n, x.sum(), y.sum(), (x**2).sum(), (x * y).sum())
    line = intercept + slope * _log_error(prior_mean)
    mean, low, high = (1 - np.exp(line + shift) for shift in (0.0, bound, -bound))
    # An error below what readers differ by can be nothing at all.
    high = np.where(high >= 1 - MIN_ERROR, 1.0, high)
    return ExpectedDice(*(np.clip(values, 0, 1) for values in (mean, low, high)), np.full(mean.shape, n))


def _left_out_residuals(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) how far each observation lies from the line of the others."""
    others = (of.sum() - of for of in (x, y, x**2, x * y))
    intercept, slope = _line(len(x) - 1, *others)
    return np.abs(y - intercept - slope * x)


def _line(n: int, x: np.ndarray, y: np.ndarray, xx: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope of the least-squares line of n observations, drawn towards y = x by the weight of one.

    Takes the sums of x, y, their square and their product, of one line or of many.
    """
    center = x / n
    level = (y + center) / (n + 1)  # at the centre
    spread = xx - x * center
    is_spread = spread > 1e-9 * xx  # else what is left is rounding
    slope = np.divide(xy - center * y + spread / n, spread + spread / n, out=np.ones_like(spread), where=is_spread)
    slope = np.maximum(slope, 0.0)
    return level - slope * center, slope


def _log_error(dice: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(1 - dice, MIN_ERROR))
