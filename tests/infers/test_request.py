from pathlib import Path

import pytest

from samcorrect.lib.errors import RequestError
from samcorrect.lib.infers.request import parse_infer_request, parse_prompt_request

VOLUME, PICTURE = (40, 30, 6), (40, 30, 1)
STORED = {"image_id": "a", "image": "/studies/a.png"}


def test_defaults_of_an_infer_request():
    parsed = parse_infer_request(STORED, saved_tag="original")
    assert parsed.image_path == Path("/studies/a.png")
    assert (parsed.image_id, parsed.result_extension, parsed.is_compressed) == ("a", ".nii.gz", True)
    assert (parsed.label_tag, parsed.user) == (None, "unknown")


def test_what_the_viewers_send():
    slicer = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
    assert parse_infer_request(STORED | slicer, saved_tag=None).result_extension == ".nrrd"
    assert parse_infer_request(STORED | slicer, saved_tag=None).user == "user-xyz"
    assert not parse_infer_request(STORED | {"result_compress": False}, saved_tag=None).is_compressed


@pytest.mark.parametrize("tag", [{}, {"label_tag": "original"}, {"label_tag": None}])
def test_a_label_is_saved_under_the_tag_of_its_model(tag):
    assert parse_infer_request(STORED | {"save_label": "true"} | tag, saved_tag="original").label_tag == "original"


@pytest.mark.parametrize(
    ("extra", "saved_tag", "says"),
    [
        ({"save_label": True, "label_tag": "final"}, "original", "`final` is a person's"),
        ({"save_label": True, "label_tag": "corrected"}, "original", "'corrected'"),
        ({"save_label": True}, None, "not saved"),
        ({"save_label": "perhaps"}, "original", "`save_label` is true or false"),
        ({"save_label": 1}, "original", "`save_label` is true or false"),
        ({"result_extension": ".seg.nrrd"}, None, "`result_extension` is one of"),
        ({"result_extension": ["x"]}, None, "`result_extension` is one of"),
        ({"save_label": True, "image_id": None}, "original", "upload session"),
    ],
)
def test_bad_infer_requests(extra, saved_tag, says):
    with pytest.raises(RequestError, match=says):
        parse_infer_request(STORED | extra, saved_tag=saved_tag)


def parse(request: dict, shape=VOLUME, **options):
    """The prompts of the only structure."""
    (prompts,) = parse_prompt_request(request, shape, **options).structures
    return prompts


def test_a_box_has_both_ends_inside_in_either_order():
    (box,) = parse({"roi": [20, 10, 5, 15, 4, 2]}).boxes_vox
    assert box.tolist() == [[10, 21], [5, 16], [2, 5]]


def test_a_box_of_four_values_spans_all_slices_of_its_image():
    assert parse({"roi": [1, 2, 3, 4]}, PICTURE).boxes_vox[0].tolist() == [[1, 3], [3, 5], [0, 1]]
    assert parse({"roi": [1, 2, 3, 4]}).boxes_vox[0][2].tolist() == [0, 6]


def test_several_boxes_are_parts_of_one_structure():
    boxes = parse({"roi": [[1, 2, 3, 4, 0, 0], [9, 5, 3, 4]]}).boxes_vox
    assert [box.tolist() for box in boxes] == [[[1, 3], [3, 5], [0, 1]], [[5, 10], [3, 5], [0, 6]]]


def test_slice_zero_is_a_slice():
    assert parse({"slice": 0, "roi": [1, 2, 3, 4, 0, 3]}).slice_index == 0
    assert parse({"foreground": [[1, 2, 0]]}).slice_index is None


def test_a_slice_outside_the_box_says_nothing_unless_there_are_points():
    request = {"slice": 90, "roi": [1, 2, 3, 4, 1, 3]}
    assert parse(request).slice_index is None
    assert parse(request | {"foreground": [[1, 3, 2]], "slice": 5}).slice_index == 5
    # Along another axis the box is elsewhere.
    assert parse(request | {"slice": 2, "axis": 0}).slice_index == 2
    assert parse(request | {"slice": 5, "axis": 0}).slice_index is None


