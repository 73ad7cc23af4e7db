"""The protocol file: what it says, and that every fault is reported in one message."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.protocol import Protocol, load_protocol

BOX = {"source": "box", "xyxy": [0.25, 0.125, 0.5, 0.75]}
BOXES_FILE = {"source": "boxes_file", "path": "boxes.csv"}
HEADER = "image,label,x0,y0,x1,y1\n"


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """A function that writes structures, and the rows of a boxes file, and returns the protocol's path."""

    def write(*structures: object, boxes: str | bytes | None = None, **top_level: object) -> Path:
        path = tmp_path / "protocol.yaml"
        path.write_text(yaml.safe_dump({"structures": list(structures), **top_level}))
        if boxes is not None:
            (tmp_path / "boxes.csv").write_bytes(boxes if isinstance(boxes, bytes) else boxes.encode())
        return path

    return write


def heart(prompt: object = None, **changes: object) -> dict:
    return {"name": "heart", "index": 3, "prompt": prompt or BOX, **changes}


def faults_of(path: Path) -> list[str]:
    """The faults that loading reports, one a line, the count in the first line checked."""
    with pytest.raises(ProtocolError) as caught:
        load_protocol(path)
    first, *faults = str(caught.value).split("\n  - ")
    assert first == f"{path}: {len(faults)} fault(s) in the protocol:"
    return faults


def only_fault_of(path: Path) -> str:
    (fault,) = faults_of(path)
    return fault


# What a protocol says


def test_a_relative_box_becomes_voxels_along_the_array_axes(write):
    protocol = load_protocol(write(heart()))
    # x from 0.25 to 0.5 of 200, y from 0.125 to 0.75 of 80, all of the 3 slices.
    box = protocol.box_vox(protocol.structures[0], "any.png", (200, 80, 3))
    assert box.tolist() == [[50, 100], [10, 60], [0, 3]]
    assert box.dtype == np.float64


def test_ranges_for_volumes_have_their_own_z(write):
    prompt = {"source": "box", "xyz": [[0, 0.5], [0.25, 1], [0.5, 0.75]]}
    protocol = load_protocol(write(heart(prompt)))
    box = protocol.box_vox(protocol.structures[0], "any.nii.gz", (20, 40, 8))
    assert box.tolist() == [[0, 10], [10, 40], [4, 6]]


def test_a_boxes_file_gives_each_image_its_box_in_two_and_in_three_dimensions(write):
    protocol = load_protocol(
        write(heart(BOXES_FILE), boxes=HEADER + "a.png,heart,1.5,2,30,20\nb.png,heart,-4,0,90,9\n")
    )
    structure = protocol.structures[0]
    assert protocol.box_vox(structure, "a.png", (40, 20, 1)).tolist() == [[1.5, 30], [2, 20], [0, 1]]
    assert protocol.box_vox(structure, "b.png", (40, 20, 1)).tolist() == [[0, 40], [0, 9], [0, 1]]  # cut to the image

    boxes = HEADER.strip() + ",z0,z1\na.nii.gz,heart,1,2,3,4,5,6\n"
    protocol = load_protocol(write(heart(BOXES_FILE), boxes=boxes))
    assert protocol.box_vox(structure, "a.nii.gz", (9, 9, 9)).tolist() == [[1, 3], [2, 4], [5, 6]]


@pytest.mark.parametrize("columns", ["", ",z0,z1"])
def test_a_row_without_coordinates_says_that_the_structure_is_not_there(write, columns):
    some, none = ("1,2,3,4,5,6", ",,,,,") if columns else ("1,2,3,4", ", ,,")
    rows = f"a.nii,heart,{some}\nb.nii,heart,{none}\n{','.join([''] * (some.count(',') + 3))}\n"
    protocol = load_protocol(write(heart(BOXES_FILE), boxes=HEADER.strip() + columns + "\n" + rows))
    structure = protocol.structures[0]
    assert protocol.box_vox(structure, "a.nii", (9, 9, 9)) is not None
    assert protocol.box_vox(structure, "b.nii", (9, 9, 9)) is None
    assert protocol.box_vox(structure, "patient/b.nii", (9, 9, 9)) is None
    assert protocol.usual_sizes_vox == ({"heart": (2, 2, 1)} if columns else {})


