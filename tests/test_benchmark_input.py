"""What is given to the benchmarks and cannot be measured is told or refused before any work."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from samcorrect.lib.errors import LabelError, ProtocolError
from samcorrect.lib.loop.arms import why_left_out
from samcorrect.lib.loop.evaluation import Case
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.store.volumes import read_image

BOXES_FILE = {"source": "boxes_file", "path": "boxes.csv"}
COLUMNS = "image,label,x0,y0,x1,y1"


@pytest.fixture
def given(phantoms, tmp_path) -> dict[str, str]:
    """Options of a run on the phantoms."""
    return {
        "--images": str(phantoms.images),
        "--labels": str(phantoms.labels),
        "--test-images": str(phantoms.test_images),
        "--test-labels": str(phantoms.test_labels),
        "--protocol": str(phantoms.images / "protocol.yaml"),
        "--json": str(tmp_path / "told.json"),
        "--out": str(tmp_path / "out"),
        "--seeds": "0",
    }


@pytest.fixture
def refused(module, given, tmp_path, capsys) -> Callable[..., str]:
    """A function that runs a benchmark with changed options and returns its last line; nothing may have been done."""

    def refused(script: str, *more: str, without: tuple[str, ...] = (), **changes: object) -> str:
        options = given | {f"--{name.replace('_', '-')}": str(value) for name, value in changes.items()}
        words = words_of({name: value for name, value in options.items() if name not in without})
        with suppress(SystemExit):
            assert module("common").run_main(lambda: module(script).main([*words, *more])) == 1
        assert not list(tmp_path.glob("out/seed*"))
        return capsys.readouterr().err.splitlines()[-1]

    return refused


def words_of(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (name, value)]


def protocol_of(prompts: dict[str, dict], folder: Path) -> Path:
    structures = [
        {"name": name, "index": index, "prompt": prompts[name]} for name, index in (("blob", 7), ("other", 3))
    ]
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({"structures": structures}), encoding="utf-8")
    return path


# Where results and states go


def test_states_are_not_written_into_the_json_file(refused, tmp_path):
    said = refused("arms", without=("--out",), json=tmp_path / "told")
    assert said.endswith(
        f"the states would lie in --json {tmp_path}/told itself; give it the suffix .json, or give --out"
    )


def test_a_folder_is_no_json_file(refused, tmp_path):
    said = refused("quality", json=tmp_path, without=("--test-images", "--test-labels"))
    assert said.endswith(f"--json {tmp_path} is a folder; give the name of a file in it")


def test_a_file_is_no_folder_of_states(refused, tmp_path):
    (tmp_path / "taken").touch()
    assert f"belong in the folder {tmp_path}/taken, which is a file" in refused("approvals", out=tmp_path / "taken")


@pytest.mark.parametrize("below", ["", "states"])
def test_states_do_not_lie_among_the_images(refused, phantoms, tmp_path, below):
    images = tmp_path / "copied"
    shutil.copytree(phantoms.images, images)
    said = refused("arms", images=images, out=images / below)
    assert said.endswith(f"among what is read from {images}; give another --out")
    assert {path.name for path in images.iterdir()} == {path.name for path in phantoms.images.iterdir()}


def test_the_plot_may_go_into_a_new_folder(module, tmp_path):
    path = tmp_path / "new" / "curve.png"
    module("approvals").plot(path, {"ours": {"0": {"dice_mean": 0.5, "dice_ci95": [0.4, 0.6]}}})
    assert path.read_bytes().startswith(b"\x89PNG")


# What cannot be measured


def test_test_images_without_truth_are_named(module, given, phantoms, tmp_path, capsys):
    labels = tmp_path / "labels"
    shutil.copytree(phantoms.test_labels, labels)
    (labels / "test1.png").unlink()
    parsed = module("common").parser_of("").parse_args(words_of(given | {"--test-labels": str(labels)}))

    assert [case.image_id for case in module("common").open_test(parsed)] == ["test0", "test2"]

    assert capsys.readouterr().err == f"left out: 1 test image(s) have no ground truth in {labels}: test1.png\n"


def test_a_long_list_of_images_without_truth_is_cut(module, given, phantoms, tmp_path, capsys):
    images, labels = tmp_path / "many", tmp_path / "one"
    images.mkdir()
    labels.mkdir()
    for number in range(14):
        shutil.copyfile(phantoms.test_images / "test0.png", images / f"test{number:02}.png")
    shutil.copyfile(phantoms.test_labels / "test0.png", labels / "test00.png")
    options = given | {"--images": str(images), "--labels": str(labels)}
    module("common").open_truth(module("common").parser_of("").parse_args(words_of(options)))
    assert capsys.readouterr().err.endswith("test09.png, test10.png and 3 more\n")


@pytest.fixture
def cases(phantoms) -> list[Case]:
    volume = read_image(phantoms.test_images / "test0.png")
    return [
        Case("a/test0", "a/test0.png", volume, volume.array, "a"),
        Case("test1", "test1.png", volume, volume.array, ""),
    ]


def test_a_box_of_a_training_image_prompts_no_test_image(cases, tmp_path):
    rows = [f"{name},{label},4,8,44,72" for name in ("test0.png", "test1.png") for label in ("blob", "other")]
    (tmp_path / "boxes.csv").write_text("\n".join([COLUMNS, *rows]), encoding="utf-8")
    protocol = load_protocol(protocol_of({"blob": BOXES_FILE, "other": BOXES_FILE}, tmp_path))
    assert why_left_out(cases, protocol) == why_left_out(cases, protocol, ["b/case0.png"]) == {}

    told = why_left_out(cases, protocol, ["b/test0.png", "case1.png"])

    first = "test0.png: the box of 'blob' is that of a training image"
    assert told == {"sam_only": f"SAM cannot be prompted on 1 of 2 images; the first: {first}"}


def test_one_box_for_every_image_is_no_training_images(cases, tmp_path):
    box = {"source": "box", "xyxy": [0.1, 0.1, 0.9, 0.9]}
    protocol = load_protocol(protocol_of({"blob": box, "other": box}, tmp_path))
    assert why_left_out(cases, protocol, ["a/test0.png"]) == {}


def test_no_arm_is_left_where_sam_alone_has_no_box(refused, phantoms, tmp_path):
    rows = [f"{path.name},{label},4,8,44,72" for path in phantoms.images.glob("*.png") for label in ("blob", "other")]
    (tmp_path / "boxes.csv").write_text("\n".join([COLUMNS, *rows]), encoding="utf-8")
    path = protocol_of({"blob": BOXES_FILE, "other": BOXES_FILE}, tmp_path)
    for more in ([], ["--box-noise", "0.1"]):
        said = refused("arms", "--arms", "sam_only", *more, protocol=path)
        assert said == "error: no arm is left; name others with --arms"


def test_what_the_student_prompts_has_no_box_to_move(refused, tmp_path):
    box = {"source": "box", "xyxy": [0.1, 0.1, 0.9, 0.9]}
    path = protocol_of({"blob": box, "other": {"source": "student"}}, tmp_path)
    said = refused("arms", "--box-noise", "0", "0.1", protocol=path)
    assert said == "error: 'other' is prompted by the student and has no box to move"


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_a_box_is_not_moved_out_of_its_place(refused, share):
    assert f"{share} is no share of a box's side" in refused("arms", f"--box-noise={share}")


@pytest.mark.parametrize("noise", ["morph", "morph101", "morph²", "boxes", ""])
def test_a_noise_that_does_not_exist_is_refused_before_the_others_are_made(refused, noise):
    said = refused("quality", without=("--test-images", "--test-labels"), noise=f"box,{noise}")
    assert said.startswith(f"error: no noise {noise!r}; known are box, chosen, morph25")


def test_noises_may_be_spaced(module):
    for noise in ("morph40", "morph0", "corrected"):
        module("noise").require_noise(noise)
    with pytest.raises(LabelError, match="no noise ' box'"):
        module("noise").require_noise(" box")


# Approvals


def test_more_approvals_than_images_are_left_out_and_told(module, given, capsys):
    parsed = module("common").parser_of("").parse_args(words_of(given))
    parsed.approvals, parsed.loop_approvals = [0, 40, 10, 11], 12
    module("approvals").clip_approvals(parsed, 10)
    assert (parsed.approvals, parsed.loop_approvals) == ([0, 10], 0)
    assert capsys.readouterr().err == "there are 10 images, so 11, 12, 40 approvals are left out\n"


def test_approvals_of_which_none_can_be_measured_are_refused(refused):
    assert refused("approvals", "--approvals", "20", "40").startswith("error: no number of approvals is left for 10")


@pytest.mark.parametrize("more", [("--approvals=-1",), ("--loop-approvals=-1",)])
def test_negative_approvals_are_refused(refused, more):
    assert refused("approvals", *more) == "error: -1 labels cannot be approved; give 0 or more"


# Boxes of images of one name


def test_two_images_do_not_share_a_box(tmp_path):
    rows = [
        "a/one.png,blob,4,8,44,72",
        "one.png,blob,5,8,44,72",
        "one.png,other,5,8,44,72",
        "a/one.png,other,4,8,44,72",
    ]
    (tmp_path / "boxes.csv").write_text("\n".join([COLUMNS, *rows]), encoding="utf-8")
    protocol = load_protocol(protocol_of({"blob": BOXES_FILE, "other": BOXES_FILE}, tmp_path))
    protocol.require_own_boxes(["a/one.png", "b/one.png", "two.png"])
    with pytest.raises(
        ProtocolError, match=r"one row for one.png and the label 'blob', and there are b/one.png and c/o"
    ):
        protocol.require_own_boxes(["a/one.png", "b/one.png", "c/one.png"])
