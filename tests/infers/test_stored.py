import numpy as np

from samcorrect.lib.infers.stored import summarise_changes


def test_changes_are_counted_boxed_and_listed_as_runs():
    change_map = np.zeros((10, 8, 3), np.uint8)
    change_map[2, 3, 1:] = change_map[5, 4, 1] = 1
    told = summarise_changes(change_map)
    assert (told["n_voxels"], told["box"], told["shape"]) == (3, [[2, 6], [3, 5], [1, 3]], [10, 8, 3])
    # Voxel (x, y, z) is number (8 x + y) * 3 + z: (2, 3, 1) is 58 and its neighbour follows; (5, 4, 1) is 133.
    assert told["runs"] == [[58, 2], [133, 1]]


def test_the_runs_give_the_change_map_back():
    change_map = np.random.default_rng(0).integers(0, 2, (6, 5, 4), dtype=np.uint8)
    told = summarise_changes(change_map)
    flat = np.zeros(change_map.size, np.uint8)
    for start, length in told["runs"]:
        flat[start : start + length] = 1
    assert np.array_equal(flat.reshape(told["shape"]), change_map)


def test_no_change_has_no_box():
    assert summarise_changes(np.zeros((4, 4, 1), np.uint8)) == {
        "n_voxels": 0,
        "box": None,
        "shape": [4, 4, 1],
        "runs": [],
    }
