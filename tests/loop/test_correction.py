"""Correction of labels of known quality."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samcorrect.lib.core.correction import Choice, huang_correct
from samcorrect.lib.errors import UnknownImageError, UnknownLabelError
from samcorrect.lib.loop import correction
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.corrected_labels import Correction, correct_image, known_ceiling, save_correction
from samcorrect.lib.loop.correction import (
    STUDENT,
    correct_cohort,
    correct_store,
    disputed_pixels,
    flag_ceiling,
    flag_labels,
)
from samcorrect.lib.loop.reviews import image_state, reject_label
from samcorrect.lib.loop.rounds import posterior_after
from samcorrect.lib.loop.scoring import score_cohort
from samcorrect.lib.loop.students import train_on, trusted_only


@pytest.mark.slow
def test_labels_that_are_off_get_better_and_the_old_versions_stay(labelled, true_dice):
    workspace = labelled()
    store = workspace.store
    before = best_labels(workspace)
    content = {row.path: store.label_path(row).read_bytes() for row in before.values()}
    told = correct_store(workspace)
    after = best_labels(workspace)
    corrected = [i for i in after if after[i].id != before[i].id]
    assert told["n_corrected"] == len(corrected) <= told["n_flagged"]
    for image_id in ("case2", "case5"):
        old, new = (store.read_label(rows[image_id]) for rows in (before, after))
        assert true_dice(image_id, new) > true_dice(image_id, old) + 0.05
    for image_id in corrected:
        assert (after[image_id].tag, after[image_id].parent_id) == ("corrected", before[image_id].id)
    assert content == {path: (store.state_dir / path).read_bytes() for path in content}


@pytest.mark.slow
def test_the_change_map_is_where_the_labels_differ(labelled):
    workspace = labelled()
    correct_store(workspace)
    told = correct_image(workspace, "case2")
    original = workspace.store.read_label(workspace.store.label("case2", "original"))
    assert told.change_map.shape == told.label_map.shape == (96, 80, 1)
    assert np.array_equal(told.change_map, original != told.label_map)
    assert told.change_map.any()
    assert told.score_after > told.score_before
    assert all("judge" in reason for reason in told.reasons)


def test_an_image_without_correction_says_why(labelled):
    workspace = labelled()
    with pytest.raises(UnknownLabelError, match="case0 has no corrected label; it was not judged low"):
        correct_image(workspace, "case0")
    with pytest.raises(UnknownImageError, match="no image 'nobody'"):
        correct_image(workspace, "nobody")


@pytest.mark.parametrize("preset", ["samcorrect", "huang2023"])
def test_what_a_person_approved_is_never_flagged(labelled, phantoms, preset):
    workspace = labelled(preset=preset, shares_trainings=False, student_steps=12)
    # The mask of another image: nothing looks worse.
    workspace.store.submit_label("case2", phantoms.labels / "case7.png", tag="final", user="anna")
    cohort = load_cohort(workspace, best_labels(workspace))
    flagged = flag_labels(workspace, cohort, score_cohort(workspace, cohort, seed=0))
    assert flagged.shape == (10, 2)
    assert not flagged[2].any()
    assert flagged[5].any()


def test_huang2023_corrects_by_uncertainty(labelled):
    workspace = labelled(preset="huang2023", shares_trainings=False, student_steps=30)
    told = correct_store(workspace)
    assert told["n_flagged"] == 8  # round(0.75 * 10): Python rounds 7.5 to the even 8
    assert 0 < told["n_corrected"] <= 8
    row = next(row for row in best_labels(workspace).values() if row.tag == "corrected")
    assert row.maker == "correction:huang2023"
    assert row.info["score_before"] is None
    # The queue and the viewers see the score of the corrected label, not of the one before.
    quality = workspace.store.ledger.quality(row.id)
    assert sorted(quality) == [0, 3, 7]
    assert workspace.store.ledger.image(row.image_id).queue_score == quality[0].score


def test_the_student_that_corrects_is_asked_with_its_dropout_on(labelled, monkeypatch):
    workspace = labelled(preset="huang2023", shares_trainings=False, student_steps=30)
    passes_seen = []

    def seen(target, prediction, passes):
        passes_seen.append(passes)
        return huang_correct(target, prediction, passes)

    monkeypatch.setattr(correction, "huang_correct", seen)
    correct_store(workspace)
    assert len(passes_seen) == 8
    assert any((passes != passes[:1]).any() for passes in passes_seen)


def test_a_mask_that_students_drew_does_not_keep_what_sam_said_of_the_old_one(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    of_sam = {"candidate": 3, "predicted_iou": 0.3, "stability": 0.2, "prompt_agreement": 0.9}
    cohort.labels[2].info = {"structures": {name: dict(of_sam) for name in cohort.config.names}}
    label_map = workspace.store.read_label(cohort.labels[2])
    drawn = Choice(STUDENT, cohort.mask(2, 1).astype(np.float32), 0.4, 0.9)
    made = Correction(label_map, np.ones_like(label_map), [], 0.4, 0.9, {0: drawn})

    save_correction(workspace, cohort, 2, made, ceiling=[0.5, -1], run_id=None, round_number=0)

    first, second = cohort.config.names
    told = workspace.store.label(cohort.images[2].id, "corrected").info["structures"]
    assert told == {first: {"prompt_agreement": 0.9}, second: of_sam}


def test_what_a_person_rejects_meanwhile_is_not_corrected_and_no_correction_undoes_it(labelled):
    workspace = labelled(shares_trainings=False)
    store = workspace.store
    cohort = load_cohort(workspace, best_labels(workspace))
    drawn = Choice(STUDENT, cohort.mask(2, 1).astype(np.float32), 0.4, 0.9)
    label_map = np.roll(store.read_label(cohort.labels[2]), 3, axis=0)
    made = Correction(label_map, np.ones_like(label_map), [], 0.4, 0.9, {0: drawn})
    made_in = {"ceiling": [0.5, -1], "run_id": None, "round_number": 0}

    assert save_correction(workspace, cohort, 2, made, **made_in)
    reject_label(workspace, "case2", reviewer="bob", reason="leaks")
    assert not save_correction(workspace, cohort, 2, made, **made_in)
    assert store.ledger.best_label("case2").id == cohort.labels[2].id
    n_labels = len(store.ledger.versions("case2"))
    reject_label(workspace, "case2", cohort.labels[2].id, reviewer="bob", reason="leaks too")
    other = replace(made, label_map=np.roll(label_map, 3, axis=0))
    assert not save_correction(workspace, cohort, 2, other, **made_in)
    assert len(store.ledger.versions("case2")) == n_labels
    assert image_state(workspace, "case2") == "rejected"


def test_an_image_that_is_gone_meanwhile_is_not_corrected(labelled, lose_images):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    choices = {0: Choice(STUDENT, cohort.mask(2, 1).astype(np.float32), 0.4, 0.9)}
    assert correction._on_grid(workspace, cohort, 2, choices) is not None
    lose_images(workspace)
    assert correction._on_grid(workspace, cohort, 2, choices) is None


def test_a_second_pass_stays_below_the_line_of_the_first(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    assert known_ceiling(workspace, cohort) == [None, None]
    label_map = workspace.store.read_label(cohort.labels[2])
    made = Correction(label_map, np.ones_like(label_map), [], 0.4, 0.9)
    save_correction(workspace, cohort, 2, made, ceiling=[0.5, -1], run_id=None, round_number=0)
    huang = workspace.with_settings(preset="huang2023")
    save_correction(huang, cohort, 3, made, ceiling=[0.3, 0.3], run_id=None, round_number=0)

    cohort = load_cohort(workspace, best_labels(workspace))
    # Of the second structure nothing was flagged, and what another preset calls low is another scale.
    assert known_ceiling(workspace, cohort) == [0.5, None]
    assert known_ceiling(huang, cohort) == [0.3, 0.3]


def test_a_structure_without_a_line_is_flagged_as_at_first(labelled):
    workspace = labelled(shares_trainings=False, student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    values = np.full((10, 2), 0.9) + np.linspace(0, 0.02, 10)[:, None]
    values[4] = 0.2
    scores = replace(score_cohort(workspace, cohort, seed=0), posterior=np.ones((10, 2)), structure_scores=values)
    at_first = flag_labels(workspace, cohort, scores)
    later = flag_labels(workspace, cohort, scores, ceiling=[0.5, None])
    assert at_first[4].all()
    assert not later[:, 0].any()
    assert np.array_equal(later[:, 1], at_first[:, 1])


@pytest.mark.slow
def test_a_store_that_was_corrected_is_corrected_again_under_the_same_line(labelled, monkeypatch):
    workspace = labelled()
    lines = []

    def seen(*args, ceiling):
        lines.append(ceiling)
        return flag_labels(*args, ceiling=ceiling)

    monkeypatch.setattr(correction, "flag_labels", seen)
    for _ in range(2):
        correct_store(workspace)

    assert lines[0] == [None, None]
    assert any(line is not None for line in lines[1])
    assert lines[1] == known_ceiling(workspace, load_cohort(workspace, best_labels(workspace)))


def test_what_the_gate_holds_out_teaches_no_corrector(labelled, monkeypatch):
    workspace = labelled(shares_trainings=False, student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    scores = score_cohort(workspace, cohort, seed=0)
    workspace.store.ledger.hold_out({"case3", "case8"})
    taught_by = []

    def seen(workspace, cohort, numbers, **given):
        taught_by.append(numbers.tolist())
        return train_on(workspace, cohort, numbers, **given)

    monkeypatch.setattr(correction, "train_on", seen)
    features = [{**of, "present_peer_dice": np.full(10, 0.9)} for of in scores.features]
    flagged = np.zeros((10, 2), bool)
    flagged[2] = True

    list(correct_cohort(workspace, cohort, replace(scores, features=features), flagged, seed=0))

    assert len(taught_by) == 2
    assert not {3, 8} & {number for numbers in taught_by for number in numbers}


def test_correctors_learn_from_what_is_trusted_alone(labelled, monkeypatch):
    workspace = labelled(shares_trainings=False, student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    scores = score_cohort(workspace, cohort, seed=0)
    values = np.repeat(np.linspace(0.5, 0.95, 10)[:, None], 2, 1)
    features = [{**of, "present_peer_dice": np.full(10, 0.9)} for of in scores.features]
    scores = replace(scores, features=features, structure_scores=values)
    flagged = np.zeros((10, 2), bool)
    flagged[9], flagged[8, 0] = True, True  # good by their scores: it is the flag that counts
    taught_by = []

    def seen(workspace, cohort, numbers, *, weights, **given):
        taught_by.append((numbers.tolist(), weights))
        return train_on(workspace, cohort, numbers, weights=weights, **given)

    monkeypatch.setattr(correction, "train_on", seen)

    list(correct_cohort(workspace, cohort, scores, flagged, seed=0))

    for numbers, weights in taught_by:
        # The worse half, 0 to 4, teaches nothing, nor does what is flagged; of image 8 one structure is left.
        assert numbers == [5, 6, 7, 8]
        is_whole = (weights == 1).flatten(1).all(1)
        assert is_whole[[5, 6, 7]].all()
        assert not is_whole[8]
    assert len(taught_by) == 2


def test_only_what_was_replaced_gets_the_judges_word(labelled):
    workspace = labelled(shares_trainings=False, student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    scores = replace(score_cohort(workspace, cohort, seed=0), posterior=np.full((10, 2), 0.1))
    flagged = np.zeros((10, 2), bool)
    flagged[2] = flagged[3, 0] = True

    posterior = posterior_after(scores, flagged, {2: {0: 0.9}, 4: {1: 0.9}})

    assert posterior[2].tolist() == [0.9, 0.1]
    assert posterior[3].tolist() == [0.1, 1]
    assert (posterior[[0, 1, *range(4, 10)]] == 1).all()


def test_pixels_around_a_flagged_structure_do_not_teach(labelled):
    workspace = labelled(shares_trainings=False, student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    agreeing = torch.nn.functional.one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2).float()
    scores = replace(score_cohort(workspace, cohort, seed=0), peer_probs=agreeing)
    flagged = np.zeros((10, 2), bool)
    flagged[1, 0] = flagged[2, :] = True
    sampling, weights = trusted_only(cohort, scores.peer_probs, flagged)
    assert sampling[:4].tolist() == [1, 0.5, 0, 1]
    assert not weights[1][cohort.targets[1] == 1].any()
    # The other structure lies beyond the margin, for the most part.
    assert weights[1][cohort.targets[1] == 2].float().mean() > 0.5
    assert (weights[[0, 3]] == 1).all()


def test_where_a_corrected_label_and_its_judge_differ_is_disputed(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    judge = cohort.targets.clone()
    judge[2, 10, 4:9] = 1  # five pixels of the first structure more
    judge[3][cohort.targets[3] == 2] = 0  # sees nothing of the second
    probs = torch.nn.functional.one_hot(judge.long(), 3).permute(0, 3, 1, 2).float()
    differs = cohort.targets != judge
    assert 1 <= differs[2].sum() <= 5
    flagged = np.zeros((10, 2), bool)
    assert not disputed_pixels(cohort, probs, flagged).any()
    flagged[2, 0] = flagged[3] = True
    disputed = disputed_pixels(cohort, probs, flagged)
    assert torch.equal(disputed[2:4], differs[2:4])
    # The first structure of the fourth image is undisputed.
    flagged[3, 1] = False
    assert not disputed_pixels(cohort, probs, flagged)[3].any()


def test_what_the_first_round_found_good_is_not_flagged_later(labelled):
    workspace = labelled(shares_trainings=False, student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    posterior, values = np.ones((10, 2)), np.full((10, 2), 0.9)
    posterior[:3, 0], values[:3, 0] = 0.1, [0.2, 0.6, 0.4]
    scores = replace(score_cohort(workspace, cohort, seed=0), posterior=posterior, structure_scores=values)
    flagged = flag_labels(workspace, cohort, scores)
    assert np.argwhere(flagged).tolist() == [[0, 0], [1, 0], [2, 0]]
    assert flag_ceiling(scores, flagged) == [0.6, -1]
    # Later the mixture calls more of them bad: only what lies at or below the line of the first round counts.
    later = replace(scores, posterior=np.full((10, 2), 0.1), structure_scores=values + 0.15)
    assert np.argwhere(flag_labels(workspace, cohort, later, ceiling=[0.6, -1])).tolist() == [[0, 0], [2, 0]]
