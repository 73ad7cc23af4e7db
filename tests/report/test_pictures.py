"""Slices, orientation and contours of label pictures."""

from xml.etree import ElementTree

import numpy as np
import pytest

from samcorrect.lib.errors import GeometryError
from samcorrect.lib.report.pictures import (
    CONTOUR_STYLES,
    MAX_SIDE_PX,
    LabelPicture,
    contour_style,
    display_slice,
    picture_of,
    picture_svg,
)

SVG = "{http://www.w3.org/2000/svg}"


def _label(shape_hwd, *, voxel):
    label_map = np.zeros(shape_hwd, np.uint8)
    label_map[voxel] = 1
    return label_map


def test_display_slice_adds_up_all_label_maps():
    # Slice 3 holds 1 voxel of the first map; slice 1 holds 2 + 1 voxels of the second and third.
    maps = [np.zeros((4, 4, 5), np.uint8) for _ in range(3)]
    maps[0][0, 0, 3] = 7
    maps[1][:2, 0, 1] = 1
    maps[2][0, 0, 1] = 1
    assert display_slice(np.zeros((4, 4, 5)), maps) == 1


@pytest.mark.parametrize(("depth", "middle"), [(1, 0), (5, 2), (6, 3)])
def test_display_slice_is_the_middle_one_where_nothing_is_labelled(depth, middle):
    assert display_slice(np.zeros((4, 4, depth)), [np.zeros((4, 4, depth), np.uint8)]) == middle
    assert display_slice(np.zeros((4, 4, depth)), []) == middle


def test_picture_has_rows_down_and_columns_right():
    array = np.zeros((30, 20, 3), np.float32)  # 30 wide, 20 high
    array[25, 2, 1] = 50
    picture = picture_of("a", array, {"label": _label(array.shape, voxel=(25, 2, 1))}, caption="c", score=0.5)
    assert picture.image_hw.shape == (20, 30)
    assert np.argwhere(picture.contours["label"]).tolist() == [[2, 25]]
    assert picture.image_hw.argmax() == 2 * 30 + 25
    assert (picture.image_id, picture.caption, picture.score) == ("a", "c", 0.5)


def test_picture_follows_patient_axes_where_an_affine_is_given():
    # RAS+: both indices grow to the patient's right and front, which a radiologist sees at the left and on top.
    array = np.random.default_rng(0).random((10, 12, 1)).astype(np.float32)
    maps = {"label": _label(array.shape, voxel=(9, 11, 0))}
    ras = picture_of("a", array, maps, caption="", affine=np.eye(4))
    assert ras.image_hw.shape == (12, 10)
    assert np.argwhere(ras.contours["label"]).tolist() == [[0, 0]]
    # LPS+, the order of DICOM and PNG: both indices grow to the left and back, so nothing is turned.
    lps = picture_of("a", array, maps, caption="", affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert np.argwhere(lps.contours["label"]).tolist() == [[11, 9]]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # Sagittal: index 0 to the front, index 1 to the head; the front is at the left, the head on top.
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [0, 0]),
        # Coronal with index 0 to the feet and index 1 to the left: rows are index 0, columns index 1, neither turned.
        ([[0, -1, 0], [0, 0, 1], [-1, 0, 0]], [9, 11]),
    ],
)
def test_picture_of_sagittal_and_coronal_slices_has_the_head_on_top(columns, expected):
    affine = np.eye(4)
    affine[:3, :3] = columns
    array = np.random.default_rng(0).random((10, 12, 1)).astype(np.float32)
    picture = picture_of("a", array, {"label": _label(array.shape, voxel=(9, 11, 0))}, caption="", affine=affine)
    assert np.argwhere(picture.contours["label"]).tolist() == [expected]


def test_large_image_is_reduced_with_its_labels():
    array = np.zeros((3 * MAX_SIDE_PX - 1, 700, 1), np.float32)
    array[900:1200, 300:600] = 1
    picture = picture_of("a", array, {"label": (array > 0).astype(np.uint8)}, caption="")
    assert picture.image_hw.shape == picture.contours["label"].shape == (234, MAX_SIDE_PX)
    np.testing.assert_array_equal(picture.image_hw > 0.5, picture.contours["label"] == 1)


def test_picture_refuses_a_label_of_another_shape():
    with pytest.raises(GeometryError, match=r"case7: 'before' has shape \(4, 4, 2\)"):
        picture_of("case7", np.zeros((4, 4, 1)), {"before": np.zeros((4, 4, 2), np.uint8)}, caption="")


def test_svg_outline_encloses_the_pixels():
    label_map = np.zeros((10, 10), np.uint8)
    label_map[2:4, 5:9] = 1  # rows 2-3, columns 5-8: x from 5 to 9, y from 2 to 4
    svg = ElementTree.fromstring(picture_svg(LabelPicture("a", np.zeros((10, 10)), {"label": label_map}, ""), {}))
    numbers = svg.find(f".//{SVG}path").get("d").strip("MZ").replace(" ", ",").split(",")
    xs, ys = np.array(numbers, float).reshape(-1, 2).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (5, 9, 2, 4)


def test_svg_closes_contours_at_the_border_and_skips_empty_labels():
    full, empty = np.ones((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    picture = LabelPicture("a", np.zeros((8, 8)), {"before": full, "after": empty}, "")
    paths = [p.get("d") for p in ElementTree.fromstring(picture_svg(picture, {1: "lung"})).iter(f"{SVG}path")]
    assert paths[0].count("M") == paths[0].count("Z") == 1
    assert paths[1] == ""


def test_svg_escapes_structure_names_and_drops_control_characters():
    picture = LabelPicture("a", np.zeros((8, 8)), {"label": np.ones((8, 8), np.uint8)}, "")
    svg = picture_svg(picture, {1: "<script>a&b\x00"})
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).find(f"{SVG}text").text == "<script>a&b"


def test_contours_differ_in_dashes_as_well_as_colour():
    for names in (["label", "ground truth"], ["before", "after", "ground truth"], ["label", "mine", "yours"]):
        styles = [contour_style(name, names) for name in names]
        assert len({s.dashes for s in styles}) == len({s.colour for s in styles}) == len(names)
    assert CONTOUR_STYLES["after"].dashes == ()
