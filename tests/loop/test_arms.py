"""The comparison of arms, and that it changes nothing of the run it looks at."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from samcorrect.lib.loop import arms
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.rounds import RunResult
from samcorrect.lib.loop.workspace import no_progress

ARMS = ("sam_only", "sam_to_student", "sam_search_to_student", "huang2023", "samcorrect", "supervised")


@pytest.mark.slow
def test_every_arm_is_evaluated_on_every_test_image(compared_run):
    report = compared_run.report
    assert tuple(report["arms"]) == ARMS
    for arm in report["arms"].values():
        assert arm["n"] == 3
        assert 0 <= arm["dice_ci95"][0] <= arm["dice_mean"] <= arm["dice_ci95"][1] <= 1
        assert 0 <= arm["surface_dice_mean"] <= 1
        assert set(arm["structures"]) == {"right blob", "left blob"}
        # Of a student also whether its training collapsed.
        assert ("fault" in arm, "n_restarts" in arm) == ((not arm["is_prompted"],) * 2)
    assert report["evaluated_on"] == "test images"
    assert report["left_out"] == {}
    assert set(report["case_dice"]["supervised"]) == {"test0", "test1", "test2"}
    difference = report["comparisons"]["samcorrect - sam_to_student"]["dice_difference_mean"]
    means = [report["arms"][name]["dice_mean"] for name in ("samcorrect", "sam_to_student")]
    assert difference == pytest.approx(means[0] - means[1], abs=1e-5)


@pytest.mark.slow
def test_ground_truth_is_read_by_the_evaluation_alone(
    compared_run, phantoms, new_state, phantom_loop, left_behind, tmp_path
):
    state = new_state(tmp_path / "state")
    assert phantom_loop(phantoms, state, tmp_path / "out") == 0
    without, given = left_behind(state), left_behind(compared_run.state)
    assert any(name.startswith("labels/") for name in without)
    assert any(name.startswith("models/") for name in without)
    assert given.keys() == without.keys()
    assert [name for name in given if given[name] != without[name]] == []


@pytest.mark.slow
def test_arms_without_test_images_say_that_they_were_evaluated_on_the_studies(
    compared_run, phantoms, phantom_loop, tmp_path
):
    assert phantom_loop(phantoms, compared_run.state, tmp_path / "out", "--ground-truth", str(phantoms.labels)) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["evaluated_on"].startswith("the studies themselves")
    assert report["arms"]["supervised"]["n"] == 10


@pytest.mark.parametrize("preset", arms.PRESETS)
def test_no_baseline_learns_from_what_people_approved(labelled, phantoms, monkeypatch, preset):
    workspace, other = labelled(preset=preset), labelled("other")
    ledger = workspace.store.ledger
    made = {image_id: ledger.latest_label(image_id, "original").id for image_id in ledger.image_ids()}
    approved = workspace.store.submit_label("case2", phantoms.labels / "case2.png", tag="final", user="anna")
    first = {image_id: ledger.label_version(version) for image_id, version in made.items()} | {"case2": approved}
    seen = []

    def learn(_workspace, cohort, *, progress):
        seen.append({label.image_id: label.tag for label in cohort.labels})
        return SimpleNamespace(student=None, curve=SimpleNamespace())

    monkeypatch.setattr(arms, "train_baseline", learn)
    monkeypatch.setattr(arms, "last_student", lambda *_given: None)
    result = RunResult(1, rounds=[{"student": {}}], labels_first=first)
    results = {name: (workspace if name == preset else other, result) for name in arms.PRESETS}

    arms._train_arms(other, results, GroundTruth(phantoms.labels), no_progress)

    assert seen == [dict.fromkeys(made, "original")] * 3


def test_sam_alone_is_left_out_where_a_test_image_has_no_box(phantoms, labelled, tmp_path, monkeypatch):
    # Of the two that lack one, a box lies outside its image.
    rows = ["test0.png,blob,4,8,40,72", "test1.png,blob,400,8,440,72"]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *rows]), encoding="utf-8")
    structure = "{name: blob, index: 7, prompt: {source: boxes_file, path: boxes.csv}}"
    (tmp_path / "boxes.yaml").write_text(f"structures: [{structure}]", encoding="utf-8")
    student = SimpleNamespace(predict=lambda array: np.full(array.shape, 7))
    monkeypatch.setattr(arms, "run_loop", lambda *_given, **_more: RunResult(1))
    monkeypatch.setattr(
        arms, "_train_arms", lambda *_given: {name: (student, {"fault": name}) for name in arms.TRAINED_ARMS}
    )
    workspace = labelled(protocol=tmp_path / "boxes.yaml")
    truth, test = GroundTruth(phantoms.labels), (phantoms.test_images, GroundTruth(phantoms.test_labels))

    told = arms.compare(workspace, RunResult(1), truth, out_dir=tmp_path / "out", test=test, progress=no_progress)

    reason = told["left_out"]["sam_only"]
    assert reason.startswith("SAM cannot be prompted on 2 of 3 images; the first: test1.png: the box of 'blob' in ")
    assert tuple(told["arms"]) == tuple(told["case_dice"]) == arms.TRAINED_ARMS
    assert {(arm["n"], arm["fault"] == name) for name, arm in told["arms"].items()} == {(3, True)}
