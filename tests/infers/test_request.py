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


def test_a_box_has_both_ends_inside_in_either_order():
    box = parse_prompt_request({"roi": [20, 10, 5, 15, 4, 2]}, VOLUME).box_vox
    assert box.tolist() == [[10, 21], [5, 16], [2, 5]]


def test_a_box_of_four_values_spans_all_slices_of_its_image():
    assert parse_prompt_request({"roi": [1, 2, 3, 4]}, PICTURE).box_vox.tolist() == [[1, 3], [3, 5], [0, 1]]
    assert parse_prompt_request({"roi": [1, 2, 3, 4]}, VOLUME).box_vox[2].tolist() == [0, 6]


def test_slice_zero_is_a_slice():
    assert parse_prompt_request({"slice": 0, "roi": [1, 2, 3, 4, 0, 3]}, VOLUME).slice_index == 0
    assert parse_prompt_request({"foreground": [[1, 2, 0]]}, VOLUME).slice_index is None


def test_a_slice_outside_the_box_says_nothing_unless_there_are_points():
    request = {"slice": 90, "roi": [1, 2, 3, 4, 1, 3]}
    assert parse_prompt_request(request, VOLUME).slice_index is None
    assert parse_prompt_request(request | {"foreground": [[1, 3, 2]], "slice": 5}, VOLUME).slice_index == 5


def test_a_picture_has_one_slice_wherever_the_viewer_puts_it():
    parsed = parse_prompt_request(
        {"foreground": [[1, 2, 17], [3, 4]], "slice": 17, "roi": [1, 2, 3, 4, 90, 95]}, PICTURE
    )
    assert parsed.slice_index == 0
    assert parsed.foreground == ((1, 2, 0), (3, 4, 0))
    assert parsed.box_vox[2].tolist() == [0, 1]


def test_empty_prompts_are_no_prompts():
    parsed = parse_prompt_request({"foreground": [], "background": None, "roi": [], "label": ""}, VOLUME)
    assert (parsed.box_vox, parsed.foreground, parsed.background, parsed.label) == (None, (), (), "structure")


@pytest.mark.parametrize(
    ("request_params", "says"),
    [
        ({"roi": [1, 2, 3]}, "`roi` is"),
        ({"roi": "1,2,3,4"}, "`roi` is"),
        ({"roi": [1, 2, 3, None]}, "`roi` holds numbers"),
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
