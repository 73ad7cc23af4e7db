"""Comparison with ground truth, on numbers worked out by hand."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.errors import GeometryError, LabelError, StoreError
from samcorrect.lib.loop.cohort import best_labels
from samcorrect.lib.loop.evaluation import (
    Case,
    CaseScores,
    GroundTruth,
    compare_arms,
    compare_labels,
    evaluate_cases,
    evaluate_correction,
    evaluate_flags,
    evaluate_quality,
    label_dice,
    load_cases,
    summarise_arm,
)
from samcorrect.lib.loop.rounds import RunResult
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.store.volumes import LPS_TO_RAS, Volume


def test_ground_truth_is_matched_by_name_and_laid_on_the_grid(phantoms, labelled):
    workspace = labelled()
    truth = GroundTruth(phantoms.labels)
    assert "case0" in truth
    assert "test0" not in truth
    volume = workspace.store.read_image("case0")
    assert truth.label_map("case0", volume).shape == (96, 80, 1)
    with pytest.raises(GeometryError, match="the ground truth of case0 is not on its image's grid"):
        truth.label_map("case0", Volume(np.zeros((80, 96, 1)), LPS_TO_RAS, 2))


def test_ground_truth_of_other_images_and_a_missing_folder_are_told(phantoms, tmp_path):
    with pytest.raises(StoreError, match=r"the ground truth folder .*gone does not exist"):
        GroundTruth(tmp_path / "gone")
    with pytest.raises(LabelError, match=r"no file in .*test-labels has the name of an image in .*images"):
        GroundTruth(phantoms.test_labels).check(
            LocalStudies(phantoms.images), load_protocol(phantoms.images / "protocol.yaml")
        )


def test_ground_truth_is_checked_before_anything_is_made_of_it(phantoms, tmp_path):
    protocol, images = load_protocol(phantoms.images / "protocol.yaml"), LocalStudies(phantoms.images)
    assert GroundTruth(phantoms.labels).check(images, protocol) == []
    shutil.copyfile(phantoms.labels / "case3.png", tmp_path / "case3.png")
    assert GroundTruth(tmp_path).check(images, protocol) == [f"case{n}.png" for n in range(10) if n != 3]
    Image.fromarray(np.full((80, 96), 3, np.uint8)).save(tmp_path / "case3.png")
    with pytest.raises(LabelError, match=r"holds no right blob \(7\); its indices are \[3\]"):
        GroundTruth(tmp_path).check(images, protocol)
    Image.fromarray(np.full((80, 90), 3, np.uint8)).save(tmp_path / "case3.png")
    with pytest.raises(LabelError, match=r"1 ground truth\(s\) cannot be used: the ground truth of case3 is not on"):
        GroundTruth(tmp_path).check(images, protocol)


def test_ground_truth_without_a_structure_of_the_protocol_is_told(labelled, tmp_path):
    workspace = labelled()
    Image.fromarray(np.full((80, 96), 3, np.uint8)).save(tmp_path / "case0.png")
    with pytest.raises(LabelError, match=r"holds no right blob \(7\); its indices are \[3\]"):
        load_cases(workspace.store, GroundTruth(tmp_path), workspace.require_protocol())


def test_cases_are_scored_structure_by_structure():
    truth = np.zeros((8, 8, 1), np.uint8)
    truth[0:4, 0:2] = 3
    prediction = np.zeros_like(truth)
    prediction[0:4, 0:1] = 3  # half of it: 2 * 4 / (4 + 8)
    prediction[6:8, 6:8] = 7  # not in the truth
    case = Case("a", "a.png", Volume(np.zeros((8, 8, 1)), LPS_TO_RAS, 2), truth)
    scores = evaluate_cases([case], lambda _: prediction, (3, 7, 9))
    # Of the third nobody saw anything, and there is nothing.
    assert scores.dice[0] == pytest.approx([2 / 3, 0, 1])
    assert scores.surface_dice[0, 1:] == pytest.approx([0, 1])
    assert scores.case_dice == pytest.approx([5 / 9])
    # Of the surface points of the truth, the farther column lies 1 pixel off; what one side alone has is as far off as
    # the image's diagonal.
    assert scores.hausdorff95[0] == pytest.approx([1, np.hypot(8, 8), 0])
    assert not scores.is_mm
    in_mm = evaluate_cases([case], lambda _: prediction, (3, 7, 9), pixel_mm=0.5)
    assert in_mm.is_mm
    assert in_mm.hausdorff95[0] == pytest.approx([0.5, np.hypot(4, 4), 0])
    assert in_mm.surface_dice[0] == pytest.approx(scores.surface_dice[0])


def test_the_distances_of_volumes_are_in_mm_by_their_spacing():
    truth, prediction = np.zeros((8, 8, 6), np.uint8), np.zeros((8, 8, 6), np.uint8)
    truth[2:6, 2:6, 1:3] = 3
    prediction[2:6, 2:6, 2:4] = 3
    affine = np.diag([-0.5, -0.5, 2.5, 1.0])
    case = Case("a", "a.nii.gz", Volume(np.zeros(truth.shape), affine, 3), truth)
    scores = evaluate_cases([case], lambda _: prediction, (3,), pixel_mm=9.0)
    assert scores.is_mm
    assert scores.hausdorff95 == pytest.approx(np.array([[2.5]]))


def test_an_arm_has_its_mean_spread_and_interval():
    scores = CaseScores(
        np.array([[0.8, 0.6], [0.9, np.nan]]),
        np.array([[1.0, 0.5], [0.7, np.nan]]),
        np.array([[2, 4], [6, np.nan]]),
        True,
    )
    told = summarise_arm(scores, ("one", "two"), is_prompted=False)
    assert told["dice_mean"] == pytest.approx(0.8)  # of 0.7 and 0.9
    assert told["dice_sd"] == pytest.approx(0.141421)
    assert told["surface_dice_mean"] == pytest.approx(0.725)
    assert told["n"] == 2
    assert 0.7 <= told["dice_ci95"][0] <= told["dice_ci95"][1] <= 0.9
    assert (told["hausdorff95_mm_mean"], told["hausdorff95_px_mean"]) == (4.5, None)
    distances = {"hausdorff95_mm_mean": 4.0}
    assert told["structures"]["two"] == {"dice_mean": 0.6, "dice_sd": None, "surface_dice_mean": 0.5, **distances}
    assert summarise_arm(replace(scores, is_mm=False), ("one", "two"), is_prompted=False)["hausdorff95_px_mean"] == 4.5


def test_arms_are_compared_case_by_case():
    one, other = (CaseScores(*[np.array(v)[:, None]] * 3, is_mm=True) for v in ([0.9, 0.5], [0.8, 0.4]))
    told = compare_arms(one, other)
    assert told["dice_difference_mean"] == pytest.approx(0.1)
    # The cases differ much, the pairs do not.
    assert told["ci95"] == pytest.approx([0.1, 0.1])


def test_intervals_are_over_patients_unless_subfolders_are_too_few_to_be_patients():
    half = np.zeros((40, 10, 1), np.uint8)
    half[:10] = 3

    def scored(n_folders):
        cases = []
        for n in range(32):
            truth, folder = np.zeros_like(half), f"p{n // 4 % n_folders}"
            truth[: 10 + n // 4] = 3  # the images of a patient are alike
            cases.append(Case(f"{folder}/{n}", f"{n}.png", Volume(truth, LPS_TO_RAS, 2), truth, folder))
        return [evaluate_cases(cases, predict, (3,)) for predict in (lambda _: half, lambda case: case.truth)]

    by_patient, by_image = scored(8), scored(3)
    assert [len(set(of[0].cases)) for of in (by_patient, by_image)] == [8, 32]
    arms = [summarise_arm(of[0], ("one",), is_prompted=False) for of in (by_patient, by_image)]
    assert arms[0]["dice_mean"] == arms[1]["dice_mean"]
    assert arms[0]["n"] == arms[1]["n"] == 32
    assert np.diff(arms[0]["dice_ci95"]) > 1.5 * np.diff(arms[1]["dice_ci95"])
    pairs = [compare_arms(*of) for of in (by_patient, by_image)]
    assert np.diff(pairs[0]["ci95"]) > 1.5 * np.diff(pairs[1]["ci95"])


def test_an_arm_that_rightly_finds_nothing_wins_against_one_that_finds_something():
    truths = [np.zeros((8, 8, 1), np.uint8) for _ in range(8)]
    for truth in truths[2:]:
        truth[2:6, 2:6] = 3
    cases = [Case(f"i{n}", f"i{n}.png", Volume(t, LPS_TO_RAS, 2), t) for n, t in enumerate(truths)]
    blob = np.full((8, 8, 1), 3, np.uint8)
    right = evaluate_cases(cases, lambda case: case.truth, (3,))
    wrong = evaluate_cases(cases, lambda case: case.truth if case.truth.any() else blob, (3,))
    told = compare_arms(right, wrong)
    assert (told["dice_difference_mean"], told["n"]) == (0.25, 8)
    arms = [summarise_arm(scores, ("one",), is_prompted=False) for scores in (right, wrong)]
    assert [(arm["dice_mean"], arm["surface_dice_mean"], arm["n"]) for arm in arms] == [(1, 1, 8), (0.75, 0.75, 8)]
    assert [arm["hausdorff95_px_mean"] for arm in arms] == pytest.approx([0, 0.25 * np.hypot(8, 8)])


def test_an_empty_label_that_becomes_a_blob_is_harmed(labelled, tmp_path):
    workspace = labelled()
    truth, versions = np.zeros((96, 80, 1), np.uint8), []
    truth[:40, :40] = 3  # and no 7
    Image.fromarray(truth[:, :, 0].T).save(tmp_path / "case1.png")
    for elsewhere in (0, 7):
        label_map = np.where(truth, truth, elsewhere).astype(np.uint8)
        row = workspace.store.save_label_map("case1", label_map, tag="original", maker="test", affine=LPS_TO_RAS)
        versions.append(label_dice(workspace, {"case1": row}, GroundTruth(tmp_path)))
    assert [of["case1"].tolist() for of in versions] == [[1, 1], [0, 1]]
    told = compare_labels(*versions)
    assert (told["n_good"], told["good_harmed_share"]) == (2, 0.5)


def test_scores_that_rank_perfectly_have_correlation_and_auroc_1():
    true_dice = {f"i{n}": np.array([0.5 + 0.1 * n, np.nan]) for n in range(5)}
    told = evaluate_quality({f"i{n}": [0.1 * n, 0.3] for n in range(5)}, true_dice, ("one", "two"))
    assert (told["spearman"], told["auroc_dice_below_0.8"], told["n"]) == (1, 1, 5)
    assert told["n_dice_below_0.8"] == 3
    assert told["structures"]["one"]["spearman"] == 1
    assert told["structures"]["two"]["spearman"] is None
    reverse = evaluate_quality({f"i{n}": [-0.1 * n, None] for n in range(5)}, true_dice, ("one", "two"))
    assert (reverse["spearman"], reverse["auroc_dice_below_0.8"]) == (-1, 0)


def test_correction_is_measured_on_what_was_flagged_and_harm_on_what_was_good():
    result = RunResult(1, rounds=[{"flagged": {"a": [True, False]}}, {"flagged": {"b": [True, False], "x": [True]}}])
    before = {"a": np.array([0.5, 0.96]), "b": np.array([0.7, 0.97]), "c": np.array([0.98, 0.99])}
    after = {"a": np.array([0.9, 0.96]), "b": np.array([0.8, 0.90]), "c": np.array([0.98, 0.985])}
    told = evaluate_correction(result, before, after)
    assert told["n_flagged_structures"] == 2
    assert (told["dice_before"], told["dice_after"]) == pytest.approx((0.6, 0.85))
    assert (told["bad_dice_before"], told["bad_dice_after"]) == pytest.approx((0.6, 0.85))
    # Good are 0.96, 0.97, 0.98 and 0.99; one of them lost more than 0.01.
    assert (told["n_good"], told["good_harmed_share"]) == (4, 0.25)


def test_flags_are_measured_by_hand():
    true_dice = {"a": np.array([0.5, 0.9]), "b": np.array([0.7, 0.95]), "c": np.array([0.97, np.nan])}
    told = evaluate_flags({"a": [True, True], "c": [False, True]}, true_dice)
    # Of the five labels that are there two are flagged, one of which is below 0.8, as is one that is not flagged.
    assert told["flagged_share"] == pytest.approx(0.4)
    assert (told["flagged_precision"], told["flagged_recall"]) == (0.5, 0.5)
    # The median is 0.9, and 0.9 does not lie below it.
    assert (told["flagged_precision_below_median"], told["flagged_recall_below_median"]) == (0.5, 0.5)
    nothing = evaluate_flags({}, {"a": np.array([0.9, 0.9])})
    assert nothing["flagged_share"] == 0
    assert nothing["flagged_precision"] is nothing["flagged_recall"] is None


def test_labels_without_ground_truth_are_left_out(labelled, phantoms, tmp_path):
    workspace = labelled()
    (tmp_path / "case1.png").write_bytes((phantoms.labels / "case1.png").read_bytes())
    told = label_dice(workspace, best_labels(workspace), GroundTruth(tmp_path))
    assert list(told) == ["case1"]
    assert told["case1"].tolist() == [1, 1]
