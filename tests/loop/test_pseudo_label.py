"""Pseudo-labels of a store: which images get one, once, and what an interruption leaves."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from samcorrect.lib.errors import StoreError
from samcorrect.lib.infers.sam import SamTask
from samcorrect.lib.loop import pseudo_label
from samcorrect.lib.loop.candidates import Candidates
from samcorrect.lib.loop.pseudo_label import (
    COHORT_NAME,
    STAGE_CHOOSE,
    choose_candidates,
    masks_to_grid,
    pseudo_label_image,
    pseudo_label_store,
)
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings


def originals(workspace) -> dict[str, str]:
    labels = workspace.store.ledger.latest_labels()
    return {image_id: row.content_sha256 for (image_id, tag), row in labels.items() if tag == "original"}


def test_every_image_gets_one_label_with_its_provenance_and_a_second_call_keeps_them(phantom_workspace, true_dice):
    workspace = phantom_workspace()
    assert pseudo_label_store(workspace) == {"n_labelled": 10, "n_kept": 0, "n_quarantined": 0}
    assert pseudo_label_store(workspace) == {"n_labelled": 0, "n_kept": 10, "n_quarantined": 0}
    row = workspace.store.label("case0", "original")
    assert (row.maker, row.model_digest) == ("sam:lite_medsam", workspace.sam.digest)
    assert row.prompts["left blob"]["source"] == "box"
    assert set(row.info["structures"]) == {"right blob", "left blob"}
    labels = {i: workspace.store.read_label(workspace.store.label(i, "original")) for i in originals(workspace)}
    assert all(set(np.unique(label_map)) <= {0, 3, 7} for label_map in labels.values())
    assert np.mean([true_dice(i, label_map) for i, label_map in labels.items()]) > 0.7


def test_a_label_of_the_store_is_that_of_the_image_alone(phantom_workspace):
    workspace = phantom_workspace()
    pseudo_label_store(workspace)
    volume = workspace.store.read_image("case4")
    alone = pseudo_label_image(workspace, volume, "case4.png")
    assert np.array_equal(alone.label_map, workspace.store.read_label(workspace.store.label("case4", "original")))


def test_of_masks_that_sam_is_about_as_sure_of_the_one_in_their_middle_is_taken(phantom_workspace):
    masks = np.zeros((3, 1, 32, 32), bool)
    for number, columns in enumerate([slice(4, 12), slice(4, 13), slice(11, 20)]):
        masks[number, 0, 4:12, columns] = True

    def choice(confidences, preset):
        found = Candidates(masks, np.array(confidences), np.ones(3), np.zeros((3, 4)))
        return choose_candidates(phantom_workspace(preset=preset), [found, found])

    assert choice([0.89, 0.8925, 0.9], "samcorrect") == [1, 1]
    assert choice([0.59, 0.5925, 0.9], "samcorrect") == [2, 2]
    assert choice([0.59, 0.5925, 0.9], "huang2023") == [0, 0]


def test_another_preset_labels_anew_and_keeps_the_old_version(phantom_workspace):
    workspace = phantom_workspace()
    pseudo_label_store(workspace)
    first = workspace.store.label("case0", "original")
    assert pseudo_label_store(workspace.with_settings(preset="huang2023"))["n_labelled"] == 10
    assert workspace.store.label("case0", "original").id > first.id
    assert workspace.store.label_path(first).is_file()


def test_an_interrupted_pass_goes_on_and_ends_as_an_undisturbed_one(phantom_workspace):
    whole, cut = phantom_workspace("whole"), phantom_workspace("cut")
    pseudo_label_store(whole)

    def stop_at_four(stage: str, done: int, _total: int) -> None:
        if (stage, done) == (STAGE_CHOOSE, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pseudo_label_store(cut, progress=stop_at_four)
    assert len(originals(cut)) == 4
    assert pseudo_label_store(cut) == {"n_labelled": 6, "n_kept": 4, "n_quarantined": 0}
    assert originals(cut) == originals(whole)
    assert (cut.store.state_dir / COHORT_NAME).read_bytes() == (whole.store.state_dir / COHORT_NAME).read_bytes()


def test_where_confidence_is_not_believed_the_box_as_given_is_taken_and_that_is_told(phantom_workspace, caplog):
    workspace = phantom_workspace()
    pseudo_label_store(workspace)
    path = workspace.store.state_dir / COHORT_NAME
    cohort = json.loads(path.read_text())
    assert [of["believes"] for of in cohort["structures"]] == [True, True]
    assert "surest" not in caplog.text

    cohort["structures"][1]["believes"] = False
    doubting = phantom_workspace("doubting")
    (doubting.store.state_dir / COHORT_NAME).write_text(json.dumps(cohort))
    with caplog.at_level(logging.WARNING):
        pseudo_label_store(doubting, image_ids=[f"case{n}" for n in range(10)])
    assert "left blob: SAM is surest of masks that its other prompts contradict" in caplog.text
    assert "right blob" not in caplog.text
    believed, doubted = (
        [of.store.label(f"case{n}", "original").info["structures"]["left blob"]["candidate"] for n in range(10)]
        for of in (workspace, doubting)
    )
    assert any(believed)
    assert not any(doubted)


def test_a_mask_that_somebody_brought_along_stays(phantom_workspace, phantoms):
    workspace = phantom_workspace()
    brought = workspace.store.submit_label("case3", phantoms.labels / "case3.png", tag="original", user="import")
    assert pseudo_label_store(workspace) == {"n_labelled": 9, "n_kept": 1, "n_quarantined": 0}
    assert workspace.store.label("case3", "original").id == brought.id


def test_only_the_images_that_are_named_are_labelled(phantom_workspace):
    workspace = phantom_workspace()
    pseudo_label_store(workspace, image_ids=["case7", "case2"])
    assert set(originals(workspace)) == {"case2", "case7"}


def test_a_bad_image_is_set_aside_and_labelled_once_it_is_repaired(phantoms, tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    shutil.copy(phantoms.images / "protocol.yaml", studies)
    shutil.copy(phantoms.images / "case0.png", studies)
    (studies / "case1.png").write_text("text, not a picture")
    workspace = open_workspace(studies, phantoms.settings, cache_dir=phantoms.cache)
    assert pseudo_label_store(workspace) == {"n_labelled": 1, "n_kept": 0, "n_quarantined": 1}
    ((image_id, reason),) = workspace.store.ledger.quarantined()
    assert image_id == "case1"
    assert "case1.png: cannot be read as png" in reason
    shutil.copy(phantoms.images / "case1.png", studies)
    assert pseudo_label_store(workspace) == {"n_labelled": 1, "n_kept": 1, "n_quarantined": 0}
    assert workspace.store.ledger.quarantined() == []


def test_an_image_that_vanishes_is_set_aside_and_the_others_go_on(phantoms, tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("protocol.yaml", "case0.png", "case1.png", "case2.png"):
        shutil.copy(phantoms.images / name, studies)
    workspace = open_workspace(studies, phantoms.settings, cache_dir=phantoms.cache)
    pseudo_label_store(workspace)
    (studies / "case1.png").unlink()
    shutil.copy(phantoms.images / "case3.png", studies / "case2.png")

    told = pseudo_label_store(workspace)

    assert told == {"n_labelled": 1, "n_kept": 1, "n_quarantined": 1}
    ((image_id, reason),) = workspace.store.ledger.quarantined()
    assert image_id == "case1"
    assert "case1.png is gone" in reason


def test_a_label_that_a_viewer_had_saved_counts_as_the_pass_s_own(phantom_workspace, phantoms):
    workspace = phantom_workspace()
    pseudo_label_store(workspace, image_ids=["case1"])
    request = {"image": str(phantoms.images / "case0.png"), "image_id": "case0", "save_label": True}
    Path(SamTask(workspace)(request)[0]).unlink()
    saved = workspace.store.label("case0", "original")
    assert saved.maker == "sam:lite_medsam"

    assert pseudo_label_store(workspace, image_ids=["case0", "case1"])["n_labelled"] == 2  # chosen alone
    whole = pseudo_label_store(workspace)
    assert whole["n_labelled"] == 10
    Path(SamTask(workspace)(request)[0]).unlink()
    assert workspace.store.label("case0", "original").id > saved.id
    assert pseudo_label_store(workspace) == {"n_labelled": 0, "n_kept": 10, "n_quarantined": 0}


@pytest.mark.parametrize("inner", [0, 1])
def test_a_structure_inside_another_keeps_its_whole_mask(phantom_workspace, monkeypatch, inner):
    """Also at its outline on the image's grid, where a mask of SAM's frame is between 0 and 1."""
    masks = np.zeros((2, 1, 1, 256, 256), bool)
    masks[1 - inner, ..., 40:200, 40:160], masks[inner, ..., 97:119, 90:104] = True, True
    found = [Candidates(mask, np.ones(1), np.ones(1), np.ones((1, 4))) for mask in masks]
    monkeypatch.setattr(pseudo_label, "find_candidates", lambda *_: found)
    workspace = phantom_workspace()

    made = pseudo_label_image(workspace, workspace.store.read_image("case0"), "case0.png")

    indices = workspace.require_protocol().indices
    small, large = (masks_to_grid(masks[k, 0], (96, 80)) > 0.5 for k in (inner, 1 - inner))
    assert small.any()
    assert np.array_equal(made.label_map, np.where(small, indices[inner], np.where(large, indices[1 - inner], 0)))


def test_no_images_is_a_fault(tmp_path, phantoms):
    (tmp_path / "empty").mkdir()
    settings = Settings(threads=1, protocol=phantoms.images / "protocol.yaml")
    with pytest.raises(StoreError, match=r"no images in .*empty; samcorrect reads \.nii\.gz"):
        pseudo_label_store(open_workspace(tmp_path / "empty", settings))
