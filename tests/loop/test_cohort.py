"""The cohort: images and labels in the student's frame, and what is left out."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.store.volumes import read_label_map
from samcorrect.lib.transforms.frame import labels_to_frame, to_frame


def test_a_cohort_holds_each_image_with_its_label_in_the_frame(labelled, phantoms):
    workspace = labelled()
    cohort = load_cohort(workspace, best_labels(workspace))
    assert [row.id for row in cohort.images] == [f"case{n}" for n in range(10)]
    assert cohort.frames.shape == cohort.targets.shape == (10, 32, 32)
    assert cohort.config.indices == (7, 3)
    truth = read_label_map(phantoms.labels / "case3.png").array
    assert torch.equal(cohort.targets[cohort.spans[3]], labels_to_frame(truth, (7, 3), 32))
    # Channel 1 is the structure with index 7, in the first half of the x axis, which is the frame's first axis.
    rows = np.flatnonzero(cohort.mask(3, 1).any((0, 2)))
    assert len(rows)
    assert rows.max() < 16


def test_the_cohort_and_its_students_see_ct_in_the_window_of_the_protocol(labelled, phantoms, tmp_path):
    path = tmp_path / "ct.yaml"
    path.write_text((phantoms.images / "protocol.yaml").read_text() + "window_hu: [100, 150]\n")
    workspace = labelled(protocol=path, shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    assert cohort.config.window_hu == (100, 150)
    array = workspace.store.read_image("case3").array
    wanted = to_frame(np.clip((array - 100) / 50, 0, 1), 32)
    assert torch.allclose(cohort.frames[cohort.spans[3]], wanted, atol=1e-6)


def test_the_best_label_is_final_then_corrected_then_original(labelled, phantoms):
    workspace = labelled()
    store = workspace.store
    original = best_labels(workspace)["case0"]
    affine = store.read_image("case0").affine
    corrected = store.save_label_map("case0", np.zeros((96, 80, 1), int), tag="corrected", maker="test", affine=affine)
    assert best_labels(workspace)["case0"].id == corrected.id
    final = store.submit_label("case0", phantoms.labels / "case0.png", tag="final", user="anna")
    store.save_label_map("case0", np.ones((96, 80, 1), int), tag="corrected", maker="test", affine=affine)
    assert best_labels(workspace)["case0"].id == final.id
    assert store.label_path(original).is_file()
    assert load_cohort(workspace, best_labels(workspace)).is_approved.tolist() == [True] + [False] * 9


def test_an_image_that_changed_its_grid_or_broke_is_set_aside_with_the_reason(labelled, phantoms, tmp_path):
    settings = labelled().settings
    moved = shutil.copytree(phantoms.images, tmp_path / "moved")
    (moved / "case1.png").write_text("no picture")
    Image.fromarray(np.full((96, 80), 7, np.uint8)).save(moved / "case4.png")
    workspace = open_workspace(moved, settings)
    cohort = load_cohort(workspace, best_labels(workspace))
    assert len(cohort) == 8
    reasons = dict(workspace.store.ledger.quarantined())
    assert set(reasons) == {"case1", "case4"}
    assert "cannot be read as png" in reasons["case1"]
    assert "is not on its image's grid" in reasons["case4"]


def test_without_labels_it_says_which_command_makes_them(phantom_workspace):
    workspace = phantom_workspace()
    with pytest.raises(LabelError, match=r"no image has a label yet; run `samcorrect pseudo-label`"):
        load_cohort(workspace, best_labels(workspace))
