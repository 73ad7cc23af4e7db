"""The frame: geometry worked out by hand, and back again."""

import numpy as np
import pytest
import torch

from samcorrect.lib.transforms.frame import (
    boxes_to_frame,
    content_size,
    from_frame,
    labels_to_frame,
    normalise_intensity,
    to_frame,
)


def test_the_longest_side_fills_the_frame_and_the_rest_is_padded_with_zero():
    # (8, 4) into 4: each 2 x 2 block becomes one pixel, 4 rows and 2 columns of content, 2 columns of padding.
    array = np.zeros((8, 4, 1), np.float32)
    array[2:4, 0:2] = 1
    frame = to_frame(array, 4)
    assert frame.shape == (1, 4, 4)
    assert frame.dtype == torch.float32
    # The antialiased filter is a triangle of 2 output pixels: the block's own pixel gets most, its neighbours some.
    assert int(frame[0].argmax()) == 1 * 4 + 0
    assert frame[0, 1, 0] > 0.5
    assert frame[0, :, 2:].abs().max() == 0


def test_growing_doubles_each_side_and_keeps_a_constant():
    frame = to_frame(np.full((3, 6, 2), 0.25, np.float32), 12)
    assert frame.shape == (2, 12, 12)
    assert torch.all(frame[:, :6] == 0.25)
    assert torch.all(frame[:, 6:] == 0)


def test_a_slice_of_the_side_of_the_frame_is_not_changed(rng):
    array = rng.random((16, 9, 3)).astype(np.float32)
    frame = to_frame(array, 16)
    assert np.allclose(frame[:, :, :9].numpy(), array.transpose(2, 0, 1), atol=1e-6)
    assert np.allclose(from_frame(frame, (16, 9)).numpy(), array.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("shape_hw", [(512, 341), (7, 3000), (333, 334)])
def test_a_mask_of_256_px_lies_exactly_over_a_frame_of_1024(shape_hw):
    """341 of 512 are 682 of 1024 pixels, and 170.5 of 256: a mask of 170 would be stretched."""
    assert content_size(shape_hw, 1024) == tuple(4 * n for n in content_size(shape_hw, 256))


@pytest.mark.parametrize(
    ("shape_hw", "side_px", "size"),
    [
        ((512, 512), 256, (256, 256)),
        ((200, 100), 64, (64, 32)),
        ((100, 300), 128, (43, 128)),  # 42.67 rows
        ((35, 51), 128, (88, 128)),  # 87.8 rows
        ((2000, 3), 64, (64, 1)),  # never less than one
    ],
)
def test_the_content_keeps_the_shape_of_the_slice(shape_hw, side_px, size):
    assert content_size(shape_hw, side_px) == size
    frame = to_frame(np.ones((*shape_hw, 1), np.float32), side_px)[0]
    assert torch.allclose(frame[: size[0], : size[1]], torch.ones(size))
    assert frame.sum() == pytest.approx(size[0] * size[1])


def test_back_from_the_frame_drops_the_padding():
    frames = torch.zeros(2, 8, 8)
    frames[0, :, :4] = 1  # the content of a (20, 10) slice
    frames[1, :, 4:] = 1  # padding alone
    maps = from_frame(frames, (20, 10))
    assert maps.shape == (2, 20, 10)
    assert torch.allclose(maps[0], torch.ones(20, 10))
    assert torch.all(maps[1] == 0)


def test_boxes_are_scaled_like_the_content():
    # (200, 100) into 64: 64 rows for 200, 32 columns for 100, so 0.32 along both axes.
    boxes = np.array([[0, 0, 200, 100], [50, 25, 100, 75]])
    assert np.allclose(boxes_to_frame(boxes, (200, 100), 64), [[0, 0, 64, 32], [16, 8, 32, 24]])
    # (100, 300) into 128: 43 rows for 100 (0.43), 128 columns for 300.
    assert np.allclose(boxes_to_frame([[50, 150, 100, 300]], (100, 300), 128), [[21.5, 64, 43, 128]])
    assert boxes_to_frame(np.zeros((0, 4)), (9, 9), 64).shape == (0, 4)
    assert boxes.tolist() == [[0, 0, 200, 100], [50, 25, 100, 75]]


def test_a_box_in_the_frame_encloses_what_it_encloses_in_the_image():
    array = np.zeros((90, 160, 1), np.float32)
    array[30:60, 40:120] = 1
    rows, columns = torch.nonzero(to_frame(array, 64)[0] >= 0.5).T
    found = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    assert np.allclose(boxes_to_frame([[30, 40, 60, 120]], (90, 160), 64)[0], found, atol=0.5)


# Intensities


def test_intensities_are_clipped_at_their_percentiles_and_scaled():
    array = np.arange(1001, dtype=np.int16).reshape(1001, 1, 1)  # the 0.5 % percentile is 5, the 99.5 % one is 995
    scaled = normalise_intensity(array)
    assert scaled.dtype == np.float32
    assert scaled.shape == array.shape
    assert scaled[:6].max() == 0
    assert scaled[995:].min() == 1
    assert scaled[500, 0, 0] == pytest.approx((500 - 5) / (995 - 5))
    assert array[1000, 0, 0] == 1000


def test_a_window_clips_and_scales_hounsfield_units_whatever_else_is_in_the_image():
    array = np.array([-1024, -160, 40, 140, 240, 3071], np.int16).reshape(6, 1, 1)
    # (40 + 160) / 400 and (140 + 160) / 400
    assert np.allclose(normalise_intensity(array, (-160, 240)).ravel(), [0, 0, 0.5, 0.75, 1, 1])
    assert np.allclose(normalise_intensity(array[2:4], (-160, 240)).ravel(), [0.5, 0.75])
    # A constant image is where it lies in the window; outside of it, at its end.
    assert np.array_equal(normalise_intensity(np.full((2, 2, 1), 90.0), (80, 100)), np.full((2, 2, 1), 0.5))
    assert np.array_equal(normalise_intensity(np.full((2, 2, 1), 900), (80, 100)), np.ones((2, 2, 1)))


@pytest.mark.parametrize("value", [0, -1000, 7.5])
def test_a_constant_image_becomes_zero(value):
    scaled = normalise_intensity(np.full((8, 8, 2), value))
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled, np.zeros((8, 8, 2)))


