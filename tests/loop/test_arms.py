"""The comparison of arms, and that it changes nothing of the run it looks at."""

import json

import pytest

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
