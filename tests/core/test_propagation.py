"""From slice to slice: boxes, parts, looks and the end of a structure, by hand."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from samcorrect.lib.core.metrics import dice
from samcorrect.lib.core.propagation import (
    Looks,
    blended_logits,
    goes_on,
    held_mask,
    looks_of,
    motion_between,
    moved_masks,
    neighbour_boxes,
    slice_step_px,
    touching_parts,
)


def test_the_box_of_the_next_slice_is_a_tenth_wider_and_stays_in_its_limits():
    masks = np.zeros((3, 64, 64), bool)
    masks[0, 20:40, 10:30] = masks[1, 20:40, 10:30] = True
    limits = np.array([[0, 0, 64, 64], [19, 0, 41, 30], [5, 5, 9, 9]])
    boxes, is_prompted = neighbour_boxes(masks, limits)
    assert is_prompted.tolist() == [True, True, False]
    assert boxes.tolist() == [[18, 8, 42, 32], [19, 8, 41, 30], [5, 5, 9, 9]]


def test_a_slice_step_in_pixels_of_a_mask():
    # 60 of 40 mm fill 240 pixels, 4 a voxel of 1.5 mm: slices of 6 mm lie 16 of them apart.
    assert slice_step_px((60, 30, 9), (1.5, 1.5, 6.0), (240, 120)) == 16
    # Along the other axis a pixel of the mask is smaller.
    assert slice_step_px((60, 30, 9), (1.5, 1.0, 6.0), (240, 120)) == 24


def test_a_mask_moves_as_the_image_does_and_not_out_of_its_limits(rng):
    texture = gaussian_filter(rng.normal(size=(128, 128)), 5)
    texture = (texture - texture.min()) / np.ptp(texture)
    mask, moved = np.zeros((2, 128, 128), bool)
    mask[40:70, 50:80] = moved[46:76, 46:76] = True
    motion = motion_between(texture, np.roll(texture, (6, -4), (0, 1)))
    limits = np.array([[0, 0, 128, 128], [0, 0, 60, 128], [0, 0, 128, 128]])
    depths = moved_masks(np.stack([mask, mask, np.zeros_like(mask)]), motion, limits)
    # By 6 rows and -4 columns; an edge is off by two pixels at most, one cell of the motion.
    assert dice(depths[0] > 0, moved) > 0.93
    assert depths[0][61, 61] == pytest.approx(15, abs=2)
    assert not (depths[1][60:] > 0).any()
    assert np.isneginf(depths[2]).all()


def test_a_new_mask_counts_within_one_slice_step_of_the_edge():
    row = np.array([-5.0, -4, -3, -2, -1, 1, 2, 3, 4, 5])
    depth = np.tile(row, (3, 1))
    mask = np.zeros((3, 10), bool)
    assert held_mask(~mask, depth, 2.5)[1].tolist() == [False] * 3 + [True] * 7
    mask[:, 5] = True
    assert held_mask(mask, depth, 1.5)[1].tolist() == [False] * 5 + [True] * 5
    mask[:, 5], mask[:, 4] = False, True
    assert not held_mask(mask, depth, 1.5).any()


def test_sam_and_the_carried_mask_count_the_same():
    # One step inside the carried mask its probability is 0.73, at its edge 0.5, one step outside 0.27.
    depth = np.array([[4.0, 0.0, -4.0, -400.0]])
    for of_sam, wanted in ((0.0, [0.615, 0.5, 0.385, 0.25]), (100.0, [0.866, 0.75, 0.634, 0.5])):
        logits = blended_logits(np.full((1, 4), of_sam, np.float32), depth, step_px=4.0)
        assert 1 / (1 + np.exp(-logits[0])) == pytest.approx(wanted, abs=1e-3)
    # Both are sure, and still the logits can be averaged with others.
    assert np.isfinite(blended_logits(np.full((1, 1), 100.0), np.full((1, 1), 1e4), 1.0)).all()


def test_parts_that_do_not_touch_the_neighbour_are_left():
    mask = np.zeros((10, 10), bool)
    mask[1:4, 1:4] = mask[6:9, 6:9] = True
    neighbour = np.zeros_like(mask)
    neighbour[3:6, 3:6] = True
    assert np.argwhere(touching_parts(mask, neighbour)).max() == 3
    assert not touching_parts(mask, np.zeros_like(mask)).any()


@pytest.fixture
def bright() -> Looks:
    """A square of 0.8 on 0.2 whose embedding has one channel inside and another one outside."""
    frame, mask = np.full((32, 32), 0.2), np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    frame[mask] = 0.8
    cells = mask.reshape(8, 4, 8, 4).mean((1, 3))
    return looks_of(frame, np.stack([cells, 1 - cells, np.zeros((8, 8))]), mask)


def test_how_a_square_looks(bright):
    assert bright.inside.tolist() == [1, 0, 0]
    assert bright.outside.tolist() == [0, 1, 0]
    assert (bright.grey_inside, bright.grey_outside) == (pytest.approx(0.8), pytest.approx(0.2))
    assert bright.grey_sd == pytest.approx(0, abs=1e-9)


def test_a_frame_finer_than_the_mask_looks_the_same():
    rng = np.random.default_rng(0)
    frame, mask = rng.random((32, 32)), np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    embedding = rng.random((3, 8, 8))
    fine = np.kron(frame, np.ones((4, 4)))

    coarse, same = looks_of(frame, embedding, mask), looks_of(fine, embedding, mask)

    np.testing.assert_allclose(same.inside, coarse.inside)
    assert (same.grey_inside, same.grey_outside, same.grey_sd) == pytest.approx(
        (coarse.grey_inside, coarse.grey_outside, coarse.grey_sd)
    )


def test_a_mask_of_the_whole_slice_has_no_surroundings():
    looks = looks_of(np.ones((8, 8)), np.ones((3, 2, 2)), np.ones((8, 8), bool))
    assert np.isnan(looks.grey_outside)
    assert looks.outside.tolist() == [0, 0, 0]
    assert looks.resembles(looks, looks)


def grey(inside: float, *, embedding: tuple[float, float] = (1, 0), sd: float = 0.1) -> Looks:
    return Looks(np.array(embedding), np.array([0.0, 1.0]), inside, 0.2, sd)


def test_what_intensity_tells_apart_is_told_by_it():
    # Half the way from 0.8 to 0.2 is 0.5.
    start = grey(0.8)
    assert grey(0.51).resembles(start, start)
    assert grey(1.0).resembles(start, start)
    assert not grey(0.49).resembles(start, start)
    dark = Looks(start.inside, start.outside, 0.1, 0.6, 0.1)
    assert grey(0.3).resembles(dark, dark)
    assert not grey(0.4).resembles(dark, dark)


def test_what_intensity_does_not_tell_apart_is_told_by_the_embedding_of_the_slice_before():
    # The outside is (0, 1). Before, inside less outside was (1, -1); (0.8, -0.4) agrees with it, (-0.6, 0.8) does not.
    start, previous = grey(0.25, embedding=(-1, 0)), grey(0.25)
    assert grey(0.9, embedding=(0.8, 0.6)).resembles(start, previous)
    assert not grey(0.25, embedding=(-0.6, 1.8)).resembles(start, previous)


@pytest.mark.parametrize(
    ("area", "share", "inside", "expected"),
    [
        (100, 1.0, 0.8, True),
        (50, 0.5, 0.8, True),
        (200, 1.0, 0.8, True),
        (49, 1.0, 0.8, False),
        (201, 1.0, 0.8, False),
        (100, 0.49, 0.8, False),
        (100, 1.0, 0.3, False),
    ],
)
def test_a_structure_ends_by_area_by_confidence_and_by_its_looks(area, share, inside, expected):
    assert goes_on(area, 100, share, grey(inside), grey(0.8), grey(0.8)) is expected
