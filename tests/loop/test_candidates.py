"""SAM's candidate masks of an image and their place on the disk."""

from pathlib import Path

import numpy as np
import pytest

from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.pseudo_label import masks_to_grid


def candidates_of(workspace, image_id: str):
    return find_candidates(workspace, workspace.store.read_image(image_id), f"{image_id}.png")


def candidate_files(phantoms) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in (phantoms.cache / "candidates").iterdir()}


def test_each_structure_has_its_prompts_and_the_first_is_the_box_as_given(phantom_workspace):
    right, left = candidates_of(phantom_workspace(n_candidates=2), "case0")
    # 0.04 * 96, 0.10 * 80, 0.56 * 96, 0.92 * 80
    assert np.allclose(right.boxes[0], [3.84, 8, 53.76, 73.6])
    assert right.masks.shape == left.masks.shape == (2, 1, 256, 256)
    assert right.masks.dtype == bool
    for found in (right, left):
        assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    # The structure of the first half of the x axis lies there on the image's grid too.
    on_grid = masks_to_grid(right.masks[0], (96, 80)) > 0.5
    columns = np.flatnonzero(on_grid.any((1, 2)))
    assert len(columns)
    assert columns.mean() < 48


def test_candidates_are_made_once_and_a_torn_file_is_made_anew(phantom_workspace, phantoms):
    workspace = phantom_workspace(n_candidates=1)
    before = candidate_files(phantoms)
    first = candidates_of(workspace, "case1")
    (made,) = candidate_files(phantoms).keys() - before.keys()
    inode = made.stat().st_ino
    candidates_of(workspace, "case1")
    assert made.stat().st_ino == inode
    made.write_bytes(made.read_bytes()[:100])
    again = candidates_of(workspace, "case1")
    assert made.stat().st_ino != inode
    assert all(np.array_equal(a.masks, b.masks) for a, b in zip(first, again, strict=True))


def test_other_settings_of_the_prompts_make_other_candidates(phantom_workspace):
    three = candidates_of(phantom_workspace(n_candidates=3), "case0")
    assert len(three[0].masks) == 3


def test_a_prompt_from_the_student_needs_one(phantom_workspace, tmp_path):
    path = tmp_path / "student.yaml"
    path.write_text("structures: [{name: organ, index: 1, prompt: {source: student}}]")
    with pytest.raises(ProtocolError, match=r"organ.* comes from the student, and none is promoted yet"):
        candidates_of(phantom_workspace(protocol=path), "case0")


def test_an_image_that_the_boxes_file_lacks_is_named(phantom_workspace, tmp_path):
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\ncase1.png,organ,10,10,50,50\n")
    path = tmp_path / "boxes.yaml"
    path.write_text("structures: [{name: organ, index: 1, prompt: {source: boxes_file, path: boxes.csv}}]")
    workspace = phantom_workspace(protocol=path)
    assert candidates_of(workspace, "case1")[0].masks.any()
    with pytest.raises(ProtocolError, match=r"case0\.png: .*has no row for the label 'organ'"):
        candidates_of(workspace, "case0")
