"""Why a label has its score: words, picture and map."""

from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest

from samcorrect.cli import main
from samcorrect.lib.errors import LabelError, SettingsError, UnknownImageError, UnknownLabelError
from samcorrect.lib.loop import explain as explain_module
from samcorrect.lib.loop.explain import _where, explain_image, place_in_words, write_explanation
from samcorrect.lib.loop.peer_context import CONTEXT_NAME
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.store.volumes import LPS_TO_RAS

SVG = "{http://www.w3.org/2000/svg}"
FEW = {"shares_trainings": False, "student_steps": 12}


@pytest.fixture
def scored(labelled):
    """Scored labels; that of case1 was made from prompts, so SAM has candidates for it."""
    workspace = labelled(**FEW)
    made = workspace.store.read_label(workspace.store.ledger.best_label("case1"))
    workspace.store.save_label_map(
        "case1", made, tag="original", maker="test", affine=LPS_TO_RAS, prompts={"right blob": "box"}
    )
    score_store(workspace)
    return workspace


def block(rows: slice, columns: slice, shape=(9, 9, 1)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [(0, 0, "upper left"), (8, 4, "right"), (4, 8, "lower"), (4, 4, "middle"), (8, 8, "lower right")],
)
def test_a_place_is_named_by_thirds_as_displayed(x, y, told):
    part = np.zeros((9, 9), bool)
    part[x, y] = True
    # LPS: x runs to the right and y down.
    assert place_in_words(part, np.ones((9, 9), bool), LPS_TO_RAS) == f"in its {told} part as displayed"


def test_a_place_is_turned_as_the_picture_is():
    part = np.zeros((9, 9), bool)
    part[8, 8] = True
    # RAS: the first axis ends at the patient's right, shown on the left; the second at the front, shown on top.
    assert place_in_words(part, np.ones((9, 9), bool), np.eye(4)) == "in its upper left part as displayed"


def test_the_place_is_the_connected_part_with_the_largest_sum_of_disagreement():
    peer = block(np.s_[0:6], np.s_[2:6])
    mask = block(np.s_[3:9], np.s_[2:6])
    disagreement = np.full(mask.shape, 0.5)
    disagreement[6:9] = 0.6  # 12 voxels of the label alone: 7.2, against 12 x 0.5 of the students alone
    told, box = _where(mask, peer, disagreement, LPS_TO_RAS)
    assert told == (
        "differs most in its right part as displayed: 12 voxels in the box [6, 9) x [2, 6) x [0, 1), axes x, y, z; "
        "the label has it, the students do not"
    )
    assert box == np.s_[6:9, 2:6, 0:1]
    told, _ = _where(peer, mask, disagreement, LPS_TO_RAS)
    assert told.endswith("the students have it, the label does not")
    assert _where(mask, mask, disagreement, LPS_TO_RAS) == ("label and students agree on every voxel", None)


def test_words_picture_and_map_of_a_label(scored, tmp_path):
    out, map_path = tmp_path / "case1.svg", tmp_path / "case1.nii.gz"
    lines = write_explanation(scored, "case1", out=out, map_path=map_path)
    row = scored.store.ledger.quality(scored.store.ledger.best_label("case1").id)[7]
    (of_structure,) = [line for line in lines if line.startswith("right blob: score")]
    assert f"score {row.score:.3f}, expected Dice {row.expected_dice:.3f} (90% interval" in of_structure
    assert "a prior" in of_structure
    assert [f"  {reason}" in lines for reason in row.reasons] == [True] * len(row.reasons)
    assert lines[-2:] == [f"map: {map_path}", f"picture: {out}"]

    svg = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    paths = [path.get("d") for path in svg.iter(f"{SVG}path")]
    assert len(paths) == 3
    assert paths[0]  # between them the students, who may find nothing after 12 steps
    assert paths[2]
    assert len(list(svg.iter(f"{SVG}image"))) == 2
    assert "SAM's candidate nearest to them" in [text.text for text in svg.iter(f"{SVG}text")]

    image = nib.load(map_path)
    assert image.get_data_dtype() == np.float32
    assert image.shape == (96, 80, 1)
    assert np.allclose(image.affine, LPS_TO_RAS)
    values = np.asarray(image.dataobj)
    assert ((values >= 0) & (values <= 1)).all()
    assert values.max() > values.min()


