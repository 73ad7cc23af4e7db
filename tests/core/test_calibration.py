"""The expected Dice: a prior that is monotone in the score and honest in its width, then calibrated by approvals."""

import numpy as np
import pytest

from samcorrect.lib.core.calibration import (
    MIN_APPROVED,
    PRIOR_MIN_HALF_WIDTH,
    each_of_its_kind,
    expect_dice,
    prior_expected_dice,
)

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


# Calibration


def test_what_bounds_the_error_is_how_far_each_label_lies_from_the_line_of_the_others(rng):
    """With nine approvals the bound is the largest of these residuals; written out, one line at a time."""
    dice = rng.uniform(0.5, 0.98, MIN_APPROVED)
    scores = np.linspace(0.3, 0.95, MIN_APPROVED)
    expected = expect_dice(scores, scores, scores, dice)
    x, y = np.log(1 - scores), np.log(1 - dice)
    residuals = []
    for number in range(MIN_APPROVED):
        others, n = np.arange(MIN_APPROVED) != number, MIN_APPROVED - 1
        center = x[others].mean()
        level = (y[others].sum() + center) / (n + 1)
        spread = ((x[others] - center) ** 2).sum()
        slope = max(0, (((x[others] - center) * y[others]).sum() + spread / n) / (spread + spread / n))
        residuals.append(abs(y[number] - level - slope * (x[number] - center)))

    is_inside = (expected.low > 0) & (expected.high < 1)
    assert is_inside.sum() > 3
    half_width = np.log(1 - expected.low) - np.log(1 - expected.mean)
    np.testing.assert_allclose(half_width[is_inside], max(residuals), rtol=1e-6)


def test_nine_approved_labels_that_agree_with_the_prior_leave_it_where_it_is():
    scores = np.linspace(0.1, 0.9, 9)
    dice = 1 - 0.5 * (1 - scores)
    expected = expect_dice(scores, dice, scores, dice)

    # y = x exactly, so the line is the identity, every residual is 0, and the interval has no width.
    np.testing.assert_allclose(expected.mean, dice, atol=1e-6)
    np.testing.assert_allclose(expected.low, dice, atol=1e-6)
    assert (expected.n_approved == 9).all()


def test_labels_twice_as_bad_as_their_peers_say_are_expected_to_be_nearly_so():
    scores = np.linspace(0.1, 0.9, 9)
    peer_dice = np.full(9, 0.9)
    expected = expect_dice(scores, peer_dice, scores, np.full(9, 0.8))

    # All x are log 0.1 and all y log 0.2. The level is (9 log 0.2 + log 0.1) / 10 = log 0.2 - log(2) / 10, so the error
    # is 0.2 / 2^0.1 = 0.18661. A left-out residual is log(2) / 9, so the bounds are 0.18661 x 2^(+-1/9).
    np.testing.assert_allclose(expected.mean, 1 - 0.18661, atol=1e-5)
    np.testing.assert_allclose(expected.low, 1 - 0.18661 * 2 ** (1 / 9), atol=1e-5)
    np.testing.assert_allclose(expected.high, 1 - 0.18661 / 2 ** (1 / 9), atol=1e-5)


def test_below_nine_approvals_and_with_undefined_ones_the_prior_stands():
    scores, peer_dice = np.array([0.2, 0.5, 0.8]), np.array([0.4, 0.6, 0.9])
    approved = np.append(np.linspace(0.2, 0.8, MIN_APPROVED - 1), [NAN, 0.5])
    dice = np.append(np.full(MIN_APPROVED, 0.9), NAN)
    expected, prior = expect_dice(scores, peer_dice, approved, dice), prior_expected_dice(scores, peer_dice)

    np.testing.assert_array_equal(expected.low, prior.low)
    assert not expected.n_approved.any()
    assert not prior.n_approved.any()


def test_approved_labels_say_nothing_where_no_label_has_a_peer():
    nothing = np.full(3, NAN)
    expected = expect_dice(np.array([0.2, 0.5, 0.8]), nothing, np.linspace(0, 1, 20), np.linspace(0, 1, 20))
    assert np.isnan(expected.mean).all()
    assert not expected.n_approved.any()


def test_labels_that_were_approved_as_they_were_are_expected_to_be_right_up_to_what_readers_differ_by():
    scores = np.linspace(0.5, 0.9, 20)
    expected = expect_dice(scores, scores, scores, np.ones(20))
    assert (expected.mean > 0.97).all()
    np.testing.assert_array_equal(expected.high, 1.0)


def biased_cohort(rng: np.random.Generator, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, Dice with peers that share half of each label's error, and true Dice of labels of a wide spread."""
    error = np.clip(np.exp(rng.normal(-2.2, 0.9, n)), 0, 1)
    seen = np.clip(error * 0.5 * np.exp(rng.normal(0, 0.3, n)), 0, 1)
    return 1 - seen + rng.normal(0, 0.01, n), 1 - seen, 1 - error


def test_twenty_random_approvals_cover_ninety_percent_of_the_rest_whatever_the_peers_share(rng):
    scores, peer_dice, dice = biased_cohort(rng)
    covered, widths, errors, blind_widths, blind_errors, prior_covered = [], [], [], [], [], []
    prior = prior_expected_dice(scores, peer_dice)
    for _ in range(200):
        order = rng.permutation(len(dice))
        approved, rest = order[:20], order[20:]
        expected = expect_dice(scores[rest], peer_dice[rest], scores[approved], dice[approved])
        covered.append(((dice[rest] >= expected.low) & (dice[rest] <= expected.high)).mean())
        prior_covered.append(((dice[rest] >= prior.low[rest]) & (dice[rest] <= prior.high[rest])).mean())
        widths.append((expected.high - expected.low).mean())
        errors.append(np.abs(expected.mean - dice[rest]).mean())
        median = np.median(dice[approved])
        bound = np.sort(np.abs(dice[approved] - median))[18]
        blind_widths.append(np.clip(median + bound, 0, 1) - np.clip(median - bound, 0, 1))
        blind_errors.append(np.abs(median - dice[rest]).mean())
    assert 0.88 <= np.mean(covered) <= 0.93
    assert np.mean(widths) < 0.7 * np.mean(blind_widths)
    assert np.mean(errors) < 0.6 * np.mean(blind_errors)
    assert np.mean(prior_covered) < 0.88  # the prior believes the peers, which are biased here


def test_the_calibrated_expectation_never_falls_as_the_score_rises(rng):
    scores, peer_dice, dice = biased_cohort(rng)
    expected = expect_dice(scores, peer_dice, scores[:30], rng.permutation(dice)[:30])
    assert (np.diff(expected.mean[np.argsort(scores)]) >= -1e-12).all()
    assert ((expected.low <= expected.mean) & (expected.mean <= expected.high)).all()
    assert ((expected.low >= 0) & (expected.high <= 1)).all()


def test_labels_of_two_kinds_get_what_is_said_of_theirs():
    scores = np.linspace(0.5, 0.95, 12)
    calibrated, prior = expect_dice(scores, scores, scores, scores), prior_expected_dice(scores, scores)
    is_other = np.arange(12) % 2 == 1

    told = each_of_its_kind(is_other, calibrated, prior)

    for name in ("mean", "low", "high", "n_approved"):
        values, one, other = (getattr(expected, name) for expected in (told, calibrated, prior))
        np.testing.assert_array_equal(values[~is_other], one[~is_other])
        np.testing.assert_array_equal(values[is_other], other[is_other])
    assert told.n_approved.tolist() == [12, 0] * 6