def test_the_usual_size_of_a_structure_is_the_median_of_its_boxes_of_volumes(write):
    rows = "a.nii,heart,0,0,4,8,0,2\nb.nii,heart,1,1,3,5,2,6\nc.nii,heart,0,0,9,9,0,3\n"
    protocol = load_protocol(write(heart(BOXES_FILE), boxes=HEADER.strip() + ",z0,z1\n" + rows))
    assert protocol.usual_sizes_vox == {"heart": (4, 8, 3)}
    assert load_protocol(write(heart(BOXES_FILE), boxes=HEADER + "a.png,heart,1,2,3,4\n")).usual_sizes_vox == {}


def test_a_student_prompt_has_no_box(write):
    protocol = load_protocol(write(heart({"source": "student"})))
    assert protocol.box_vox(protocol.structures[0], "a.png", (9, 9, 1)) is None


def test_names_and_indices_come_in_the_order_of_the_file(write):
    protocol = load_protocol(write(heart(), {"name": "lung", "index": 1, "prompt": BOX}))
    assert protocol.names == ("heart", "lung")
    assert protocol.indices == (3, 1)


def test_the_digest_changes_with_the_protocol_and_with_its_boxes(write):
    digests = {
        load_protocol(write(heart(BOXES_FILE), boxes=HEADER + f"a.png,heart,0,0,{x1},9\n")).digest for x1 in (8, 9, 9)
    }
    digests.add(load_protocol(write(heart(BOXES_FILE, index=4))).digest)
    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)


def test_each_structure_takes_its_boxes_from_its_own_file(write, tmp_path):
    (tmp_path / "other.csv").write_text(HEADER + "a.png,heart,5,5,9,9\na.png,lung,1,1,4,4\n")
    lung = {"name": "lung", "index": 1, "prompt": {"source": "boxes_file", "path": "other.csv"}}
    protocol = load_protocol(write(heart(BOXES_FILE), lung, boxes=HEADER + "a.png,heart,0,0,3,3\n"))
    boxes = [protocol.box_vox(structure, "a.png", (9, 9, 1))[0].tolist() for structure in protocol.structures]
    assert boxes == [[0, 3], [1, 4]]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + HEADER.encode(), HEADER.replace("\n", "\r\n").encode()])
def test_a_csv_of_excel_is_read(write, content):
    protocol = load_protocol(write(heart(BOXES_FILE), boxes=content + b'"a, 1.png",heart,0,0,3,3\r\n\r\n'))
    assert protocol.box_vox(protocol.structures[0], "a, 1.png", (9, 9, 1)).tolist() == [[0, 3], [0, 3], [0, 1]]


@pytest.mark.parametrize("name", ["jsrt_lungs", "jsrt_heart", "busi", "hippocampus"])
def test_the_protocols_of_the_shared_data_load_and_fit_every_image(shared_data, name):
    protocol = load_protocol(shared_data / "protocols" / f"{name}.yaml")
    names = {image for image, _ in protocol.boxes} or {"any.png"}
    for image_name in names:
        for structure in protocol.structures:
            box = protocol.box_vox(structure, image_name, (2000, 2000, 100))
            assert box.shape == (3, 2)
            assert (box[:, 0] < box[:, 1]).all()
    assert len(names) > 80 or name.startswith("jsrt")


def test_sam_sees_a_structure_in_its_window_and_the_student_the_image_in_one(write):
    lung = {"name": "lung", "index": 1, "prompt": BOX, "window_hu": [-1350, 150]}
    protocol = load_protocol(write(heart(window_hu=[-160, 240]), lung))
    assert [protocol.window_of(name) for name in ("heart", "lung")] == [(-160, 240), (-1350, 150)]
    # Without a window for all, the least that holds both.
    assert protocol.image_window_hu == protocol.window_of("a name of the viewer's") == (-1350, 240)

    protocol = load_protocol(write(heart(), lung, window_hu=[-200, 300]))
    assert [protocol.window_of(name) for name in ("heart", "lung")] == [(-200, 300), (-1350, 150)]
    assert protocol.image_window_hu == (-200, 300)

    protocol = load_protocol(write(heart()))
    assert protocol.image_window_hu is protocol.window_of("heart") is None


