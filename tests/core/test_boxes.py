"""Boxes are checked against numbers worked out by hand, then for what every box must hold."""

import numpy as np
import pytest

from samcorrect.lib.core.boxes import box_of_mask, candidate_boxes, clip_boxes, slice_axis

SHAPE_HW = (100, 200)
BOX_HW = np.array([[10.0, 30.0], [20.0, 60.0]])


def test_the_first_candidates_are_the_box_and_its_scaled_copies():
    boxes = candidate_boxes(BOX_HW, SHAPE_HW, n_candidates=5, rng=np.random.default_rng(0))

    # The box is 20 x 40; each side moves outward by 0, 5, 10, 20 and -5% of the length along its axis.
    expected = [[10, 20, 30, 60], [9, 18, 31, 62], [8, 16, 32, 64], [6, 12, 34, 68], [11, 22, 29, 58]]
    np.testing.assert_allclose(boxes, expected)


@pytest.mark.parametrize("n_candidates", [1, 3, 5, 6, 16])
def test_as_many_candidates_as_asked_for_and_the_box_first(n_candidates):
    boxes = candidate_boxes(BOX_HW, SHAPE_HW, n_candidates=n_candidates, rng=np.random.default_rng(0))

    assert boxes.shape == (n_candidates, 4)
    np.testing.assert_array_equal(boxes[0], [10, 20, 30, 60])


def test_jitter_is_5_and_10_percent_of_the_length_along_each_axis():
    box = np.array([[400.0, 600.0], [300.0, 700.0]])

    boxes = candidate_boxes(box, (1000, 1000), n_candidates=5 + 4000, rng=np.random.default_rng(0))

    # 5% and 10% of 200 and of 400; the standard error of an SD of 2000 draws is 1.6%.
    moves = boxes[5:] - boxes[0]
    np.testing.assert_allclose(moves[0::2].std(0), [10, 20, 10, 20], rtol=0.08)
    np.testing.assert_allclose(moves[1::2].std(0), [20, 40, 20, 40], rtol=0.08)
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.1


def test_boxes_are_clipped_to_the_slice():
    clipped = clip_boxes(np.array([[-5.0, -7.0, 120.0, 260.0], [3.5, 4.5, 9.5, 8.5]]), SHAPE_HW)

    np.testing.assert_array_equal(clipped, [[0, 0, 100, 200], [3.5, 4.5, 9.5, 8.5]])


def test_a_box_outside_the_slice_becomes_one_voxel_at_its_edge():
    clipped = clip_boxes(np.array([[150.0, 300.0, 160.0, 310.0], [-20.0, -20.0, -10.0, -10.0]]), SHAPE_HW)

    np.testing.assert_array_equal(clipped, [[99, 199, 100, 200], [0, 0, 1, 1]])


def test_the_box_of_a_mask_is_half_open():
    mask = np.zeros((6, 7, 5), bool)
    mask[1, 2, 4] = mask[3, 5, 4] = True

    np.testing.assert_array_equal(box_of_mask(mask), [[1, 4], [2, 6], [4, 5]])


def test_the_box_of_an_empty_a_full_and_a_one_pixel_mask():
    corner = np.zeros((4, 3), bool)
    corner[3, 2] = True

    assert box_of_mask(np.zeros((4, 3), bool)) is None
    np.testing.assert_array_equal(box_of_mask(np.ones((4, 3), bool)), [[0, 4], [0, 3]])
    np.testing.assert_array_equal(box_of_mask(corner), [[3, 4], [2, 3]])


def test_every_candidate_lies_in_the_slice_and_is_a_voxel_wide(rng):
    for _ in range(50):
        shape_hw = tuple(rng.integers(8, 300, 2))
        starts = rng.uniform(0, np.array(shape_hw) - 1)
        stops = rng.uniform(starts + 1, shape_hw)

        boxes = candidate_boxes(np.stack([starts, stops], 1), shape_hw, n_candidates=20, rng=rng)

        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= shape_hw).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 1 - 1e-9).all()


def test_the_generator_decides_the_jitter_and_the_arguments_stay_as_they_were():
    box = BOX_HW.copy()
    one, same, other = (
        candidate_boxes(box, SHAPE_HW, n_candidates=12, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )

    np.testing.assert_array_equal(one, same)
    assert (one[5:] != other[5:]).any(1).all()
    np.testing.assert_array_equal(box, BOX_HW)


def test_the_box_of_a_filled_box_is_the_box(rng):
    for _ in range(50):
        start = rng.integers(0, 10, 3)
        stop = start + rng.integers(1, 10, 3)
        mask = np.zeros((20, 20, 20), bool)
        mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True

        np.testing.assert_array_equal(box_of_mask(mask), np.stack([start, stop], 1))


@pytest.mark.parametrize(
    ("size_mm", "spacing_mm", "axis"),
    [
        ((30, 20, 40), (1, 1, 1), 1),
        ((20, 30, 20), (1, 1, 1), 2),  # the last of equals
        ((20, 30, 40), (0.8, 1.0, 1.5), 0),
        ((20, 30, 40), (1, 1, 3), 2),  # thick slices show nothing from the side
        ((40, 40, 40), (4, 0.5, 0.5), 0),  # nor do they where they were stored along another axis
        ((20, 40, 30), (0.5, 4, 0.8), 1),
        ((20, 30, 40), (1, 3, 2), 2),  # no axis is thick beside both others
        ((20, 30, 40), (0.5, 2, 2), 2),
        ((20, 30, 40), (2, 1, 1), 0),  # up to twice, all slices look alike
    ],
)
def test_slices_are_cut_where_the_box_is_short_across_them(size_mm, spacing_mm, axis):
    assert slice_axis(size_mm, spacing_mm) == axis