def test_an_image_that_is_constant_but_for_a_few_pixels_keeps_them():
    array = np.zeros((100, 100, 1))
    array[5, 5] = 40
    scaled = normalise_intensity(array)
    assert scaled[5, 5, 0] == 1
    assert scaled.sum() == 1


def test_intensities_do_not_depend_on_unit_and_offset(rng):
    array = rng.normal(size=(20, 20, 4))
    scaled = normalise_intensity(array)
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    assert np.allclose(normalise_intensity(array * 1000 - 500), scaled, atol=1e-5)


# Label maps


def test_each_index_becomes_its_channel_and_others_background():
    label_map = np.zeros((8, 4, 1), np.uint8)
    label_map[:4, :2], label_map[4:, :2], label_map[:, 2:] = 5, 2, 9
    channels = labels_to_frame(label_map, (2, 5), 8)
    assert channels.shape == (1, 8, 8)
    assert channels.dtype == torch.int64
    assert torch.all(channels[0, :4, :2] == 2)  # index 5 is the second structure
    assert torch.all(channels[0, 4:, :2] == 1)
    assert torch.all(channels[0, :, 2:] == 0)  # 9 is no structure, and then comes the padding


def test_an_empty_label_map_is_all_background():
    assert torch.all(labels_to_frame(np.zeros((9, 7, 3), np.uint8), (1, 2), 16) == 0)


def test_slices_stay_apart():
    label_map = np.zeros((8, 8, 3), np.uint8)
    label_map[..., 1] = 4
    assert [int(c.max()) for c in labels_to_frame(label_map, (4,), 8)] == [0, 1, 0]


