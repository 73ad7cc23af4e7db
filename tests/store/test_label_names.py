import numpy as np
import pytest

from samcorrect.lib.errors import LabelError, ProtocolError, RequestError
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.label_names import (
    MAX_NAME_LENGTH,
    check_label_info,
    map_values,
    name_indices,
    ordered_names,
    present_indices,
    require_same_indices,
)

BOX = {"source": "box", "xyxy": (0.1, 0.1, 0.9, 0.9)}
# As in a file where the heart is written first: neither 1..K nor in index order.
PROTOCOL = Protocol(
    structures=[
        {"name": "heart", "index": 3, "prompt": BOX},
        {"name": "right lung", "index": 1, "prompt": BOX},
        {"name": "left lung", "index": 2, "prompt": BOX},
    ]
)


def test_names_are_in_index_order():
    assert ordered_names(PROTOCOL) == ["right lung", "left lung", "heart"]
    assert ordered_names(None) == []


def test_present_indices_leave_background_out():
    assert present_indices(np.array([[0, 3], [3, 1]], np.uint8)) == [1, 3]
    assert present_indices(np.zeros((2, 2, 1), np.uint8)) == []


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_present_indices_of_any_layout(order, dtype):
    # 3 x 5 x 3 is no multiple of the eight bytes that are looked at together; 255 is the last voxel.
    label_map = np.zeros((3, 5, 3), dtype, order=order)
    label_map[1, 2, 1], label_map[2, 4, 2] = 7, 255
    assert present_indices(label_map) == [7, 255]
    assert present_indices(label_map[:, ::2]) == [7, 255]


def test_only_what_is_present_is_named():
    assert name_indices([3], PROTOCOL) == {"heart": 3}
    assert list(name_indices([3, 1], PROTOCOL)) == ["right lung", "heart"]
    assert name_indices([], PROTOCOL) == {}


def test_without_a_protocol_the_submitted_names_come_back():
    assert name_indices([1, 4], None, [{"name": "cyst", "idx": 4}]) == {"label 1": 1, "cyst": 4}


def test_two_segments_of_one_name_stay_apart():
    info = [{"name": "cyst", "idx": 1}, {"name": "cyst", "idx": 2}]
    assert name_indices([1, 2], None, info) == {"cyst": 1, "cyst 2": 2}


def test_viewer_values_map_to_protocol_indices_by_name():
    # Slicer numbers by position: the heart was drawn first.
    info = [{"name": "heart", "idx": 1}, {"name": " left lung ", "idx": 2}, {"name": "right lung", "idx": 3}]
    assert map_values({0, 1, 2}, info, PROTOCOL) == {1: 3, 2: 2}


def test_without_label_info_the_values_are_the_indices():
    assert map_values([0, 3], [], PROTOCOL) == {3: 3}


def test_without_a_protocol_values_stay():
    assert map_values([0, 7], [{"name": "cyst", "idx": 7}], None) == {7: 7}


def test_an_empty_segment_may_have_any_name():
    info = [{"name": "heart", "idx": 1}, {"name": "Segment_1", "idx": 2}]
    assert map_values([0, 1], info, PROTOCOL) == {1: 3}


@pytest.mark.parametrize(
    ("values", "info", "says"),
    [
        ([9], [], r"\[9\].*'heart' = 3"),
        ([2], [{"name": "heart", "idx": 1}], r"\[2\], which label_info does not name"),
        ([1], [{"name": "spleen", "idx": 1}], "no structure named 'spleen'"),
    ],
)
def test_values_that_cannot_be_named_are_refused(values, info, says):
    with pytest.raises(LabelError, match=says):
        map_values(values, info, PROTOCOL)


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("heart", "label_info is a list"),
        ([{"name": "heart"}], "label_info is a list"),
        ([{"name": "heart", "idx": "1"}], "label_info is a list"),
        ([{"name": "heart", "idx": True}], "label_info is a list"),
        ([{"name": "heart", "idx": 256}], "label_info is a list"),
        ([{"name": "heart", "idx": 1}, {"name": "left lung", "idx": 1}], "value 1 twice"),
    ],
)
def test_malformed_label_info_is_refused(info, says):
    with pytest.raises(RequestError, match=says):
        check_label_info(info)


def test_label_info_keeps_names_and_numbers_only():
    assert check_label_info([{"name": "heart", "idx": 1, "color": [1, 0, 0]}]) == [{"name": "heart", "idx": 1}]
    assert check_label_info(None) == []


def test_a_name_has_an_end():
    name = "x" * MAX_NAME_LENGTH
    assert check_label_info([{"name": name, "idx": 1}]) == [{"name": name, "idx": 1}]
    with pytest.raises(RequestError, match=f"at most {MAX_NAME_LENGTH} characters"):
        check_label_info([{"name": name + "x", "idx": 1}])


HEART = [{"name": " heart", "idx": 7}, {"name": "spleen", "idx": 2}]


def is_refused(info, value_to_index) -> bool:
    try:
        require_same_indices(PROTOCOL, "the label", info, value_to_index)
    except ProtocolError:
        return True
    return False


@pytest.mark.parametrize("value_to_index", [{"7": 3}, {"7": 3, "2": 2}, {"2": 1}, {}])
def test_a_protocol_fits_a_label_whose_structures_it_gives_the_same_indices_or_does_not_know(value_to_index):
    assert not is_refused(HEART, value_to_index)


def test_a_protocol_that_gives_a_structure_of_a_label_another_index_is_refused():
    says = r"gives 'heart' the index 3, and in the label it is 1: .* Give 'heart' its index 1 back"
    with pytest.raises(ProtocolError, match=says):
        require_same_indices(PROTOCOL, "the label", HEART, {"7": 1, "2": 2})


def test_of_two_segments_of_one_name_one_has_to_have_the_index_of_the_protocol():
    hearts = [{"name": "heart", "idx": 1}, {"name": "heart", "idx": 3}]
    assert not is_refused(hearts, {"1": 1, "3": 3})
    assert is_refused(hearts, {"1": 1})
