"""Correction: the paper's rule and the blend by hand, and a judge that takes nothing on trust."""

import numpy as np
import pytest

from samcorrect.lib.core.correction import (
    KEEP,
    MAX_EDGE_LOSS,
    MIN_GAIN,
    choose_correction,
    huang_correct,
    judge_mask,
    plausible_areas,
    signed_distance_blend,
)
from samcorrect.lib.core.quality import edge_contrast

ANY_AREA = (0.0, float("inf"))
# An image that says nothing.
FLAT = np.zeros((1, 64, 64), np.float32)


def disc(radius: float, *, side: int = 64, center: tuple[float, float] = (32.0, 32.0)) -> np.ndarray:
    """(1, side, side) bool."""
    rows, columns = np.mgrid[:side, :side]
    return ((rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2)[None]


def radius_of(mask: np.ndarray) -> float:
    return float(np.sqrt(mask.sum() / np.pi))


def test_huang_keeps_the_label_where_more_than_a_fifth_of_the_passes_differ():
    target = np.array([[[7, 7, 7, 7]]])
    prediction = np.array([[[1, 1, 1, 1]]])
    # Of five passes 0, 1, 2 and 5 differ from the prediction: uncertainty 0, 0.2, 0.4 and 1.
    passes = np.array([[1, 1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 3], [1, 1, 0, 3], [1, 2, 2, 0]])[:, None, None]

    np.testing.assert_array_equal(huang_correct(target, prediction, passes), [[[1, 1, 7, 7]]])


def test_huang_takes_the_prediction_everywhere_where_all_passes_agree(rng):
    target, prediction = rng.integers(0, 3, (2, 2, 8, 8))

    corrected = huang_correct(target, prediction, np.repeat(prediction[None], 5, 0))

    np.testing.assert_array_equal(corrected, prediction)


def test_the_blend_of_two_discs_is_the_disc_half_way():
    soft = signed_distance_blend(disc(10), disc(20))

    assert radius_of(soft > 0.5) == pytest.approx(15, abs=0.5)
    assert not ((soft > 0.5) & ~disc(16)).any()
    assert not (disc(14) & ~(soft > 0.5)).any()


def test_the_blend_of_a_mask_with_itself_is_that_mask():
    mask = disc(12, center=(20, 40))

    np.testing.assert_array_equal(signed_distance_blend(mask, mask) > 0.5, mask)


def test_the_blend_takes_the_other_mask_where_one_slice_is_empty():
    empty = np.zeros((1, 64, 64), bool)
    mask, other = np.concatenate([disc(10), empty, empty]), np.concatenate([empty, disc(20), empty])

    np.testing.assert_array_equal(signed_distance_blend(mask, other), mask | other)


def test_the_blend_with_a_mask_that_fills_its_slice_is_symmetric():
    # A filled slice has no outline to measure from: scipy's distances are then those to a point outside the array.
    full, small = np.ones((1, 64, 64), bool), disc(5, center=(50, 50))

    one, other = signed_distance_blend(full, small), signed_distance_blend(small, full)

    np.testing.assert_array_equal(one, other)
    assert (one > 0.5)[small].all()
    np.testing.assert_array_equal(one[:, ::-1, ::-1], signed_distance_blend(full, small[:, ::-1, ::-1]))


def test_the_blend_treats_every_slice_alone():
    stack = signed_distance_blend(np.concatenate([disc(10), disc(12)]), np.concatenate([disc(20), disc(8)]))

    np.testing.assert_array_equal(stack[:1], signed_distance_blend(disc(10), disc(20)))
    np.testing.assert_array_equal(stack[1:], signed_distance_blend(disc(12), disc(8)))


def test_the_blend_is_symmetric_in_range_and_leaves_its_arguments(rng):
    mask, other = rng.random((2, 3, 16, 16)) > 0.6
    mask_before = mask.copy()

    soft = signed_distance_blend(mask, other)

    np.testing.assert_array_equal(soft, signed_distance_blend(other, mask))
    assert soft.dtype == np.float32
    assert soft.min() >= 0
    assert soft.max() <= 1
    np.testing.assert_array_equal(mask, mask_before)


def test_the_judge_averages_dice_and_surface_dice():
    mask, judge = np.zeros((2, 1, 12, 12), bool)
    mask[0, 1:4, 1:4] = True
    judge[0, 1:4, 4:7] = True

    # Dice 0. Of the 8 outline pixels of each square those of the nearest column (3) are 1 px, the next column's two are
    # 2 px and the last three are 3 px away: 10 of 16 within 2 px. The mean of 0 and 0.625.
    assert judge_mask(mask, judge) == pytest.approx(0.3125)


def test_the_judge_of_empty_masks():
    empty = np.zeros((1, 64, 64), bool)

    assert judge_mask(empty, empty) == 1.0
    assert judge_mask(disc(10), empty) == 0.0
    assert judge_mask(empty, disc(10)) == 0.0
    assert judge_mask(disc(10), disc(10)) == 1.0


def test_plausible_areas_span_the_cohort_with_slack():
    # All positive areas are 300: both percentiles are 300, the slack is a factor of 1.5; empty and undefined ones do
    # not count.
    assert plausible_areas(np.array([300.0, 300, 300, 0, np.nan])) == pytest.approx((200.0, 450.0))


def test_plausible_areas_are_unbounded_below_three_labels():
    assert plausible_areas(np.array([])) == ANY_AREA
    assert plausible_areas(np.array([100, 200, 0])) == ANY_AREA


def test_the_best_candidate_wins_whatever_the_order():
    judge, old = disc(20), disc(10)
    candidates = {"near": disc(19), "equal": disc(20), "far": disc(14)}

    for names in (("near", "equal", "far"), ("far", "near", "equal"), ("equal", "far", "near")):
        chosen = choose_correction(
            old, {name: candidates[name].astype(np.float32) for name in names}, judge, area_range=ANY_AREA, frames=FLAT
        )

        assert (chosen.name, chosen.is_changed) == ("equal", True)
        assert chosen.score_after == 1.0
        assert chosen.score_before == pytest.approx(judge_mask(old, judge))
        np.testing.assert_array_equal(chosen.soft > 0.5, disc(20))


def test_a_candidate_of_implausible_area_is_passed_over():
    judge, old = disc(20), disc(10)
    candidates = {"equal": disc(20).astype(np.float32), "far": disc(14).astype(np.float32)}

    too_large = choose_correction(old, candidates, judge, area_range=(100.0, 1000.0), frames=FLAT)
    too_small = choose_correction(old, candidates, judge, area_range=(2000.0, 3000.0), frames=FLAT)

    # Areas are about 1257 and 615 pixels.
    assert too_large.name == "far"
    assert not too_small.is_changed


def test_the_old_label_stays_when_the_gain_is_within_the_judges_noise():
    judge = np.zeros((1, 64, 64), bool)
    judge[0, 10:50, 10:50] = True
    nearly, worse = judge.copy(), judge.copy()
    nearly[0, 10, 10] = False
    worse[0, 10:13] = False
    candidates = {"equal": judge.astype(np.float32)}

    # One pixel of 1600 is missing: Dice 0.9997, the judge could gain 0.0002. Three rows missing: Dice 0.961, outline
    # off by 3 px.
    kept = choose_correction(nearly, candidates, judge, area_range=ANY_AREA, frames=FLAT)
    changed = choose_correction(worse, candidates, judge, area_range=ANY_AREA, frames=FLAT)

    assert 1 - judge_mask(nearly, judge) < MIN_GAIN < 1 - judge_mask(worse, judge)
    assert (kept.name, kept.is_changed) == (KEEP, False)
    assert kept.score_before == kept.score_after == judge_mask(nearly, judge)
    np.testing.assert_array_equal(kept.soft, nearly)
    assert changed.name == "equal"


def test_an_empty_candidate_replaces_a_label_only_where_the_judge_sees_nothing():
    old, empty = disc(10), np.zeros((1, 64, 64), np.float32)

    assert choose_correction(old, {"none": empty}, empty > 0, area_range=ANY_AREA, frames=FLAT).name == "none"
    assert not choose_correction(old, {"none": empty}, disc(12), area_range=ANY_AREA, frames=FLAT).is_changed
    assert not choose_correction(old, {"none": empty}, empty > 0, area_range=(10.0, 1000.0), frames=FLAT).is_changed


def test_what_lies_on_edges_much_less_than_the_label_does_not_replace_it():
    label, faulty = disc(12), disc(20)
    candidates = {"faulty": faulty.astype(np.float32)}
    seen = choose_correction(label, candidates, faulty, area_range=ANY_AREA, frames=label.astype(np.float32))
    unseen = choose_correction(label, candidates, faulty, area_range=ANY_AREA, frames=faulty.astype(np.float32))
    # Both outlines are edges: a little less is no veto.
    both = (label * 0.55 + faulty * 0.45).astype(np.float32)
    weaker = choose_correction(label, candidates, faulty, area_range=ANY_AREA, frames=both)

    assert 0 < edge_contrast(label, both) - edge_contrast(faulty, both) < MAX_EDGE_LOSS
    assert edge_contrast(label, label.astype(np.float32)) > edge_contrast(faulty, label.astype(np.float32)) + 0.3
    assert not seen.is_changed
    assert unseen.name == weaker.name == "faulty"


def test_the_old_label_stays_without_candidates():
    chosen = choose_correction(disc(10), {}, disc(20), area_range=ANY_AREA, frames=FLAT)

    assert not chosen.is_changed
    np.testing.assert_array_equal(chosen.soft, disc(10))


def test_the_judges_score_never_falls(rng):
    for _ in range(30):
        radii = rng.uniform(3, 25, 5)
        old, judge, *others = (disc(radius, center=tuple(rng.uniform(28, 36, 2))) for radius in radii)

        chosen = choose_correction(
            old, {str(n): o.astype(np.float32) for n, o in enumerate(others)}, judge, area_range=ANY_AREA, frames=FLAT
        )

        assert 0 <= chosen.score_before <= chosen.score_after <= 1
        assert chosen.score_after == pytest.approx(judge_mask(chosen.soft > 0.5, judge))
        assert not chosen.is_changed or chosen.score_after > chosen.score_before + MIN_GAIN
