"""Choosing among candidates: confidence first, but never against what the cohort looks like."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from samcorrect.lib.core.pseudo_label import (
    MIN_COHORT,
    CohortShape,
    choose_by_peer,
    choose_candidate,
    cohort_shape,
    mask_shapes,
    merge_structures,
)

NAN = float("nan")
# Masks of about a tenth of the frame in its middle, spread by 0.1 in log area and 0.02 in the centre.
COHORT = CohortShape(np.array([np.log(0.1), 0.5, 0.5]), np.array([0.1, 0.02, 0.02]))
USUAL = [np.log(0.1), 0.5, 0.5]
ELSEWHERE = [np.log(0.1), 0.5, 0.7]
FURTHER = [np.log(0.1), 0.5, 0.9]
TOO_LARGE = [np.log(0.3), 0.5, 0.5]
EMPTY = [NAN, NAN, NAN]


def apart(n_candidates):
    """Overlaps of masks that have nothing in common."""
    return np.eye(n_candidates)


def test_the_shape_of_a_mask_by_hand():
    masks = np.zeros((2, 1, 8, 8), bool)
    masks[0, 0, 2:4, 4:8] = True
    masks[1, 0, 0, 0] = True

    # 8 of 64 voxels, the middle of rows 2 to 3 at 3 / 8, of columns 4 to 7 at 6 / 8; then 1 of 64 at half a voxel from
    # the corner.
    expected = [[np.log(8 / 64), 3 / 8, 6 / 8], [np.log(1 / 64), 0.5 / 8, 0.5 / 8]]
    np.testing.assert_allclose(mask_shapes(masks), expected)


def test_the_shape_of_a_mask_over_slices_weighs_them_by_area():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 0, :3] = masks[1, 3, 3] = True

    # 4 of 32 voxels; rows 0, 0, 0 and 3 are centred at (0.5 x 3 + 3.5) / 4, columns 0, 1, 2 and 3 at 2.
    np.testing.assert_allclose(mask_shapes(masks), [np.log(4 / 32), 5 / 16, 2 / 4])


def test_the_shape_of_empty_and_full_masks():
    masks = np.stack([np.zeros((3, 4, 4), bool), np.ones((3, 4, 4), bool)])

    shapes = mask_shapes(masks)

    assert np.isnan(shapes[0]).all()
    np.testing.assert_allclose(shapes[1], [0.0, 0.5, 0.5])
    assert np.isnan(mask_shapes(masks[0])).all()


def test_the_shape_of_a_cohort_is_median_and_robust_spread():
    shapes = np.stack([np.arange(9.0), np.full(9, 0.5), np.arange(9.0) / 10], 1)
    with_empty = np.concatenate([shapes, [EMPTY]])

    cohort = cohort_shape(with_empty, np.full(10, NAN))

    # The median of 0 to 8 is 4; the deviations 4 3 2 1 0 1 2 3 4 have the median 2, times 1.4826.
    np.testing.assert_allclose(cohort.center, [4, 0.5, 0.4])
    np.testing.assert_allclose(cohort.spread, [2.9652, 0, 0.29652])


def test_too_few_masks_are_no_cohort():
    shapes = np.tile(USUAL, (MIN_COHORT, 1))

    unknown = np.full(MIN_COHORT, NAN)
    assert cohort_shape(shapes, unknown) is not None
    assert cohort_shape(np.concatenate([shapes[1:], [EMPTY]]), unknown) is None
    assert cohort_shape(np.zeros((0, 3)), np.zeros(0)) is None


@pytest.mark.parametrize(
    ("agreements", "is_believed"),
    [([0.2] * 5 + [-0.9] * 3, True), ([-0.2] * 5 + [0.9] * 3, False), ([NAN] * 8, True), ([-0.1] + [NAN] * 7, False)],
)
def test_confidence_is_believed_where_it_goes_along_with_the_agreement_of_most(agreements, is_believed):
    cohort = cohort_shape(np.tile(USUAL, (8, 1)), np.array(agreements))
    assert cohort.believes_confidence is is_believed


def test_the_box_as_given_is_taken_where_confidence_is_not_believed():
    doubted = replace(COHORT, believes_confidence=False)
    assert choose_candidate(np.array([0.2, 0.9]), np.array([USUAL, USUAL]), apart(2), doubted) == 0
    # It shows nothing, so another has to do.
    assert choose_candidate(np.array([0.2, 0.9]), np.array([EMPTY, USUAL]), apart(2), doubted) == 1


@pytest.mark.parametrize(
    ("confidences", "shapes", "cohort", "expected"),
    [
        ([0.5, 0.9, 0.7], [USUAL, USUAL, USUAL], COHORT, 1),
        ([0.5, 0.9, 0.7], [USUAL, ELSEWHERE, USUAL], None, 1),
        ([0.5, 0.9, 0.7], [USUAL, ELSEWHERE, USUAL], COHORT, 2),
        ([0.5, 0.9, 0.7], [USUAL, TOO_LARGE, ELSEWHERE], COHORT, 0),
        ([0.9, 0.1, 0.8], [FURTHER, ELSEWHERE, FURTHER], COHORT, 1),
        ([0.9, 0.2, 0.8], [EMPTY, ELSEWHERE, FURTHER], COHORT, 1),
        ([0.9, 0.2, 0.1], [EMPTY, ELSEWHERE, USUAL], COHORT, 2),
        ([0.9, 0.2, 0.3], [EMPTY, ELSEWHERE, FURTHER], None, 2),
        ([0.1, 0.2, 0.9], [EMPTY, EMPTY, EMPTY], COHORT, 0),
        ([0.1, 0.2, 0.9], [EMPTY, EMPTY, EMPTY], None, 0),
        ([0.7, 0.7, 0.7], [USUAL, USUAL, USUAL], COHORT, 0),
        ([0.3], [FURTHER], COHORT, 0),
    ],
    ids=[
        "the most confident",
        "the most confident before there is a cohort",
        "passes over one elsewhere",
        "passes over one too large and one elsewhere",
        "none plausible: the nearest",
        "none plausible and one empty: the nearest filled",
        "an empty one is never taken for its confidence",
        "nor before there is a cohort",
        "all empty",
        "all empty before there is a cohort",
        "a tie: the first, which is nearest to the protocol's box",
        "one candidate",
    ],
)
def test_choosing_a_candidate(confidences, shapes, cohort, expected):
    assert choose_candidate(np.array(confidences), np.array(shapes), apart(len(shapes)), cohort) == expected


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [
        # Likelihoods of exp(-0.5), exp(-0.25), 1: masks 0 and 1 are nearly one, and together outweigh mask 2.
        ([0.885, 0.8925, 0.90], 1),
        ([0.8925, 0.8925, 0.90], 0),
        # Of exp(-5), exp(-5), 1: SAM is so much surer of mask 2 that the others do not count.
        ([0.75, 0.75, 0.90], 2),
        # The surest is not asked where it cannot be the structure.
        ([0.80, 0.81, 2.0], 1),
    ],
)
def test_of_candidates_that_sam_is_about_as_sure_of_the_one_in_their_middle_is_taken(confidences, expected):
    overlaps = np.array([[1, 0.9, 0.3], [0.9, 1, 0.3], [0.3, 0.3, 1]])
    shapes = [USUAL, USUAL, ELSEWHERE if confidences[2] > 1 else USUAL]
    assert choose_candidate(np.array(confidences), np.array(shapes), overlaps, COHORT) == expected


def test_a_cohort_without_spread_accepts_only_its_own_shape():
    cohort = CohortShape(np.array(USUAL), np.zeros(3))

    assert choose_candidate(np.array([0.9, 0.1]), np.array([ELSEWHERE, USUAL]), apart(2), cohort) == 1


def test_students_take_the_candidate_that_is_nearest_to_their_mask():
    masks = np.zeros((4, 1, 12, 12), bool)
    for number, start in enumerate((0, 2, 3), start=1):
        masks[number, 0, 1:4, start : start + 3] = True
    peer = np.zeros((1, 12, 12), bool)
    peer[0, 1:4, 3:6] = True

    assert choose_by_peer(masks, peer) == 3
    assert choose_by_peer(masks[:3], peer) == 2
    # An empty mask and an empty peer agree fully; without a difference the first is taken.
    assert choose_by_peer(masks[::-1], np.zeros_like(peer)) == 3
    assert choose_by_peer(masks[[0, 0]], peer) == 0


def test_the_strongest_structure_above_the_threshold_wins():
    soft = np.array([[0.6, 0.4, 0.8, 0.5, 0.0], [0.7, 0.3, 0.8, 0.5, 0.51]], np.float32).reshape(2, 5, 1, 1)

    merged = merge_structures(soft, (3, 200))

    # The second wins; neither is above 0.5; a tie goes to the first; exactly 0.5 is background; the second wins.
    np.testing.assert_array_equal(merged.ravel(), [200, 0, 3, 0, 200])
    assert merged.shape == (5, 1, 1)
    assert merged.dtype == np.uint8


def test_of_equal_claims_the_smaller_structure_has_the_voxel_in_whichever_order_they_come():
    # Claims of 1 in an organ of six voxels, in a tumour of two of these, and in one beside both that reaches into it.
    organ, tumour, other = np.zeros((3, 9, 1, 1), bool)
    organ[:6], tumour[2:4], other[5:] = True, True, True

    for order in itertools.permutations(range(3)):
        masks = [(organ, tumour, other)[k] for k in order]
        merged = merge_structures(masks, [k + 1 for k in order])
        np.testing.assert_array_equal(merged.ravel(), [1, 1, 2, 2, 1, 3, 3, 3, 3])
        # A voxel of which a structure is less sure is not claimed alike.
        soft = [mask * np.float32(0.9 if k == 1 else 1) for mask, k in zip(masks, order, strict=True)]
        assert not (merge_structures(soft, [k + 1 for k in order]) == 2).any()
    # Of one size, the first has it.
    assert merge_structures([tumour, tumour], (4, 9)).max() == 4
    assert merge_structures([tumour, tumour], (9, 4)).max() == 9


def test_one_structure_is_its_mask_at_a_half(rng):
    soft = rng.random((1, 6, 5, 4))

    np.testing.assert_array_equal(merge_structures(soft, (7,)), np.where(soft[0] > 0.5, 7, 0))


def test_merged_values_are_the_structures_indices_and_nothing_is_changed(rng):
    soft = rng.random((3, 6, 5, 4))
    before = soft.copy()

    merged = merge_structures(soft, (5, 1, 255))

    assert set(np.unique(merged)) == {0, 1, 5, 255}
    np.testing.assert_array_equal(soft, before)