@pytest.mark.parametrize(("side", "size"), [(1024, 7), (1024, 1), (512, 3), (300, 1)])
@pytest.mark.parametrize("at", [0, 100, 203])
def test_a_structure_smaller_than_a_pixel_keeps_its_strongest_one(side, size, at):
    label_map = np.zeros((side, side, 3), np.uint8)
    label_map[at : at + size, at : at + size, 1] = 2
    label_map[at, at, 2] = 2  # less of it there

    channels = labels_to_frame(label_map, (5, 2), 128)

    ((number, row, column),) = np.argwhere(channels.numpy())
    assert channels[number, row, column] == 2
    assert number == 1 or size == 1
    centre = (at + size / 2) * 128 / side
    assert max(abs(row + 0.5 - centre), abs(column + 0.5 - centre)) <= 1


def test_structures_smaller_than_a_pixel_take_none_that_is_the_only_one_of_another():
    label_map = np.full((80, 80, 1), 4, np.uint8)  # of a structure all around
    label_map[40, 40], label_map[41, 41], label_map[42, 42] = 1, 2, 3

    channels = labels_to_frame(label_map, (1, 2, 3, 4), 8)

    assert channels.flatten().bincount().tolist() == [0, 1, 1, 1, 61]
    assert all((np.abs(np.argwhere(channels[0].numpy() == k + 1) - 4.5) <= 1.5).all() for k in range(3))
    assert torch.equal(channels, labels_to_frame(label_map, (1, 2, 3, 4), 8))


@pytest.mark.parametrize("indices", [(1, 2), (2, 1)])
def test_a_line_inside_another_structure_stays_in_whichever_order_they_come(indices):
    label_map = np.zeros((64, 64, 1), np.uint8)
    label_map[8:56, 8:56] = 1
    # Rows 31 and 32 lie half in row 15 of the frame and half in row 16.
    label_map[31:33, 16:48] = 2

    channels = labels_to_frame(label_map, indices, 32)[0]

    rows, columns = np.nonzero(channels.numpy() == indices.index(2) + 1)
    assert set(rows) == {15, 16}
    assert set(range(9, 23)) <= set(columns) <= set(range(8, 24))


def test_where_no_structure_vanishes_the_strongest_alone_decides(rng):
    blocks = rng.integers(0, 4, (5, 5, 3))
    label_map = np.kron(blocks, np.ones((9, 9, 1), int)) * (rng.random((45, 45, 3)) > 0.1)
    soft = torch.stack([to_frame((label_map == index).astype(np.float32), 20) for index in (3, 1, 2)])

    channels = labels_to_frame(label_map, (3, 1, 2), 20)

    assert torch.equal(channels, torch.where(soft.max(0)[0] >= 0.5, soft.argmax(0) + 1, 0))
    # A slice may lose the structure where another keeps it.
    label_map[:, :, 0][label_map[:, :, 0] == 3] = 0
    label_map[20, 20, 0] = 3
    assert not (labels_to_frame(label_map, (3, 1, 2), 20)[0] == 1).any()


@pytest.mark.parametrize("shape_hw", [(512, 512), (300, 450), (451, 307), (97, 101), (35, 50)])
@pytest.mark.parametrize("side_px", [64, 128, 256])
def test_a_mask_into_the_frame_and_back_keeps_its_place(shape_hw, side_px, rng):
    row, column = np.indices(shape_hw)
    for _ in range(3):
        centre, radius = rng.uniform(0.4, 0.6, 2) * shape_hw, rng.uniform(0.15, 0.3, 2) * shape_hw
        mask = ((row - centre[0]) / radius[0]) ** 2 + ((column - centre[1]) / radius[1]) ** 2 < 1
        back = from_frame(to_frame(mask[..., None].astype(np.float32), side_px), shape_hw)[0].numpy() >= 0.5
        assert 2 * (mask & back).sum() / (mask.sum() + back.sum()) > 0.95
        channels = labels_to_frame(mask[..., None] * np.uint8(3), (3,), side_px)
        back = from_frame((channels == 1).float(), shape_hw)[0].numpy() >= 0.5
        assert 2 * (mask & back).sum() / (mask.sum() + back.sum()) > 0.95


def test_the_array_given_is_not_changed(rng):
    array = rng.random((9, 12, 2)).astype(np.float32)
    before = array.copy()
    frame = to_frame(array, 12)
    frame += 1
    normalise_intensity(array)[:] = 3
    assert np.array_equal(array, before)