# Faults


@pytest.mark.parametrize(
    "content", ["", "just text", "- a\n- b", "structures:", "structures: []", "structures: {a: 1}"]
)
def test_a_file_without_a_list_of_structures_is_refused(tmp_path, content):
    (tmp_path / "protocol.yaml").write_text(content)
    with pytest.raises(ProtocolError, match=r"protocol\.yaml: the top level holds the key `structures`"):
        load_protocol(tmp_path / "protocol.yaml")


@pytest.mark.parametrize(
    "content", [b"structures: [", b"\x00\x01", b"a: \xff\xfe", b"!!python/object/apply:os.getcwd []"]
)
def test_a_file_that_is_not_yaml_is_refused(tmp_path, content):
    (tmp_path / "protocol.yaml").write_bytes(content)
    with pytest.raises(ProtocolError, match=r"protocol\.yaml: not YAML: ") as caught:
        load_protocol(tmp_path / "protocol.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.yaml", "."])
def test_a_missing_protocol_says_where_it_was_looked_for(tmp_path, name):
    with pytest.raises(ProtocolError, match=r"no protocol file at .*; write one with a list `structures`"):
        load_protocol(tmp_path / name)


@pytest.mark.parametrize(
    ("structure", "place", "reason"),
    [
        (heart(color="red"), "structures.1.color", "no such key; is it misspelt"),
        (heart({**BOX, "jitter": 3}), "structures.1.prompt.box.jitter", "no such key; is it misspelt"),
        (heart(index=0), "structures.1.index", "greater than or equal to 1"),
        (heart(index=256), "structures.1.index", "less than or equal to 255"),
        (heart(index="3"), "structures.1.index", "valid integer"),
        (heart(index=True), "structures.1.index", "valid integer"),
        (heart(index=1.5), "structures.1.index", "valid integer"),
        (heart(name=""), "structures.1.name", "at least 1 character"),
        (heart(name=["a"]), "structures.1.name", "valid string"),
        ({"name": "heart", "index": 3}, "structures.1.prompt", "Field required"),
        ("heart", "structures.1.", "valid dictionary"),
        (heart({"source": "points"}), "structures.1.prompt", "'box', 'boxes_file', 'student'"),
        (heart({"xyxy": [0, 0, 1, 1]}), "structures.1.prompt", "discriminator 'source'"),
        (heart({"source": "box"}), "structures.1.prompt.box", "either xyxy"),
        (heart({**BOX, "xyz": [[0, 1]] * 3}), "structures.1.prompt.box", "either xyxy"),
        (heart({"source": "box", "xyxy": [0, 0, 1]}), "structures.1.prompt.box.xyxy.4", "Field required"),
        (heart({"source": "box", "xyxy": [0, 0, 1, "b"]}), "structures.1.prompt.box.xyxy.4", "valid number"),
        (heart({"source": "box", "xyxy": [-0.1, 0, 1, 1]}), "structures.1.prompt.box.xyxy", r"inside [0, 1]"),
        (heart({"source": "box", "xyxy": [0, 0, 1, 1.1]}), "structures.1.prompt.box.xyxy", "got 0.0 to 1.1"),
        (heart({"source": "box", "xyxy": [0.5, 0, 0.5, 1]}), "structures.1.prompt.box.xyxy", "got 0.5 to 0.5"),
        (heart({"source": "box", "xyxy": [0, 0.8, 1, 0.2]}), "structures.1.prompt.box.xyxy", "got 0.8 to 0.2"),
        (heart({"source": "box", "xyxy": [0, 0, float("nan"), 1]}), "structures.1.prompt.box.xyxy", "0.0 to nan"),
        (heart({"source": "box", "xyz": [[0, 1], [0, 1], [1, 0]]}), "structures.1.prompt.box.xyz", "got 1.0 to 0.0"),
        (heart(window_hu=[40, 40]), "structures.1.window_hu", "low below high (got [40, 40])"),
        (heart(window_hu=[240, -160]), "structures.1.window_hu", "low below high (got [240, -160])"),
        (heart(window_hu=[0]), "structures.1.window_hu.2", "Field required"),
        (heart(window_hu=[0, 1, 2]), "structures.1.window_hu", "at most 2 items"),
        (heart(window_hu=400), "structures.1.window_hu", "valid tuple (got 400)"),
        (heart(window_hu=[0, "wide"]), "structures.1.window_hu.2", "valid number (got 'wide')"),
        (heart(window_hu=[False, 400]), "structures.1.window_hu.1", "valid number (got False)"),
        (heart(window_hu=[0, float("inf")]), "structures.1.window_hu.2", "finite number (got inf)"),
        (heart({"source": "boxes_file"}), "structures.1.prompt.boxes_file.path", "Field required"),
        (heart({"source": "student", "path": "x"}), "structures.1.prompt.student.path", "no such key"),
    ],
)
def test_a_fault_in_a_structure_is_placed_and_explained(write, structure, place, reason):
    fault = only_fault_of(write(structure))
    assert fault.startswith(place)
    assert reason in fault
    assert "(got " in fault


