"""Every feature by hand on small masks, and a fusion that a useless feature cannot spoil."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from samcorrect.lib.core.quality import (
    MIN_LABELS_FOR_FUSION,
    band_softmin,
    cohort_typicality,
    fuse_features,
    label_features,
    peer_surface_dice,
    prompt_agreement,
    robust_z,
)

NAN = float("nan")
EMPTY = np.zeros((1, 12, 12), bool)
FULL = np.ones((1, 12, 12), bool)


def square(start: int, stop: int) -> np.ndarray:
    """(1, 12, 12) bool with rows 1 to 3 of some columns."""
    mask = EMPTY.copy()
    mask[0, 1:4, start:stop] = True
    return mask


def pixel(row: int, column: int) -> np.ndarray:
    mask = EMPTY.copy()
    mask[0, row, column] = True
    return mask


def test_peer_surface_dice_by_hand():
    # Squares of 3 x 3 three columns apart, 8 outline pixels each: 3 are 1 px, 2 are 2 px and 3 are 3 px from the
    # other's outline.
    masks = square(1, 4), square(4, 7)

    assert peer_surface_dice(*masks) == pytest.approx(5 / 8)
    assert peer_surface_dice(*masks, tolerance_px=1.0) == pytest.approx(3 / 8)
    assert peer_surface_dice(*masks, tolerance_px=0.0) == 0.0


def test_the_edge_of_the_frame_is_outline():
    # The full frame's outline is its 44 border pixels. A pixel at the corner is within 2 px of 5 of them: itself, 2 and
    # 2.
    assert peer_surface_dice(FULL, pixel(0, 0)) == pytest.approx((5 + 1) / (44 + 1))
    assert peer_surface_dice(FULL, FULL) == 1.0


def test_peer_surface_dice_of_empty_and_one_pixel_masks():
    assert np.isnan(peer_surface_dice(EMPTY, EMPTY))
    assert peer_surface_dice(EMPTY, square(1, 4)) == peer_surface_dice(square(1, 4), EMPTY) == 0.0
    assert peer_surface_dice(pixel(5, 5), pixel(5, 7)) == 1.0
    assert peer_surface_dice(pixel(5, 5), pixel(7, 6)) == 0.0


def test_outlines_are_compared_slice_by_slice():
    stack, peer = np.concatenate([square(1, 4), EMPTY]), np.concatenate([EMPTY, square(1, 4)])

    # In neighbouring slices, but in no slice together.
    assert peer_surface_dice(stack, peer) == 0.0
    # 8 + 8 near pixels in the first slice, 1 unmatched in the second.
    assert peer_surface_dice(np.concatenate([square(1, 4), pixel(5, 5)]), stack) == pytest.approx(16 / 17)


def test_peer_surface_dice_is_symmetric_and_leaves_its_arguments(rng):
    mask, peer = rng.random((2, 3, 12, 12)) > 0.5
    mask_before = mask.copy()

    assert peer_surface_dice(mask, peer) == peer_surface_dice(peer, mask)
    assert 0 <= peer_surface_dice(mask, peer) <= 1
    np.testing.assert_array_equal(mask, mask_before)


def test_band_softmin_by_hand():
    mask = pixel(5, 5)

    # The band of a pixel is the 7 x 7 around it. A peer that sees nothing agrees with 48 of them fully (weight 1 each)
    # and with the pixel itself not at all (weight e^10): 48 / (48 + 22026.47).
    assert band_softmin(mask, np.zeros(mask.shape)) == pytest.approx(48 / (48 + 22026.47), rel=1e-5)
    assert band_softmin(mask, mask.astype(np.float32)) == pytest.approx(1.0)
    assert band_softmin(mask, np.full(mask.shape, 0.3)) == pytest.approx(
        (0.3 * np.exp(7) + 48 * 0.7 * np.exp(3)) / (np.exp(7) + 48 * np.exp(3))
    )


def test_band_softmin_of_empty_and_full_masks():
    assert np.isnan(band_softmin(EMPTY, np.zeros(EMPTY.shape)))
    assert band_softmin(FULL, np.full(FULL.shape, 0.25)) == pytest.approx(0.25)


def test_band_softmin_sees_the_band_and_nothing_beyond():
    mask, peer_prob = pixel(5, 5), pixel(5, 5).astype(np.float64)
    inside, outside = peer_prob.copy(), peer_prob.copy()
    inside[0, 5, 8] = 0.9
    outside[0, 5, 9] = 0.9

    assert band_softmin(mask, inside) < 0.5
    assert band_softmin(mask, outside) == band_softmin(mask, peer_prob)


def test_the_band_stays_in_its_slice():
    mask = np.concatenate([pixel(5, 5), EMPTY])
    peer_prob = np.concatenate([pixel(5, 5), FULL]).astype(np.float64)

    assert band_softmin(mask, peer_prob) == pytest.approx(1.0)


def test_prompt_agreement_by_hand():
    a, b = square(1, 4), square(2, 5)

    # Dice of a and b 2/3; the pairs are (a, b), (a, a), (b, a).
    assert prompt_agreement(np.stack([a, b, a])) == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_prompt_agreement_with_empty_masks():
    a = square(1, 4)

    # The pairs are (a, a) with 1 and twice (a, empty) with 0.
    assert prompt_agreement(np.stack([a, a, EMPTY])) == pytest.approx(1 / 3)
    assert np.isnan(prompt_agreement(np.stack([a, EMPTY, EMPTY])))
    assert np.isnan(prompt_agreement(np.stack([EMPTY, EMPTY])))
    assert prompt_agreement(np.stack([FULL, FULL])) == 1.0
    assert prompt_agreement(np.stack([pixel(1, 1), pixel(2, 2)])) == 0.0


def test_robust_z_by_hand():
    # The median of 0 to 4 is 2, the median deviation 1.
    np.testing.assert_allclose(robust_z(np.array([0, 1, 2, 3, 4, NAN])), np.array([-2, -1, 0, 1, 2, NAN]) / 1.4826)


def test_robust_z_without_spread_or_values():
    np.testing.assert_array_equal(robust_z(np.array([3.0, 3.0, NAN])), [0, 0, NAN])
    np.testing.assert_array_equal(robust_z(np.array([5.0])), [0])
    np.testing.assert_array_equal(robust_z(np.array([NAN, NAN])), [NAN, NAN])


def test_cohort_typicality_by_hand():
    # The logarithms are 0 to 4: z = -2, -1, 0, 1, 2 over 1.4826, so exp(-z^2 / 2) = 0.4025, 0.7966, 1.
    typicality = cohort_typicality(np.array([*np.exp([0, 1, 2, 3, 4]), 0, NAN]))

    np.testing.assert_allclose(typicality, [0.4025, 0.7966, 1, 0.7966, 0.4025, NAN, NAN], atol=1e-4)


def test_cohort_typicality_of_equal_of_no_and_of_absurd_values():
    np.testing.assert_array_equal(cohort_typicality(np.full(4, 50.0)), np.ones(4))
    assert np.isnan(cohort_typicality(np.array([0.0, NAN]))).all()
    extreme = cohort_typicality(np.array([9.0, 10.0, 11.0, 12.0, 1e9]))
    assert 0 <= extreme[-1] < 1e-6


@pytest.mark.parametrize("n_labels", [1, MIN_LABELS_FOR_FUSION - 1])
def test_few_labels_get_equal_weights(rng, n_labels):
    features = {name: rng.random(n_labels) for name in "abc"}

    fusion = fuse_features(features)

    assert fusion.weights == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert np.isnan(list(fusion.correlations.values())).all()
    np.testing.assert_allclose(fusion.scores, np.mean(list(features.values()), 0))


def test_two_features_cannot_tell_which_is_wrong_and_get_equal_weights(rng):
    fusion = fuse_features({"a": rng.random(20), "b": rng.random(20)})

    assert fusion.weights == pytest.approx({"a": 0.5, "b": 0.5})


def test_a_feature_against_the_others_gets_no_weight():
    rising = np.linspace(0.1, 0.9, 10)

    fusion = fuse_features({"a": rising, "b": rising**2, "against": 1 - rising})

    # Mean ranks: a against (b + against), which is constant, and so b; "against" against (a + b) is -1. Nothing is
    # left: equal weights.
    assert fusion.weights == pytest.approx({"a": 1 / 3, "b": 1 / 3, "against": 1 / 3})
    fusion = fuse_features({"a": rising, "b": rising**2, "c": np.sqrt(rising), "against": 1 - rising})
    # Now the others of a, b and c rise: each has rho 1, "against" has -1.
    assert fusion.weights == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3, "against": 0})
    assert fusion.correlations["against"] == pytest.approx(-1)
    np.testing.assert_allclose(fusion.scores, (rising + rising**2 + np.sqrt(rising)) / 3)


def test_an_undefined_value_is_left_out_of_its_labels_mean():
    fusion = fuse_features({"a": np.array([0.2, NAN, NAN]), "b": np.array([0.6, 0.4, NAN])})

    np.testing.assert_allclose(fusion.scores, [0.4, 0.4, NAN])


def test_a_label_with_nothing_but_a_feature_without_weight_has_no_score():
    rising = np.linspace(0.1, 0.9, 10)
    features = {"a": rising, "b": rising**2, "c": np.sqrt(rising), "against": 1 - rising}

    fusion = fuse_features(
        {name: np.append(values, NAN if name != "against" else 0.7) for name, values in features.items()}
    )

    assert fusion.weights["against"] == 0
    assert np.isnan(fusion.scores[-1])
    assert np.isfinite(fusion.scores[:-1]).all()


def test_a_feature_that_is_nowhere_defined_is_no_feature(rng):
    defined = {name: rng.random(12) for name in "abc"}

    with_nothing = fuse_features({**defined, "nothing": np.full(12, NAN)})

    assert with_nothing.weights == fuse_features(defined).weights
    np.testing.assert_array_equal(with_nothing.scores, fuse_features(defined).scores)


def test_without_any_feature_no_label_has_a_score():
    fusion = fuse_features({"a": np.full(9, NAN), "b": np.full(9, NAN)})

    assert np.isnan(fusion.scores).all()
    assert fusion.scores.shape == (9,)
    assert fusion.weights == {}


@pytest.mark.filterwarnings("error")
def test_labels_without_any_value_do_not_disturb_the_others(rng):
    features = {name: rng.random(12) for name in "abc"}
    for values in features.values():
        values[4] = NAN

    fusion = fuse_features(features)

    rest = np.arange(12) != 4
    assert np.isnan(fusion.scores[4])
    np.testing.assert_allclose(
        fusion.scores[rest], fuse_features({name: values[rest] for name, values in features.items()}).scores
    )


@pytest.mark.parametrize("useless", ["random", "constant", "random and half of it undefined"])
def test_a_useless_feature_costs_little_rank_correlation_with_the_truth(useless):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = rng.beta(8, 2, 120)
        features = {name: np.clip(truth + rng.normal(0, 0.1, 120), 0, 1) for name in "abc"}
        extra = np.full(120, 0.5) if useless == "constant" else rng.random(120)
        if "undefined" in useless:
            extra[rng.random(120) < 0.5] = NAN

        without = spearmanr(fuse_features(features).scores, truth).statistic
        fusion = fuse_features({**features, "useless": extra})

        assert spearmanr(fusion.scores, truth).statistic > without - 0.05
        assert fusion.weights["useless"] < min(fusion.weights[name] for name in "abc") / 3


def test_fused_scores_and_weights_are_shares_and_nothing_is_changed(rng):
    features = {name: np.where(rng.random(50) < 0.2, NAN, rng.random(50)) for name in "abcd"}
    before = {name: values.copy() for name, values in features.items()}

    fusion = fuse_features(features)

    defined = fusion.scores[np.isfinite(fusion.scores)]
    assert defined.min() >= 0
    assert defined.max() <= 1
    assert sum(fusion.weights.values()) == pytest.approx(1)
    for name in features:
        np.testing.assert_array_equal(features[name], before[name])


def test_label_features_are_those_of_their_functions():
    mask, peer = square(1, 4), square(2, 5)
    peer_prob = 0.8 * peer

    features = label_features(mask, peer_prob, peer)

    assert features["peer_surface_dice"] == peer_surface_dice(mask, peer)
    assert features["peer_dice"] == pytest.approx(2 / 3)
    assert features["band_softmin"] == band_softmin(mask, peer_prob)


def test_a_label_that_missed_the_object_has_low_features():
    features = label_features(EMPTY, 0.9 * square(1, 4), square(1, 4))

    assert features["peer_surface_dice"] == features["peer_dice"] == 0.0
    assert np.isnan(features["band_softmin"])
