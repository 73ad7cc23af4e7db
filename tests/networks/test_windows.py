"""Neighbours of a slice are slices of its own image."""

from samcorrect.lib.networks.student import STRIDES_3D
from samcorrect.lib.networks.windows import OFFSETS, PATCH_SLICES, slice_windows


def test_two_volumes_by_hand():
    numbers, is_inside = slice_windows([3, 1, 2], (-1, 0, 1))

    # Slices 0 to 2, 3, and 4 to 5; at each end the slice itself stands for the one that is missing.
    assert numbers.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 3], [4, 4, 5], [4, 5, 5]]
    outside = [(row, column) for row, column in (~is_inside).nonzero().tolist()]
    assert outside == [(0, 0), (2, 2), (3, 0), (3, 2), (4, 0), (5, 2)]


def test_a_slice_alone_is_its_own_window():
    numbers, is_inside = slice_windows([2, 1], OFFSETS["2d"])

    assert numbers.tolist() == [[0], [1], [2]]
    assert is_inside.all()


def test_a_block_can_be_halved_as_often_as_the_network_does():
    n_halvings = sum(stride[2] == 2 for stride in STRIDES_3D)

    assert len(OFFSETS["3d"]) == PATCH_SLICES
    assert PATCH_SLICES % 2**n_halvings == 0