def test_an_unknown_key_at_the_top_is_named(write):
    assert only_fault_of(write(heart(), digest="0" * 64)).startswith("digest: no such key")


def test_a_window_of_all_structures_that_cannot_be_used_is_named(write):
    assert only_fault_of(write(heart(), window_hu=[300, -200])) == (
        "window_hu: a window is [low, high] in Hounsfield units with low below high (got [300, -200])"
    )
    assert only_fault_of(write(heart(), window_hu=[0, None])).startswith("window_hu.2: Input should be a valid number")


def test_an_image_is_ct_for_all_of_its_structures_or_for_none(write):
    lung = {"name": "lung", "index": 1, "prompt": BOX, "window_hu": [-1350, 150]}
    assert only_fault_of(write(heart(), lung)) == (
        "window_hu: other structures have one and 'heart' none; give each its own, or one for all at the top level"
    )


def test_an_index_or_a_name_given_twice_is_named(write):
    faults = faults_of(write(heart(), heart(), {"name": "lung", "index": 4, "prompt": BOX}))
    assert faults == [
        "the index 3 is given to more than one structure",
        "the name heart is given to more than one structure",
    ]


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        (None, "the boxes file {} does not exist"),
        ("", "{}: the columns are ; wanted image, label, x0, y0, x1, y1[, z0, z1]"),
        ("image,label,x0,x1,y0,y1\na.png,heart,0,1,0,1\n", "{}: the columns are image, label, x0, x1, y0, y1; wanted "),
        (HEADER, "{}: no row has the label 'heart'"),
        (HEADER + "a.png,lung,0,0,1,1\n", "{}: no row has the label 'heart'"),
        (HEADER + "a.png,heart,0,0,1,one\n", "{}, line 2: a coordinate is missing or not a number: a.png, heart, 0"),
        (HEADER + "a.png,heart,0,0,1\n", "{}, line 2: a coordinate is missing or not a number"),
        (
            HEADER + "a.png,heart,0,,1,1\n",
            "{}, line 2: a coordinate is missing or not a number: a.png, heart, 0, , 1, 1",
        ),
        (HEADER + "a.png,heart,,,,\na.png,heart,0,0,1,1\n", "{}, line 3: a second box for a.png and heart"),
        (HEADER.strip() + ",z0,z1\na.nii,heart,0,0,1,1,,\n", "{}, line 2: a coordinate is missing or not a number"),
        (HEADER + "a.png,heart\n", "{}, line 2: a coordinate is missing or not a number: a.png, heart"),
        (HEADER + "a.png\n", "{}, line 2: a coordinate is missing or not a number: a.png"),
        (HEADER + "a.png,heart,0,0,1,1,2,3\n", "{}, line 2: 8 values for 6 columns"),
        (HEADER + "a.png,heart,0,0,1,1,2\n", "{}, line 2: 7 values for 6 columns"),
        (HEADER.strip() + ",z0,z1\na.nii,heart,0,0,1,1\n", "{}, line 2: 6 values for 8 columns"),
        (HEADER + "a.png,heart,5,0,5,1\n", "{}, line 2: each stop must be above its start; got 5, 0, 5, 1"),
        (HEADER + "a.png,heart,0,5,1,4\n", "{}, line 2: each stop must be above its start"),
        (HEADER + "a.png,heart,0,nan,1,4\n", "{}, line 2: each stop must be above its start"),
        (HEADER + "a.png,heart,0,0,inf,4\n", "{}, line 2: each stop must be above its start"),
        (HEADER.strip() + ",z0,z1\na.nii,heart,0,0,1,1,3,2\n", "{}, line 2: each stop must be above its start"),
        (HEADER + "a.png,heart,0,0,1,1\n\na.png,heart,0,0,2,2\n", "{}, line 4: a second box for a.png and heart"),
        (HEADER.encode() + b"a\xff.png,heart,0,0,1,1\n", "{}: not a CSV in UTF-8: "),
        (HEADER.encode() + b'"' + b"x" * 200_000, "{}: not a CSV in UTF-8: field larger than field limit"),
    ],
)
def test_a_fault_in_a_boxes_file_is_placed_and_explained(write, tmp_path, boxes, reason):
    fault = only_fault_of(write(heart(BOXES_FILE), boxes=boxes))
    assert fault.startswith(reason.format(tmp_path / "boxes.csv"))