@pytest.mark.slow
def test_a_label_that_was_moved_down_is_told_to_miss_what_lies_above(labelled, tmp_path):
    workspace = labelled()
    score_store(workspace)
    told = explain_image(workspace, "case2")
    where = [line for line in told.lines if "differs most" in line]
    assert len(where) == 2
    for line in where:
        above = "upper" in line and "the label does not" in line
        below = "lower" in line and "the students do not" in line
        assert above or below, line
    label_map = workspace.store.read_label(workspace.store.ledger.best_label("case2"))
    moved_back = np.roll(label_map, -18, axis=1)
    wrong, right = told.disagreement[label_map != moved_back], told.disagreement[label_map == moved_back]
    assert wrong.mean() > 2 * right.mean()


def test_the_default_picture_lies_in_the_state_folder_and_html_holds_the_words(scored, tmp_path):
    lines = write_explanation(scored, "case0")
    assert lines[-1] == f"picture: {scored.store.state_dir / 'explain' / 'case0.svg'}"
    svg = ElementTree.parse(scored.store.state_dir / "explain" / "case0.svg")
    assert len(list(svg.iter(f"{SVG}path"))) == 2  # no prompts, so no candidate
    write_explanation(scored, "case0", out=tmp_path / "case0.html")
    page = (tmp_path / "case0.html").read_text(encoding="utf-8")
    assert page.count("<li>") == len(lines) - 1
    assert "<svg" in page


def test_the_pictures_of_two_images_never_take_each_others_place(scored, monkeypatch):
    told = explain_image(scored, "case0")
    monkeypatch.setattr(explain_module, "explain_image", lambda *_: told)

    pictures = {write_explanation(scored, image_id)[-1] for image_id in ("a/b", "a_b", "a/c")}

    assert len(pictures) == 3


def test_without_peers_words_and_the_label_are_left_and_it_says_so(scored, tmp_path):
    (scored.store.state_dir / CONTEXT_NAME).unlink()
    told = explain_image(scored, "case1")
    assert told.lines[-1].startswith("no students are kept")
    assert told.disagreement is None
    svg = ElementTree.fromstring(told.svg)
    assert (len(list(svg.iter(f"{SVG}path"))), len(list(svg.iter(f"{SVG}image")))) == (1, 1)
    with pytest.raises(LabelError, match="case1 has no map of disagreement: no students are kept"):
        write_explanation(scored, "case1", map_path=tmp_path / "map.nii.gz")


def test_what_cannot_be_explained_is_said(labelled, phantom_workspace, tmp_path):
    workspace = labelled(**FEW)
    with pytest.raises(UnknownImageError, match="nobody"):
        explain_image(workspace, "nobody")
    with pytest.raises(LabelError, match="case1 is not scored yet; run `samcorrect score` first"):
        explain_image(workspace, "case1")
    with pytest.raises(UnknownLabelError, match="case1 has no label yet"):
        explain_image(phantom_workspace("empty"), "case1")
    with pytest.raises(SettingsError, match=r"written as \.svg or \.html"):
        write_explanation(workspace, "case1", out=tmp_path / "case1.pdf")
    assert not list(tmp_path.glob("case1*"))


def test_the_command_explains_and_an_unknown_image_is_one_line(scored, phantoms, capsys, tmp_path):
    where = ["--studies", str(phantoms.images), "--state", str(scored.store.state_dir), *phantoms.options]
    where += ["--student-steps", "12"]
    assert main(["score", *where, "--explain", "case1", "--out", str(tmp_path / "a.svg")]) == 0
    assert "differs most" in capsys.readouterr().out
    assert main(["score", *where, "--explain", "nobody"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("samcorrect score: ")
    assert "nobody" in said
    assert "\n" not in said
    assert main(["score", *where, "--map", str(tmp_path / "map.nii.gz")]) == 1
    assert "name it with --explain IMAGE" in capsys.readouterr().err
    assert main(["score", *where, "--explain", "case1", "--map", str(phantoms.images / "map.nii.gz")]) == 1
    assert "lies in the studies folder" in capsys.readouterr().err