def test_a_picture_has_one_slice_wherever_the_viewer_puts_it():
    parsed = parse({"foreground": [[1, 2, 17], [3, 4]], "slice": 17, "roi": [1, 2, 3, 4, 90, 95]}, PICTURE)
    assert parsed.slice_index == 0
    assert parsed.foreground == ((1, 2, 0), (3, 4, 0))
    assert parsed.boxes_vox[0][2].tolist() == [0, 1]


def test_empty_prompts_are_no_prompts():
    parsed = parse({"foreground": [], "background": None, "roi": [], "label": "", "mask": "", "structures": []})
    assert (parsed.boxes_vox, parsed.foreground, parsed.background, parsed.label) == ((), (), (), "structure")
    assert (parsed.axis, parsed.spreads, parsed.start) == (2, False, None)


def test_a_mask_spreads_where_the_model_or_the_request_says_so_and_never_in_a_picture():
    assert parse({"roi": [1, 2, 3, 4]}, spreads=True).spreads
    assert parse({"roi": [1, 2, 3, 4], "propagate": "true"}).spreads
    assert not parse({"roi": [1, 2, 3, 4], "propagate": False}, spreads=True).spreads
    assert not parse({"roi": [1, 2, 3, 4]}, PICTURE, spreads=True).spreads


def test_several_structures_share_axis_and_mask():
    entries = [{"label": "a", "foreground": [[1, 2, 3]]}, {"label": "b", "roi": [1, 2, 3, 4], "slice": 1}]
    parsed = parse_prompt_request({"structures": entries, "axis": 1, "mask": "best_label"}, VOLUME)
    assert [(s.label, s.axis) for s in parsed.structures] == [("a", 1), ("b", 1)]
    assert parsed.structures[0].foreground == ((1, 2, 3),)
    assert parsed.refines_stored


@pytest.mark.parametrize(
    ("request_params", "says"),
    [
        ({"roi": [1, 2, 3]}, "`roi` is"),
        ({"roi": "1,2,3,4"}, "`roi` is"),
        ({"roi": [1, 2, 3, None]}, "`roi` holds numbers"),
        ({"roi": [[1, 2, 3, 4], [1, 2]]}, "`roi` is"),
        ({"roi": [[1, 2, 3, 4], 7]}, "`roi` is"),
        ({"roi": [[1, 2, 3, 4]] * 65}, "`roi` holds at most 64 boxes; got 65"),
        ({"foreground": [[1, 2, 3]] * 201}, "`foreground` holds at most 200 points; got 201"),
        ({"axis": 3}, "`axis` is 0, 1 or 2.*got 3"),
        ({"axis": "z"}, "`axis` is 0, 1 or 2.*got 'z'"),
        ({"axis": True}, "`axis` is 0, 1 or 2.*got True"),
        ({"axis": [2]}, "`axis` is 0, 1 or 2"),
        ({"mask": "/etc/passwd"}, "`mask` is 'best_label' or left out; got '/etc/passwd'"),
        ({"propagate": "far"}, "`propagate` is true or false"),
        ({"structures": {"label": "a"}}, "`structures` is a list"),
        ({"structures": ["a"]}, "`structures` is a list"),
        ({"structures": [{}] * 33}, "`structures` holds at most 32; got 33"),
        ({"structures": [{"label": "a"}, {"label": "a"}]}, "one `label` more than once: a"),
        ({"structures": [{"label": "a", "slice": "x"}]}, "`slice` holds numbers"),
        ({"roi": [1, 2, 3, float("nan")]}, "`roi` holds numbers"),
        ({"foreground": [1, 2, 3]}, "`foreground` is a list of points"),
        ({"foreground": [[1, 2]]}, "`foreground` is a list of points"),
        ({"background": [["a", 2, 3]]}, "`background` holds numbers"),
        ({"slice": "two"}, "`slice` holds numbers"),
        ({"slice": True}, "`slice` holds numbers"),
        ({"label": ["x"]}, "`label` is the name"),
        ({"label": "x" * 65}, "`label` is the name"),
    ],
)
def test_bad_prompts(request_params, says):
    with pytest.raises(RequestError, match=says):
        parse_prompt_request(request_params, VOLUME)


def test_a_picture_has_no_other_axis():
    with pytest.raises(RequestError, match="`axis` is 0, 1 or 2, the axis of the slices, and 2 in a 2D image; got 0"):
        parse_prompt_request({"axis": 0}, PICTURE)