def test_all_faults_of_all_kinds_are_in_one_message(write, tmp_path):
    path = write(
        heart(index=300, prompt=BOXES_FILE),
        heart({"source": "box", "xyxy": [0, 0, 2, 1]}, name="lung", colour="red"),
        heart({"source": "boxes_file", "path": "gone.csv"}, name="lung", index=0),
        heart({"source": "points"}, name="liver", index=7),
        boxes=HEADER + "a.png,heart,0,0,0,1\na.png,heart,x,0,0,1\n",
        version=2,
    )
    faults = faults_of(path)
    expected = [
        "version: no such key",
        "structures.1.index",
        "structures.2.prompt.box.xyxy",
        "structures.2.colour",
        "structures.3.index",
        "structures.4.prompt",
        "the name lung",
        f"{tmp_path / 'boxes.csv'}, line 2",
        f"{tmp_path / 'boxes.csv'}, line 3",
        f"the boxes file {tmp_path / 'gone.csv'}",
    ]
    assert len(faults) == len(expected)
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(start)


def test_a_boxes_file_named_twice_reports_its_faults_once(write, tmp_path):
    path = write(heart(BOXES_FILE), heart(BOXES_FILE, name="lung", index=1), boxes=HEADER + "a.png,heart,0,0,x,1\n")
    assert only_fault_of(path).startswith(f"{tmp_path / 'boxes.csv'}, line 2")


def test_an_image_without_a_row_or_with_a_box_outside_it_is_named(write):
    protocol = load_protocol(write(heart(BOXES_FILE), boxes=HEADER + "a.png,heart,50,0,60,9\n"))
    structure = protocol.structures[0]
    with pytest.raises(ProtocolError, match=r"b\.png: boxes\.csv has no row for the label 'heart'"):
        protocol.box_vox(structure, "b.png", (99, 99, 1))
    with pytest.raises(ProtocolError, match=r"where it is not in the image, a row with empty coordinates says so"):
        protocol.box_vox(structure, "b.png", (99, 99, 1))
    with pytest.raises(
        ProtocolError, match=r"a\.png: the box of 'heart' in boxes\.csv lies outside the image \(50, 20, 1\)"
    ):
        protocol.box_vox(structure, "a.png", (50, 20, 1))


def test_a_relative_box_lies_inside_every_image(write, rng):
    protocol: Protocol = load_protocol(write(heart()))
    for shape in rng.integers(8, 600, (50, 3)):
        box = protocol.box_vox(protocol.structures[0], "any.png", tuple(shape))
        assert (box[:, 0] >= 0).all()
        assert (box[:, 0] < box[:, 1]).all()
        assert (box[:, 1] <= shape).all()
