import numpy as np

from samcorrect.lib.infers.stored import summarise_changes


def test_changes_are_counted_and_boxed():
    change_map = np.zeros((10, 8, 3), np.uint8)
    change_map[2, 3, 1] = change_map[5, 4, 1] = 1
    assert summarise_changes(change_map) == {"n_voxels": 2, "box": [[2, 6], [3, 5], [1, 2]]}


def test_no_change_has_no_box():
    assert summarise_changes(np.zeros((4, 4, 1), np.uint8)) == {"n_voxels": 0, "box": None}
