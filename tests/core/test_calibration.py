"""The prior of the expected Dice: monotone in the score, honest in its width, silent where nothing is known."""

import numpy as np
import pytest

from samcorrect.lib.core.calibration import PRIOR_MIN_HALF_WIDTH, prior_expected_dice

NAN = float("nan")


def test_the_expected_dice_is_the_isotonic_fit_of_the_peer_dice():
    expected = prior_expected_dice(np.array([0.2, 0.4, 0.6, 0.8]), np.array([0.5, 0.9, 0.7, 1.0]))

    # 0.9 then 0.7 is out of order, so both become 0.8. The residuals are 0, 0.1, -0.1, 0: their SD is sqrt(0.02 / 4) =
    # 0.0707, and the half width 1.645 x 0.0707 = 0.1163.
    np.testing.assert_allclose(expected.mean, [0.5, 0.8, 0.8, 1.0], atol=1e-6)
    np.testing.assert_allclose(expected.low, [0.3837, 0.6837, 0.6837, 0.8837], atol=1e-4)
    np.testing.assert_allclose(expected.high, [0.6163, 0.9163, 0.9163, 1.0], atol=1e-4)


def test_a_perfect_fit_still_has_the_least_half_width():
    expected = prior_expected_dice(np.array([0.2, 0.5]), np.array([0.4, 0.6]))

    np.testing.assert_allclose(expected.mean - expected.low, PRIOR_MIN_HALF_WIDTH)
    np.testing.assert_allclose(expected.high - expected.mean, PRIOR_MIN_HALF_WIDTH)


def test_a_label_without_peer_is_placed_by_its_score_and_one_without_score_is_not():
    expected = prior_expected_dice(np.array([0.2, 0.4, 0.3, NAN, 0.9, 0.0]), np.array([0.4, 0.6, NAN, 0.9, NAN, NAN]))

    # 0.3 is half way between the two known scores; 0.9 and 0 lie beyond them and take the nearest.
    np.testing.assert_allclose(expected.mean, [0.4, 0.6, 0.5, NAN, 0.6, 0.4], atol=1e-6)
    np.testing.assert_array_equal(np.isnan(expected.low), np.isnan(expected.mean))
    np.testing.assert_array_equal(np.isnan(expected.high), np.isnan(expected.mean))


@pytest.mark.parametrize(
    ("scores", "peer_dice"),
    [([], []), ([NAN, NAN], [0.5, 0.6]), ([0.5, 0.6], [NAN, NAN]), ([0.5, NAN], [NAN, 0.5])],
    ids=["no labels", "no scores", "no peers", "never both"],
)
def test_nothing_is_expected_where_no_label_has_both(scores, peer_dice):
    expected = prior_expected_dice(np.array(scores), np.array(peer_dice))

    for values in (expected.mean, expected.low, expected.high):
        assert values.shape == (len(scores),)
        assert np.isnan(values).all()


def test_one_label_gives_its_own_dice():
    expected = prior_expected_dice(np.array([0.7]), np.array([0.95]))

    np.testing.assert_allclose([expected.mean[0], expected.low[0], expected.high[0]], [0.95, 0.85, 1.0])


def test_the_expectation_never_falls_as_the_score_rises_and_stays_in_its_interval(rng):
    scores, peer_dice = rng.random(200), rng.random(200)
    scores_before = scores.copy()

    expected = prior_expected_dice(scores, peer_dice)

    assert (np.diff(expected.mean[np.argsort(scores)]) >= 0).all()
    assert (expected.low >= 0).all()
    assert (expected.low <= expected.mean).all()
    assert (expected.mean <= expected.high).all()
    assert (expected.high <= 1).all()
    np.testing.assert_array_equal(scores, scores_before)
