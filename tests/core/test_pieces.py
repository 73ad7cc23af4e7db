"""Structures in one piece: what labels say, and predictions without stray pieces."""

import numpy as np
import pytest

from samcorrect.lib.core.pieces import come_in_one_piece, drop_stray_pieces, is_one_piece, largest_piece


def probs_of(channels: np.ndarray, n_structures: int, sure: float = 0.8) -> np.ndarray:
    """Probabilities whose most probable class is `channels`, the others alike."""
    others = (1 - sure) / n_structures
    classes = np.arange(n_structures + 1).reshape(-1, *[1] * channels.ndim)
    return np.where(channels == classes, sure, others).astype(np.float32)


def test_the_largest_piece_is_found_and_corners_connect():
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 2, 2] = mask[0, 5, 0] = True
    largest = largest_piece(mask)
    assert (largest.sum(), largest[0, 5, 0]) == (3, False)
    assert not largest_piece(np.zeros((1, 6, 6), bool)).any()


def test_a_piece_goes_through_the_slices_of_a_volume():
    mask = np.zeros((3, 5, 5), bool)
    mask[0, 0, 0] = mask[1, 0, 1] = mask[2, 0, 0] = mask[0, 4, 4] = True
    assert largest_piece(mask).sum() == 3


@pytest.mark.parametrize(("n_specks", "is_whole"), [(0, True), (5, True), (6, False)])
def test_specks_are_no_second_piece(n_specks, is_whole):
    mask = np.zeros((1, 20, 20), bool)
    mask[0, :10, :10] = True
    mask[0, 19, 1 : 2 * n_specks : 2] = True
    # 100 of 105 pixels are more than 95%, 100 of 106 are less.
    assert is_one_piece(mask) is is_whole


def test_an_empty_mask_says_nothing():
    assert is_one_piece(np.zeros((1, 4, 4), bool)) is None
    assert come_in_one_piece([None, None]) is None
    assert come_in_one_piece([]) is None
    assert come_in_one_piece([None, True]) is True


@pytest.mark.parametrize(("n_in_pieces", "is_whole"), [(0, True), (1, True), (2, False)])
def test_a_structure_is_in_one_piece_where_nearly_all_of_its_masks_are(n_in_pieces, is_whole):
    assert come_in_one_piece([False] * n_in_pieces + [True] * (20 - n_in_pieces)) is is_whole


def test_a_stray_piece_goes_to_what_is_most_probable_without_the_structure():
    channels = np.zeros((1, 8, 8), int)
    channels[0, :4, :4], channels[0, 4:, 4:] = 1, 2
    channels[0, 6, 6] = channels[0, 0, 7] = 1
    probs = probs_of(channels, 2)
    probs[:, 0, 6, 6], probs[:, 0, 0, 7] = (0.1, 0.6, 0.3), (0.3, 0.6, 0.1)
    drop_stray_pieces(probs, (True, True))
    found = probs.argmax(0)
    assert (found[0, 6, 6], found[0, 0, 7]) == (2, 0)
    np.testing.assert_allclose(probs[:, 0, 6, 6], (0.25, 0, 0.75), rtol=1e-6)
    np.testing.assert_allclose(probs[:, 0, 0, 7], (0.75, 0, 0.25), rtol=1e-6)
    np.testing.assert_allclose(probs.sum(0), 1, rtol=1e-6)
    channels[0, 6, 6], channels[0, 0, 7] = 2, 0
    np.testing.assert_array_equal(found, channels)


def test_what_becomes_a_stray_piece_of_the_next_structure_is_dropped_too():
    channels = np.zeros((1, 8, 8), int)
    channels[0, :4, :4], channels[0, 5:, :4] = 1, 2
    probs = probs_of(channels, 2)
    probs[:, 0, 3, 7] = (0.1, 0.6, 0.3)
    drop_stray_pieces(probs, (True, True))
    np.testing.assert_array_equal(probs.argmax(0), channels)


def test_a_voxel_that_can_be_nothing_else_becomes_background():
    probs = np.zeros((2, 1, 5, 5), np.float32)
    probs[0] = 1
    probs[:, 0, 0, :2] = probs[:, 0, 4, 4:] = np.array([0, 1], np.float32)[:, None]
    drop_stray_pieces(probs, (True,))
    assert probs[:, 0, 4, 4].tolist() == [1, 0]
    assert probs[1].sum() == 2


@pytest.mark.parametrize("in_one_piece", [(), (False, False), (False, True)])
def test_structures_in_several_pieces_keep_them(rng, in_one_piece):
    probs = rng.dirichlet((1, 1, 0.5), (1, 16, 16)).astype(np.float32).transpose(3, 0, 1, 2)
    before = probs.copy()
    drop_stray_pieces(probs, in_one_piece)
    if any(in_one_piece):
        mask = probs.argmax(0) == 2
        np.testing.assert_array_equal(mask, largest_piece(mask))
        assert (before.argmax(0) == 2).sum() > mask.sum() > 0
        assert (probs.argmax(0) == 1)[before.argmax(0) == 1].all()
    else:
        np.testing.assert_array_equal(probs, before)
