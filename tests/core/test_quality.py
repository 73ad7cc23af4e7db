"""Every feature by hand on small masks."""

import numpy as np
import pytest

from samcorrect.lib.core.quality import (
    band_softmin,
    cohort_typicality,
    confidence_agreement,
    edge_contrast,
    label_features,
    log_area_ratio,
    neighbour_dice,
    outline_ratio,
    pairwise_dice,
    peer_surface_dice,
    prompt_agreement,
    prompt_dice,
    robust_z,
    slice_center,
    structure_doubts,
    surface_tolerance_px,
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
    assert peer_surface_dice(EMPTY, EMPTY) == 1.0
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


def test_log_area_ratio_by_hand():
    assert log_area_ratio(square(1, 4), square(5, 8)) == log_area_ratio(EMPTY, EMPTY) == 0.0
    assert log_area_ratio(square(1, 5), square(1, 4)) == pytest.approx(np.log(13 / 10))
    assert log_area_ratio(EMPTY, square(1, 4)) == -log_area_ratio(square(1, 4), EMPTY) == pytest.approx(-np.log(10))


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


def overlaps_of(masks):
    return pairwise_dice(np.stack(masks))


def test_pairwise_dice_by_hand():
    a, b = square(1, 4), square(2, 5)

    # An empty mask overlaps with nothing, not even with itself.
    expected = [[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(overlaps_of([a, b, EMPTY]), expected, rtol=1e-6)


def test_prompt_agreement_by_hand():
    a, b = square(1, 4), square(2, 5)

    # Dice of a and b 2/3; the pairs are (a, b), (a, a), (b, a).
    assert prompt_agreement(overlaps_of([a, b, a])) == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_confidence_that_other_prompts_confirm_and_that_they_contradict():
    # Twice the same pixel and once another: the first two have a mean Dice of 1 / 3 with the three, the other 0.
    overlaps = overlaps_of([pixel(1, 1), pixel(1, 1), pixel(2, 2)])
    assert confidence_agreement(overlaps, np.array([0.9, 0.9, 0.4])) == pytest.approx(1)
    assert confidence_agreement(overlaps, np.array([0.4, 0.4, 0.9])) == pytest.approx(-1)
    assert confidence_agreement(overlaps, np.array([0.4, 0.9, 0.65])) == pytest.approx(0)


def test_confidence_agreement_where_nothing_can_be_said():
    overlaps = overlaps_of([pixel(1, 1), pixel(1, 1), pixel(2, 2)])
    assert np.isnan(confidence_agreement(overlaps, np.full(3, 0.5)))
    assert np.isnan(confidence_agreement(overlaps_of([FULL, FULL, FULL]), np.array([0.1, 0.2, 0.3])))
    # Each of five shares two of its three pixels with each other: all are confirmed alike, in whatever order one adds.
    alike = [pixel(1, 1) | pixel(1, 2) | pixel(5, number) for number in range(5)]
    assert np.isnan(confidence_agreement(overlaps_of(alike), np.array([0.1, 0.2, 0.3, 0.4, 0.5])))
    assert np.isnan(confidence_agreement(overlaps_of([pixel(1, 1), pixel(2, 2), EMPTY]), np.array([0.1, 0.2, 0.3])))


def test_prompt_agreement_with_empty_masks():
    a = square(1, 4)

    # The pairs are (a, a) with 1 and twice (a, empty) with 0.
    assert prompt_agreement(overlaps_of([a, a, EMPTY])) == pytest.approx(1 / 3)
    assert np.isnan(prompt_agreement(overlaps_of([a, EMPTY, EMPTY])))
    assert np.isnan(prompt_agreement(overlaps_of([EMPTY, EMPTY])))
    assert prompt_agreement(overlaps_of([FULL, FULL])) == 1.0
    assert prompt_agreement(overlaps_of([pixel(1, 1), pixel(2, 2)])) == 0.0


def test_robust_z_by_hand():
    # The median of 0 to 4 is 2, the median deviation 1.
    np.testing.assert_allclose(robust_z(np.array([0, 1, 2, 3, 4, NAN])), np.array([-2, -1, 0, 1, 2, NAN]) / 1.4826)


def test_robust_z_where_more_than_half_are_equal_is_in_mean_deviations():
    # The mean deviation of 4 values from 5 is 2.
    np.testing.assert_allclose(robust_z(np.array([5.0, 5, 5, 13])), np.array([0, 0, 0, 8]) / (1.2533 * 2))


def test_robust_z_without_spread_or_values():
    np.testing.assert_array_equal(robust_z(np.array([3.0, 3.0, NAN])), [0, 0, NAN])
    np.testing.assert_array_equal(robust_z(np.array([5.0])), [0])
    np.testing.assert_array_equal(robust_z(np.array([NAN, NAN])), [NAN, NAN])


def test_cohort_typicality_by_hand():
    # The values are 0 to 4: z = -2, -1, 0, 1, 2 over 1.4826, so exp(-z^2 / 2) = 0.4025, 0.7966, 1.
    values = np.array([0.0, 1, 2, 3, 4])
    expected = [0.4025, 0.7966, 1, 0.7966, 0.4025]

    np.testing.assert_allclose(cohort_typicality(values[:, None]), expected, atol=1e-4)
    # The mean of z^2 and 0 halves the exponent, that of z^2 and nothing, as all have the same, does not.
    pair = np.stack([values, np.array([7, 7, 7, 7, 7.0])], 1)
    np.testing.assert_allclose(cohort_typicality(pair), expected, atol=1e-4)
    pair[:, 1] = [3, 1, 2, 1, 3]
    np.testing.assert_allclose(cohort_typicality(pair)[2], 1, atol=1e-4)
    np.testing.assert_allclose(cohort_typicality(pair)[0], np.exp(-0.25 * (4 + 1) / 1.4826**2), atol=1e-4)


def test_an_empty_mask_is_as_ordinary_as_empty_masks_are_frequent():
    one_of_eight = np.array([[1.0]] * 7 + [[NAN]])
    np.testing.assert_array_equal(cohort_typicality(one_of_eight), [1] * 7 + [0.25])
    # Nothing is usual of one mask, but empty ones are.
    np.testing.assert_array_equal(cohort_typicality(np.array([[1.0], [NAN], [NAN]])), [NAN, 1, 1])
    assert np.isnan(cohort_typicality(np.array([[1.0], [2.0]]))).all()
    assert np.isnan(cohort_typicality(np.full((3, 2), NAN))).all()


def test_cohort_typicality_of_equal_and_of_absurd_values():
    np.testing.assert_array_equal(cohort_typicality(np.full((4, 1), 50.0)), np.ones(4))
    extreme = cohort_typicality(np.array([[9.0], [10.0], [11.0], [12.0], [1e9]]))
    assert 0 <= extreme[-1] < 1e-6


def test_where_an_image_ends_is_no_edge(rng):
    noise = rng.random((1, 48, 48))
    square = np.zeros((1, 128, 128), bool)
    square[:, 30:48, 10:30] = True
    inside = np.roll(square, -15, axis=1)
    padded = np.pad(noise, ((0, 0), (0, 80), (0, 80)))

    assert abs(edge_contrast(square, noise) - edge_contrast(inside, noise)) < 0.05
    assert edge_contrast(square, padded) > edge_contrast(square, noise) + 0.05
    assert np.isnan(edge_contrast(np.roll(square, 60, axis=1), noise))  # all of it lies in the padding


def test_the_centre_along_the_slices_by_hand():
    mask = np.zeros((4, 12, 12), bool)
    mask[0, :1, 0], mask[3, :3, 0] = True, True
    # (1 x 0.5 + 3 x 3.5) / 4 of 4 slices.
    assert slice_center(mask) == pytest.approx(11 / 16)
    assert slice_center(FULL) == 0.5
    assert np.isnan(slice_center(EMPTY))


@pytest.mark.parametrize(
    ("spacing_mm", "shape_hw", "expected"),
    [
        (None, (512, 512), 2.0),
        ((1.0, 1.0, 1.0), (256, 256), 1.0),
        ((0.7, 0.7, 2.0), (512, 512), 1.0),
        ((0.7, 0.7, 2.0), (256, 200), 2 / 1.4),
        ((0.9, 0.9, 1.0), (64, 64), 2.0),
    ],
    ids=[
        "no spacing is told: two pixels",
        "2 mm are a pixel, though the spacing looks like none",
        "2 mm are less than a pixel of 2.8 mm",
        "2 mm of 1.4 mm pixels",
        "2 mm are 4.4 pixels",
    ],
)
def test_the_tolerance_is_2_mm_within_what_the_frame_shows(spacing_mm, shape_hw, expected):
    assert surface_tolerance_px(spacing_mm, shape_hw, 128) == pytest.approx(expected)


def test_prompt_dice_by_hand():
    a, b = square(1, 4), square(2, 5)

    # Dice of a and b is 2/3. As sure of both: their mean; by 0.03 surer of a: it is e times as likely.
    assert prompt_dice(b, np.stack([a, b]), np.array([0.6, 0.6])) == pytest.approx((2 / 3 + 1) / 2)
    assert prompt_dice(b, np.stack([a, b]), np.array([0.63, 0.6])) == pytest.approx((2 / 3 * np.e + 1) / (np.e + 1))
    # SAM is sure of a alone.
    assert prompt_dice(b, np.stack([a, b]), np.array([0.95, 0.3])) == pytest.approx(2 / 3, abs=1e-5)
    assert prompt_dice(EMPTY, np.stack([a, a]), np.array([0.4, 0.6])) == 0.0
    assert prompt_dice(EMPTY, np.stack([EMPTY, EMPTY]), np.array([0.4, 0.6])) == 1.0
    assert np.isnan(prompt_dice(a, np.stack([a, b]), np.zeros(2)))


def test_an_outline_on_an_edge_has_more_contrast_than_one_beside_it():
    frames = np.zeros((1, 32, 32))
    frames[0, 8:24, 8:24] = 1
    on_edge, inside = np.zeros((2, 1, 32, 32), bool)
    on_edge[0, 8:24, 8:24] = True
    inside[0, 12:20, 12:20] = True

    # The edge is blurred over a few pixels; the smaller square has the edge 4 px away, in its outer band.
    assert edge_contrast(on_edge, frames) > 0.8
    assert edge_contrast(inside, frames) < 0.2
    assert np.isnan(edge_contrast(on_edge, np.zeros_like(frames)))
    assert np.isnan(edge_contrast(EMPTY, np.ones(EMPTY.shape)))


def test_neighbour_dice_by_hand():
    a, b = square(1, 4), square(2, 5)

    assert neighbour_dice(np.concatenate([EMPTY, a, b, b, EMPTY])) == pytest.approx((2 / 3 + 1) / 2)
    assert neighbour_dice(np.concatenate([a, EMPTY, a])) == 0.0
    assert np.isnan(neighbour_dice(np.concatenate([EMPTY, a])))
    assert np.isnan(neighbour_dice(EMPTY))


def test_outline_ratio_by_hand():
    # A square of 3 x 3 has 8 outline pixels, a pixel itself one.
    assert outline_ratio(square(1, 4)) == pytest.approx(8 / 3)
    assert outline_ratio(np.concatenate([square(1, 4), EMPTY, pixel(5, 5)])) == pytest.approx((8 / 3 + 1) / 2)
    assert np.isnan(outline_ratio(EMPTY))


@pytest.mark.parametrize(
    ("peers", "prompts", "edges", "expected"),
    [
        ([0.7, 0.7, 0.9], [0.7, 0.7, 0.7], [0.6, 0.6, 0.6], ("present_peer_dice", "prompt_agreement")),
        ([0.7, 0.7, 0.9], [0.9, 0.9, NAN], [0.6, 0.6, 0.6], ()),
        ([0.9, 0.9, 0.9], [0.9, 0.9, NAN], [0.4, 0.4, 0.4], ()),
        ([0.7, 0.7, NAN], [NAN, NAN, NAN], [0.6, 0.6, 0.6], ("present_peer_dice",)),
        ([NAN, NAN, NAN], [NAN, NAN, NAN], [NAN, NAN, NAN], ()),
    ],
    ids=["two of three", "one of three", "the image alone", "one of two", "nobody knows anything"],
)
def test_a_structure_is_doubtful_where_half_of_the_witnesses_stand_against_it(peers, prompts, edges, expected):
    features = {"present_peer_dice": peers, "prompt_agreement": prompts, "edge_contrast": edges, "stability": [0.1] * 3}

    assert structure_doubts({name: np.array(values) for name, values in features.items()}) == expected


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
