"""The benchmark of the quality score: its measures by hand, its noise, and one run on the phantoms."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.core.metrics import auroc_below, rank_correlation
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.scoring import score_cohort
from samcorrect.lib.loop.workspace import no_progress, open_workspace
from samcorrect.lib.store.volumes import LPS_TO_RAS

NAN = float("nan")


@pytest.fixture
def measure(module):
    measures = module("measures")

    def of(scores, dice, *, fused=None, cases=None):
        cases = cases or [f"case{n:03d}" for n in range(len(scores))]
        return measures.measure_scores(
            np.array(scores),
            np.array(dice),
            cases=cases,
            sizes=np.arange(len(scores)),
            rng=np.random.default_rng(0),
            fused=fused,
        )

    return of


def test_measures_by_hand(measure):
    told = measure([0.1, 0.3, 0.2, 0.4, NAN], [0.5, 0.7, 0.85, 0.95, 0.1])

    # Ranks 1 3 2 4 against 1 2 3 4: 1 - 6 x 2 / (4 x 15).
    assert told["spearman"] == pytest.approx(0.8)
    assert told["n"] == 4
    # Below 0.8 are the first two, with scores 0.1 and 0.3; of the four pairs with the others only (0.3, 0.2) is wrong.
    # The median is 0.775, so the same; below 0.9 are all but the best.
    assert told["auroc"] == {"median": pytest.approx(0.75), "0.8": pytest.approx(0.75), "0.9": 1.0}
    assert told["n_below"] == {"median": 2, "0.8": 2, "0.9": 3}
    # Kept from the best score down: 0.05, then with 0.3, 0.15 and 0.5 more.
    risks = [0.05, 0.35 / 2, 0.5 / 3, 1.0 / 4]
    assert told["risk_coverage_area"] == pytest.approx(np.mean(risks), abs=1e-6)
    assert [*told["risk_coverage"]] == ["0.05", *(f"0.{tenth}" for tenth in range(1, 10)), "1"]
    kept = {"0.05": 0, "0.3": 0, "0.5": 1, "0.8": 2, "1": 3}
    assert {share: told["risk_coverage"][share] for share in kept} == {
        share: pytest.approx(risks[n], abs=1e-6) for share, n in kept.items()
    }
    assert told["coverage"] is told["width"] is told["mae"] is None


def test_thirds_are_of_the_size_and_of_the_score_worst_first(measure, rng):
    # The scores rank small structures upside down, those in the middle by nothing, and large ones rightly.
    dice = rng.uniform(0.3, 0.9, 60)
    scores = np.concatenate([1 - dice[:20], rng.permutation(dice[20:40]), dice[40:]])

    small, middle, large = measure(scores, dice)["spearman_by_size"]

    assert (small, large) == (pytest.approx(-1), pytest.approx(1))
    assert abs(middle) < 0.6
    # An interval that suits all misses the labels that score worst: they are far worse than they score, and not often
    # among the 20 that calibrate it.
    scores = np.sort(rng.uniform(0.5, 0.95, 200))
    dice = np.where(np.arange(200) < 12, scores - 0.4, scores - 0.02)
    worst, *better = measure(scores, dice)["coverage_by_score"]
    assert worst < min(better)
    assert worst < max(better) - 0.1


def test_calibration_is_measured_where_there_are_labels_enough(measure, rng):
    dice = 1 - np.exp(rng.normal(-2.5, 0.8, 150)).clip(0, 1)
    told = measure(dice, dice)

    # A score that is the Dice itself: next to no error and no width is left.
    assert told["mae"] < 0.01
    assert told["width"] < 0.05
    assert told["mae_ratio"] < 0.2
    assert told["coverage"] >= 0.85
    assert len(told["coverage_by_score"]) == 3
    blind = measure(rng.permutation(dice), dice)
    assert 0.85 <= blind["coverage"] <= 0.95
    assert blind["mae_ratio"] > 0.8


@pytest.fixture
def calibrated(module, monkeypatch):
    """(scores left, scores approved) of each draw of a calibration."""
    measures, seen = module("measures"), []
    original = measures.expect_dice

    def expect(left, prior, approved, dice):
        seen.append((left, approved))
        return original(left, prior, approved, dice)

    monkeypatch.setattr(measures, "expect_dice", expect)
    return seen


def test_no_patient_both_calibrates_and_is_judged(measure, calibrated, rng):
    scores, cases = rng.permutation(120) / 120, [f"p{n // 8}" for n in range(120)]
    case_of = dict(zip(scores, cases, strict=True))

    assert measure(scores, rng.random(120), cases=cases)["coverage"] is not None

    assert len(calibrated) == 200
    for left, approved in calibrated:
        # Three patients have the 20 labels; what they have besides is in neither part.
        assert (len(left), len(approved)) == (96, 20)
        assert not {case_of[s] for s in left} & {case_of[s] for s in approved}
    assert measure(scores, rng.random(120), cases=["one"] * 120)["coverage"] is None


def test_labels_of_a_patient_each_are_drawn_as_ever(measure, calibrated, rng):
    scores, dice = rng.random((2, 50))
    told = measure(scores, dice)

    again = np.random.default_rng(0)
    drawn = [again.integers(0, 50, 50) for _ in range(1000)]
    rhos = [rank_correlation(scores[of], dice[of]) for of in drawn]
    assert told["spearman_ci95"] == pytest.approx(np.percentile(rhos, [2.5, 97.5]), abs=1e-6)
    for left, approved in calibrated:
        order = again.permutation(50)
        assert np.array_equal(np.concatenate([approved, left]), scores[order])


def test_labels_of_one_hospital_count_alone_and_those_of_a_patient_together(module, rng):
    dice = rng.random((40, 2))
    scores = dice[:, :1] + rng.normal(0, 0.3, (40, 1))

    def width(case_ids):
        images = [SimpleNamespace(id=f"{case}/{n:02d}", case_id=case) for n, case in enumerate(case_ids)]
        cohort = MagicMock(images=images, n_structures=1, config=SimpleNamespace(names=("one",)))
        cohort.__len__.return_value = 40
        cohort.mask.return_value = np.ones((1, 2, 2), bool)
        measured = {}
        module("quality")._enter(measured, "box", 0, cohort, {"fused": scores}, dice, np.ones((40, 2)))
        low, high = measured["one"]["box"]["fused"]["0"]["spearman_ci95"]
        return high - low

    assert width(["hospital"] * 40) == width([f"p{n:02d}" for n in range(40)]) > 0
    assert width([f"p{n // 10}" for n in range(40)]) != width(["hospital"] * 40)


def test_auroc_is_not_given_where_nearly_none_or_nearly_all_are_bad(measure):
    told = measure(np.linspace(0, 1, 20), [0.7] + [0.85] * 19)

    assert told["auroc"]["0.8"] is told["auroc"]["0.9"] is None
    assert told["n_below"]["0.8"] == 1
    assert told["n_below"]["0.9"] == 20
    assert told["auroc_ci95"]["0.8"] == told["auroc_ci95"]["0.9"] == [None, None]


def test_redraws_measure_what_a_redraw_written_out_does(module, rng):
    redraws = module("redraws")
    cases = rng.integers(0, 9, 30).astype(str)
    # Ties in both.
    scores, dice = rng.random((2, 30)).round(1)
    is_bad = dice < 0.2

    counts = redraws.redraw_cases(cases, rng)
    ranks = redraws.ranks_of(scores, counts)
    rho = redraws.spearmans(ranks, redraws.ranks_of(dice, counts), counts)
    auroc = redraws.aurocs(ranks, is_bad, counts)

    for number in range(50):
        drawn = np.repeat(np.arange(30), counts[number])
        # A patient comes with all of its labels.
        assert all(len(set(counts[number][cases == case])) == 1 for case in cases)
        assert rho[number] == pytest.approx(rank_correlation(scores[drawn], dice[drawn]), nan_ok=True)
        assert auroc[number] == pytest.approx(auroc_below(scores[drawn], dice[drawn], 0.2), nan_ok=True)
    assert redraws.redraw_cases(["one"] * 4, rng).shape == (0, 4)
    few = np.where(np.arange(1000) < 850, np.linspace(0, 1, 1000), NAN)
    assert redraws.interval(few) == [None, None]
    assert redraws.interval(np.where(np.arange(1000) < 950, 0.5, NAN)) == [0.5, 0.5]


def test_intervals_of_auroc_hold_it_and_are_left_out_where_redraws_lack_bad_labels(measure, rng):
    dice = rng.uniform(0.6, 1, 60)
    told = measure(dice + rng.normal(0, 0.1, 60), dice)
    for name, (low, high) in told["auroc_ci95"].items():
        assert 0 < low < told["auroc"][name] < high <= 1
    # Two bad labels of eight are of one patient of four, whom a third of the redraws do not hold.
    rare = measure([0.1, 0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.5, 0.5] + [0.85] * 6, cases=[*"aabbccdd"])
    assert rare["auroc"]["0.8"] == 1
    assert rare["auroc_ci95"]["0.8"] == [None, None]


def test_the_fusion_is_compared_with_a_row_in_the_same_redraws(measure, rng):
    dice = rng.uniform(0.6, 1, 80)
    noisy = dice + rng.normal(0, 0.2, 80)
    low, high = measure(noisy, dice, fused=dice)["fused_minus_ci95"]
    assert 0 < low < 1 - measure(noisy, dice)["spearman"] < high
    # No noise of sampling is left where both rank alike.
    assert measure(noisy, dice, fused=2 * noisy)["fused_minus_ci95"] == [0, 0]
    # Nor where they do so on the labels that both rank.
    half = np.where(np.arange(80) < 40, noisy, NAN)
    assert measure(half, dice, fused=noisy)["fused_minus_ci95"] == [0, 0]
    assert "fused_minus_ci95" not in measure(noisy, dice)


def test_scores_that_do_not_rank_are_null(measure):
    told = measure([NAN, NAN], [0.5, 0.6])

    assert told["spearman"] is None
    assert told["spearman_ci95"] == [None, None]
    assert set(told["risk_coverage"].values()) == {None}
    assert told["n"] == 0


def test_morphology_by_hand(module):
    morph = module("noise").morph
    square = np.zeros((9, 9, 2), bool)
    square[3:6, 3:6, 0] = True

    assert morph(square, radius_px=1)[..., 0].sum() == 9 + 4 * 3
    assert morph(square, radius_px=-1)[..., 0].sum() == 1
    assert not morph(square, radius_px=-2).any()
    assert not morph(square, radius_px=3)[..., 1].any()


def test_morphed_labels_follow_the_truth_and_leave_out_what_cannot_be_read(module, phantoms, tmp_path):
    images, labels = (shutil.copytree(of, tmp_path / of.name) for of in (phantoms.images, phantoms.labels))
    (images / "case7.png").write_bytes((images / "case7.png").read_bytes()[:200])
    workspace = open_workspace(images, phantoms.settings.model_copy(update={"state": tmp_path / "state"}))

    def versions():
        workspace.store.rescan()
        module("noise").make_labels(workspace, "morph50", GroundTruth(labels), no_progress)
        return {image_id: row.id for image_id, row in best_labels(workspace).items()}

    first = versions()
    assert len(first) == 9
    assert [name for name, _ in workspace.store.ledger.quarantined()] == ["case7"]
    assert versions() == first
    shutil.copyfile(labels / "case1.png", labels / "case2.png")
    second = versions()
    workspace.store.ledger.close()
    assert {image_id for image_id in first if first[image_id] != second[image_id]} == {"case2"}


@pytest.mark.slow
def test_labels_of_sam_are_those_of_the_box_of_the_choice_and_of_one_round(module, phantoms, new_state, tmp_path):
    made = {}
    for noise in ("box", "chosen", "corrected"):
        settings = phantoms.settings.model_copy(
            update={"state": tmp_path / noise, "protocol": phantoms.images / "protocol.yaml", "student_steps": 3}
        )
        workspace = open_workspace(phantoms.images, settings, cache_dir=phantoms.cache)
        module("noise").make_labels(workspace, noise, GroundTruth(phantoms.labels), no_progress)
        made[noise] = workspace

    def numbers(noise):
        labels = made[noise].store.ledger.latest_labels()
        return {
            image_id: [of["candidate"] for of in label.info["structures"].values()]
            for (image_id, tag), label in labels.items()
            if tag == "original"
        }

    assert set(map(tuple, numbers("box").values())) == {(0, 0)}  # the box as given is the first prompt
    assert len(numbers("chosen")) == 10
    assert numbers("chosen") == numbers("corrected") != numbers("box")
    corrected = made["corrected"].store.ledger.run_labels("corrected", 1, 1)
    assert set(corrected) == {i for i, label in best_labels(made["corrected"]).items() if label.tag == "corrected"}
    assert made["corrected"].store.ledger.run(1).is_finished


def test_scores_of_the_union_are_weighted_by_area_and_keep_ties(module):
    of_union = module("quality")._of_union
    values = np.array([[0.2, 0.8], [NAN, 0.7], [NAN, NAN]])
    told = of_union(values, np.array([[30, 10], [5, 5], [5, 5]]))
    assert told[:2] == pytest.approx([0.35, 0.7])
    assert np.isnan(told[2])
    # Half of the labels have one score each, and rounding may not part them.
    rng = np.random.default_rng(0)
    same = np.repeat(rng.random((500, 1)), 3, 1)
    assert np.array_equal(of_union(same, rng.integers(1, 9999, (500, 3))), same[:, 0])


def test_a_label_that_rightly_holds_nothing_is_right_and_one_without_truth_is_not_measured(module, phantoms, tmp_path):
    settings = phantoms.settings.model_copy(update={"state": tmp_path / "state"})
    workspace = open_workspace(phantoms.images, settings, cache_dir=phantoms.cache)
    workspace.store.rescan()
    label_map = np.zeros((96, 80, 1), np.uint8)
    label_map[:40, :40] = 3
    for image_id in ("case0", "case1"):
        workspace.store.save_label_map(image_id, label_map, tag="original", maker="test", affine=LPS_TO_RAS)
    (tmp_path / "labels").mkdir()
    Image.fromarray(label_map[:, :, 0].T).save(tmp_path / "labels" / "case0.png")
    cohort = load_cohort(workspace, best_labels(workspace))

    values, sizes = module("quality")._true_dice(workspace, cohort, GroundTruth(tmp_path / "labels"))

    workspace.store.ledger.close()
    assert values[0].tolist() == [1, 1, 1]
    assert sizes[0].tolist() == [0, 1600, 1600]
    assert np.isnan(values[1]).all()


def test_too_few_images_for_students_choose_nothing_a_second_time(module, phantoms, tmp_path):
    settings = phantoms.settings.model_copy(update={"state": tmp_path / "state"})
    workspace = open_workspace(phantoms.images, settings, cache_dir=phantoms.cache)
    workspace.store.rescan()
    pseudo_label_store(workspace, image_ids=["case0", "case1"])
    cohort = load_cohort(workspace, best_labels(workspace))
    scores = score_cohort(workspace, cohort, seed=0)

    told = module("quality")._choosing(workspace, cohort, scores, GroundTruth(phantoms.labels))

    workspace.store.ledger.close()
    assert told["left blob"]["second_pass"] == {"dice_mean": None, "dice_ci95": [None, None], "n": 0}
    assert told["left blob"]["oracle"]["n"] == 2
    module("quality")._print_choosing({"0": told})


def test_of_a_structure_that_is_not_in_an_image_every_chooser_takes_nothing(module, phantoms, tmp_path):
    rows = ["case0.png,left blob,,,,", "case1.png,left blob,50,8,94,74"]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *rows]), encoding="utf-8")
    structure = "{name: left blob, index: 3, prompt: {source: boxes_file, path: boxes.csv}}"
    (tmp_path / "boxes.yaml").write_text(f"structures: [{structure}]", encoding="utf-8")
    changed = {"state": tmp_path / "state", "protocol": tmp_path / "boxes.yaml"}
    workspace = open_workspace(phantoms.images, phantoms.settings.model_copy(update=changed), cache_dir=phantoms.cache)
    pseudo_label_store(workspace, image_ids=["case0", "case1"])
    cohort = load_cohort(workspace, {"case0": workspace.store.ledger.best_label("case0")})
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((80, 96), np.uint8)).save(tmp_path / "labels" / "case0.png")

    scores = score_cohort(workspace, cohort, seed=0)
    told = module("quality")._choosing(workspace, cohort, scores, GroundTruth(tmp_path / "labels"))

    workspace.store.ledger.close()
    assert [told["left blob"][chooser]["dice_mean"] for chooser in ("box", "first_pass", "oracle")] == [1, 1, 1]


def test_the_batch_ratio_by_hand(module):
    plain = [
        {"n": 1, "read_s": 0.1, "encode_s": 1.0, "decode_s": 0.1, "write_s": 0.1},
        {"n": 3, "read_s": 0.1, "encode_s": 2.0, "decode_s": 0.1, "write_s": 0.1},
    ]
    told = {"plain": plain, "n_candidates": 4, "runs": {"9": {"images_per_minute": 60.0}}}
    told["one_box"] = {"images_per_minute": 120.0}

    compared = module("batch").compare(told, 9, n_structures=2)

    # The encoder takes (1 + 3 x 2) / 4 s, files 0.2 s, and each of 2 x 4 prompts 0.1 s.
    assert compared["ratio"] == {"encoder once an image": 2.75, "encoder once a prompt": 15.0}
    assert compared["plain_images_per_minute"]["encoder once a prompt"] == 4.0
    assert compared["ratio_one_box_encoder_once_an_image"] == 4.3


def test_copies_of_an_image_differ_in_one_pixel_each(module, make_studies, tmp_path):
    made = module("batch").make_studies(tmp_path / "made", make_studies("a.png", "b.png"), 5)

    pixels = [np.array(Image.open(path)) for path in sorted(made.iterdir())]
    assert len({array.tobytes() for array in pixels}) == 5
    assert (pixels[0] != pixels[2]).sum() == 2
    assert (pixels[0] != pixels[1]).sum() > 100


@pytest.mark.slow
def test_the_benchmark_runs_on_the_phantoms(module, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAMCORRECT_STUDENT_STEPS", "3")
    monkeypatch.setenv("SAMCORRECT_STUDENT_SIDE_PX", "32")
    arguments = ["--images", str(phantoms.images), "--labels", str(phantoms.labels)]
    arguments += ["--protocol", str(phantoms.images / "protocol.yaml"), "--json", str(tmp_path / "out.json")]

    monkeypatch.setattr(module("quality"), "get_label_quality_scores", None)
    assert module("quality").main([*arguments, "--seeds", "0", "--noise", "morph50", "--dataset", "phantoms"]) == 0

    assert capsys.readouterr().err.count("pip install cleanlab") == 1
    structures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["phantoms"]
    assert "_union" in structures
    losses = {"paper_loss_released", "paper_loss_repaired"}
    for noises in structures.values():
        rows = noises["morph50"]
        assert {"fused", "peer_dice", "random", *losses, "students_of_truth"} <= set(rows)
        assert set(rows["fused"]["0"]) >= {"spearman", "auroc", "n", "n_below", "coverage", "width", "mae"}
        assert rows["fused"]["0"]["n"] == 10
        assert "cleanlab" not in rows
        assert {row for row in rows if "fused_minus_ci95" not in rows[row]["0"]} == {"fused"}
    # Students of three steps agree with no label.
    del structures["_union"]
    assert all("all labels: students" in noises["morph50"]["fused"]["0"]["doubt"] for noises in structures.values())
