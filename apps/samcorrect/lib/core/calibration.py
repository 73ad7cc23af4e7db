"""From a quality score to an expected Dice with an interval, before a person has approved anything."""

from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

# Before the first approvals nothing measured bounds the error; the interval is at least this wide to either side.
PRIOR_MIN_HALF_WIDTH = 0.1
# Two-sided 90% of a normal deviate.
Z_90 = 1.645


@dataclass(frozen=True)
class ExpectedDice:
    """Expected Dice of each label with the bounds of a 90% interval, all (N,) in [0, 1]; nan where the score is."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def prior_expected_dice(scores: np.ndarray, peer_dice: np.ndarray) -> ExpectedDice:
    """What the score says of the Dice as long as no approved label can calibrate it.

    The Dice with the out-of-fold peer, made monotone in the score. It assumes that the peer is about right; a bias that
    label and peer share is not seen, so this is a prior and is reported as one.

    Args:
        scores: (N,) in [0, 1] or nan.
        peer_dice: (N,) Dice of label and peer, or nan.

    Returns:
        nan everywhere where no label has both.
    """
    both = np.isfinite(scores) & np.isfinite(peer_dice)
    mean = np.full(scores.shape, np.nan)
    if not both.any():
        return ExpectedDice(mean, mean.copy(), mean.copy())
    regression = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores[both], peer_dice[both])
    defined = np.isfinite(scores)
    mean[defined] = regression.predict(scores[defined])
    half_width = max(PRIOR_MIN_HALF_WIDTH, Z_90 * float(np.std(peer_dice[both] - mean[both])))
    return ExpectedDice(mean, np.clip(mean - half_width, 0, 1), np.clip(mean + half_width, 0, 1))
