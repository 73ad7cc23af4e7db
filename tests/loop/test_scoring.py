"""Scores of labels of known quality."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.stats import spearmanr
from torch.nn.functional import one_hot

from samcorrect.lib.core.calibration import nothing_expected
from samcorrect.lib.core.quality import FEATURES, structure_doubts
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop import scoring as scoring_module
from samcorrect.lib.loop.approvals import ApprovedPairs
from samcorrect.lib.loop.asked_again import AskedMasks
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.frame_candidates import FrameCandidates
from samcorrect.lib.loop.peers import Peers, compare_with_peers
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.loop.scoring import (
    MIN_IMAGES_FOR_PEERS,
    N_FORMS,
    SIZE_PARTS,
    expect_structures,
    finish_scores,
    fuse_structures,
    measure_labels,
    score_cohort,
    with_typicality,
    write_quality,
)


def stored_scores(workspace) -> dict[str, float | None]:
    ledger = workspace.store.ledger
    return {image_id: ledger.quality(row.id)[0].score for image_id, row in best_labels(workspace).items()}


@pytest.mark.slow
def test_labels_that_are_off_score_below_the_others_with_a_reason(labelled):
    workspace = labelled()
    told = score_store(workspace)
    assert (told["n_scored"], told["has_peers"]) == (10, True)
    scores = stored_scores(workspace)
    good = [score for image_id, score in scores.items() if image_id not in ("case2", "case5")]
    pairs = [scores[bad] < score for bad in ("case2", "case5") for score in good]
    assert np.mean(pairs) > 0.8
    assert told["mean_score"] == pytest.approx(np.mean(list(scores.values())), abs=1e-4)
    rows = workspace.store.ledger.quality(best_labels(workspace)["case2"].id)
    assert set(rows) == {0, 3, 7}
    assert rows[0].score == min(rows[3].score, rows[7].score)
    assert any("outline differs" in reason or "overlaps little" in reason for reason in rows[0].reasons)
    assert rows[3].expected_dice_low <= rows[3].expected_dice <= rows[3].expected_dice_high
    assert {row.id: row.queue_score for row in workspace.store.ledger.images()} == scores


def test_labels_that_are_rightly_empty_are_good_and_hide_no_bad_one(labelled):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    rightly_empty, wrongly_empty, shifted, first = [0, 1, 3], 4, [2, 5], 0
    for number in rightly_empty:
        cohort.targets[number][cohort.targets[number] == first + 1] = 0
    probs = one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2) * 0.94 + 0.02
    cohort.targets[shifted] = torch.roll(cohort.targets[shifted], 12, dims=2)
    cohort.targets[wrongly_empty][cohort.targets[wrongly_empty] == first + 1] = 0
    peers = Peers(probs, np.full((10, 2), -1), np.full((10, 2), -1), *np.ones((2, 2), bool))

    columns, forms = measure_labels(cohort, [None] * 10, peers)
    scores = fuse_structures(with_typicality(columns, forms), peers)[:, first]

    assert (scores[rightly_empty] > 0.9).all()
    assert (scores[[*shifted, wrongly_empty]] < 0.5).all()


def test_a_tiny_label_that_peers_do_not_see_ranks_below_the_others(labelled):
    workspace, tiny, first = labelled(is_bad=lambda _: False), "case4", 0
    image, index = workspace.store.read_image(tiny), workspace.require_protocol().indices[first]
    label_map = workspace.store.read_label(workspace.store.label(tiny, "original"))
    label_map[label_map == index] = 0
    label_map[20, 40, 0] = index
    workspace.store.save_label_map(tiny, label_map, tag="original", maker="test", affine=image.affine)
    cohort = load_cohort(workspace, best_labels(workspace))
    number = [row.id for row in cohort.images].index(tiny)
    # The peers see all of the other images a little differently, and in this one nothing.
    seen = torch.roll(cohort.targets, 1, dims=2)
    seen[number][seen[number] == first + 1] = 0
    probs = one_hot(seen.long(), 3).permute(0, 3, 1, 2) * 0.94 + 0.02
    peers = Peers(probs, np.full((10, 2), -1), np.full((10, 2), -1), *np.ones((2, 2), bool))

    columns, forms = measure_labels(cohort, [None] * 10, peers)
    scores = fuse_structures(with_typicality(columns, forms), peers)[:, first]

    assert scores.argmin() == number
    assert scores[number] < 0.2 < np.delete(scores, number).min()


def test_a_label_that_is_a_little_too_large_all_along_stands_out_among_ragged_ones(labelled):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    probs = one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2) * 0.94 + 0.02
    # Half of each outline one pixel further out, the other half one further in: the Dice falls, and the area hardly.
    large, first = 5, 0
    ragged = [number for number in range(10) if number != large]
    for number in [*ragged, large]:
        mask = cohort.targets[number] == first + 1
        grown, shrunk = binary_dilation(mask), binary_erosion(mask)
        upper = np.arange(mask.shape[0])[:, None] < np.flatnonzero(mask.any(1)).mean()
        changed = grown if number == large else np.where(upper, grown, shrunk)
        cohort.targets[number][mask] = 0
        cohort.targets[number][torch.from_numpy(changed)] = first + 1
    peers = Peers(probs, np.full((10, 2), -1), np.full((10, 2), -1), *np.ones((2, 2), bool))

    (features, _) = with_typicality(*measure_labels(cohort, [None] * 10, peers))

    assert features["peer_dice"].argmin() != large
    assert features["peer_area"].argmin() == large
    assert np.median(features["peer_area"]) > 0.5


def test_where_sam_contradicts_its_prompts_students_alone_are_believed():
    rng = np.random.default_rng(0)
    truth = rng.random(40)
    noise = {name: rng.random(40) for name in FEATURES}
    features = [{**noise, "peer_dice": truth, "choice_dice": truth}]

    def judged(**said):
        peers = Peers(None, None, None, *(np.array([said[name]]) for name in ("is_judge", "is_believed")))
        return spearmanr(fuse_structures(features, peers)[:, 0], truth)[0]

    alone = judged(is_judge=True, is_believed=False)
    assert alone > 0.9
    assert alone > judged(is_judge=True, is_believed=True) + 0.05
    assert judged(is_judge=False, is_believed=True) < 0.5


def test_the_dice_that_is_expected_is_that_with_who_is_believed(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    rng = np.random.default_rng(0)
    values = np.linspace(0.1, 0.9, 10)
    features = [{"peer_dice": values / 2, "prompt_dice": 1 - (1 - values) / 2 + rng.normal(0, 1e-3, 10)}] * 2
    peers = Peers(None, None, None, np.array([True, False]), np.ones(2, bool))

    students, prompts = expect_structures(workspace, np.stack([values] * 2, 1), features, cohort.labels, peers)

    assert students.mean == pytest.approx(values / 2)
    assert prompts.mean == pytest.approx(1 - (1 - values) / 2, abs=0.01)
    assert not np.any([students.n_approved, prompts.n_approved])


def test_the_dice_to_be_expected_counts_what_sam_took_in_the_boxes_of_students_too(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    probs = one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2).float()
    side = cohort.config.side_px
    # SAM is as sure of an empty mask, from the prompt that was given, as of the label, from the box of the students.
    empty = FrameCandidates(np.zeros((1, 1, side, side // 8), np.uint8), np.array([0.9]), 0, float("nan"))
    same = torch.stack([torch.from_numpy(np.packbits(cohort.targets == k, axis=-1)) for k in (1, 2)], 1)[:, :, None]
    asked = AskedMasks(same, np.full((10, 2, 1), 0.9), np.ones((10, 2, 4)))

    def expected(**of_peers):
        peers = Peers(probs, *np.zeros((2, 10, 2), int), *np.ones((2, 2), bool), **of_peers)
        told, _ = measure_labels(cohort, [[empty, empty]] * 10, peers)
        return told["prompt_dice"]

    assert (expected() == 0).all()
    assert expected(asked=asked) == pytest.approx(0.5)


def test_a_rightly_empty_label_has_the_area_of_what_sam_was_not_asked_about(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    cohort.targets[0] = 0
    probs = one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2).float()
    shape = (10, 2)
    nobody = AskedMasks(
        torch.zeros(10, 2, 1, 32, 4, dtype=torch.uint8), np.full((10, 2, 1), np.nan), np.full((10, 2, 4), np.nan)
    )
    said = (np.full(shape, -1), np.full(shape, -1), np.ones(2, bool), np.ones(2, bool))
    peers = Peers(probs, *said, is_asked=np.array([True, False]), asked=nobody)

    _, forms = measure_labels(cohort, [None] * 10, peers)

    ratios = forms[:, :, SIZE_PARTS["asked_area"]]
    assert ratios[0, 0] == 0
    assert np.isnan(np.delete(ratios.ravel(), 0)).all()


def test_labels_that_are_rightly_empty_set_no_standard_for_the_size_of_others():
    forms = np.full((20, 1, N_FORMS), np.nan)
    size = SIZE_PARTS["peer_area"][0]
    forms[:12, 0, size] = 0  # nobody sees anything there
    forms[12:, 0, 0] = -2.0
    forms[12:, 0, size] = [0, 0.02, -0.02, 0.04, -0.04, 0.01, -0.03, 0.9]

    (features,) = with_typicality({}, forms)

    assert (features["peer_area"][:12] == 1).all()
    assert (features["peer_area"][12:19] > 0.3).all()
    assert features["peer_area"][19] < 0.01


def test_a_label_at_the_wrong_end_of_a_volume_lies_elsewhere():
    forms = np.random.default_rng(0).normal(0.5, 0.02, (20, 1, N_FORMS))
    forms[7, 0] = 0.5
    forms[7, 0, -1] = 0.9

    (features,) = with_typicality({}, forms)

    assert features["cohort_position"].argmin() == 7
    assert features["cohort_position"][7] < 0.1


def test_students_that_see_nothing_leave_the_ranking_to_other_evidence(labelled):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    probs = torch.zeros(10, 3, 32, 32)
    probs[:, 0] = 1
    peers = compare_with_peers(cohort, [None] * 10, probs)

    scores = fuse_structures(with_typicality(*measure_labels(cohort, [None] * 10, peers)), peers)

    assert not peers.is_judge.any()
    for of in scores.T:
        assert len(np.unique(of)) > 5  # and not 0 of all


def test_the_reasons_of_the_worst_structure_come_first(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    low = np.array([0.2] + [0.9] * 9)
    of_better = dict.fromkeys(("peer_dice", "edge_contrast", "stability", "prompt_dice"), 0.9 - 0.2 * (low < 0.5))
    values = np.stack([0.9 - 0.05 * (low < 0.5), low], 1)
    features = [of_better, {"peer_dice": low}]
    expected = [nothing_expected(10)] * 2
    scores = finish_scores(cohort.config.names, cohort.labels, values, expected, features)

    write_quality(workspace, cohort.labels, scores, np.array([0]))

    rows = workspace.store.ledger.quality(cohort.labels[0].id)
    assert [reason.split(":")[0] for reason in rows[0].reasons] == [cohort.config.names[n] for n in (1, 0, 0)]
    assert rows[0].reasons[0] == rows[cohort.config.indices[1]].reasons[0]


@pytest.mark.parametrize("who_says_so", ["nobody", "a boxes file", "people"])
def test_a_structure_that_no_label_shows_is_doubtful_unless_it_is_known_to_be_absent(labelled, who_says_so):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    for label in cohort.labels:
        if who_says_so == "a boxes file":
            label.prompts = {cohort.config.names[0]: {"source": "boxes_file", "box": None}}
        if who_says_so == "people":
            label.tag = "final"
    values, is_empty = np.ones((10, 2)), np.zeros((10, 2), bool)
    is_empty[:, 0], is_empty[0, 1] = True, True
    features = [{"peer_dice": np.ones(10)}] * 2

    scores = finish_scores(
        cohort.config.names, cohort.labels, values, [nothing_expected(10)] * 2, features, is_empty=is_empty
    )

    assert scores.doubts[1] == ""
    assert scores.doubtful(cohort.config.names) == ((cohort.config.names[0],) if who_says_so == "nobody" else ())


def test_of_what_a_person_made_no_dice_is_expected(labelled, monkeypatch):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))
    values = np.linspace(0.5, 0.9, 10)
    cohort.labels[3].tag = "final"
    approvals = ApprovedPairs(values, np.linspace(0.4, 0.6, 10), np.zeros(10, bool))
    monkeypatch.setattr(scoring_module, "approved_pairs", lambda *_: [approvals])
    peers = Peers(None, None, None, np.ones(1, bool), np.ones(1, bool))

    (told,) = expect_structures(workspace, values[:, None], [{"peer_dice": values}], cohort.labels, peers)

    assert np.flatnonzero(np.isnan(told.mean)).tolist() == [3]
    assert told.n_approved.tolist() == [10] * 3 + [0] + [10] * 6


def test_students_that_see_a_structure_nowhere_gain_nothing_where_it_is_not(labelled):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    first = 0
    for number in range(7):  # most images do not show it
        cohort.targets[number][cohort.targets[number] == first + 1] = 0
    blind = cohort.targets.clone()
    blind[blind == first + 1] = 0
    probs = one_hot(blind.long(), 3).permute(0, 3, 1, 2) * 0.94 + 0.02
    peers = Peers(probs, np.full((10, 2), -1), np.full((10, 2), -1), *np.ones((2, 2), bool))

    features = with_typicality(*measure_labels(cohort, [None] * 10, peers))

    assert np.median(features[first]["peer_dice"]) == 1
    assert "present_peer_dice" in structure_doubts(features[first])
    assert not structure_doubts(features[1])


def test_the_same_seed_gives_the_same_scores_and_another_one_others(labelled):
    few = {"shares_trainings": False, "student_steps": 12}
    one, same = labelled("one", **few), labelled("same", **few)
    score_store(one)
    score_store(same)
    assert stored_scores(one) == stored_scores(same)
    cohort = load_cohort(one, best_labels(one))
    other = score_cohort(one, cohort, seed=99)
    assert not np.allclose(other.scores, list(stored_scores(one).values()), equal_nan=True)


@pytest.mark.slow
def test_huang2023_scores_by_the_loss(labelled):
    workspace = labelled(preset="huang2023")
    cohort = load_cohort(workspace, best_labels(workspace))
    scores = score_cohort(workspace, cohort, seed=0)
    assert ((scores.scores > 0) & (scores.scores <= 1)).all()
    assert np.argmin(scores.scores) in (2, 5)
    assert np.isnan(scores.expected[0].mean).all()


def test_below_eight_images_the_prompts_count_alone_where_there_are_any():
    features = {name: np.full(7, 0.9) for name in FEATURES} | {"prompt_dice": np.linspace(0.1, 0.7, 7)}
    for name in ("stability", "predicted_iou"):
        features[name] = features["prompt_dice"]

    np.testing.assert_allclose(fuse_structures([features], None)[:, 0], np.linspace(0.1, 0.7, 7))


def test_below_eight_images_without_prompts_the_rest_counts_and_it_says_so(labelled):
    workspace = labelled()
    for number in range(MIN_IMAGES_FOR_PEERS - 1, 10):
        workspace.store.ledger.quarantine(f"case{number}", "left out by the test")
    told = score_store(workspace)
    # These labels have no prompts, so nothing but their form and the image speaks for or against them.
    assert (told["n_scored"], told["has_peers"]) == (7, False)
    features = workspace.store.ledger.quality(best_labels(workspace)["case0"].id)[7].features
    assert features["peer_dice"] is None
    assert features["cohort_area"] is not None
    assert all(0 <= score <= 1 for score in stored_scores(workspace).values())


def test_approved_labels_have_the_posterior_1(labelled, phantoms):
    workspace = labelled(shares_trainings=False, student_steps=12)
    workspace.store.submit_label("case2", phantoms.labels / "case1.png", tag="final", user="anna")
    cohort = load_cohort(workspace, best_labels(workspace))
    scores = score_cohort(workspace, cohort, seed=0)
    assert scores.posterior[2].tolist() == [1, 1]
    assert ((scores.posterior >= 0) & (scores.posterior <= 1)).all()


def test_a_structure_that_students_contradict_as_a_whole_is_doubtful_and_every_label_says_so(labelled):
    # Students of one step agree with no label.
    workspace = labelled(shares_trainings=False, student_steps=1)

    told = score_store(workspace)

    names = list(workspace.require_protocol().names)
    assert told["doubtful_structures"] == names
    for image_id, label in best_labels(workspace).items():
        for name, index in zip(names, workspace.require_protocol().indices, strict=True):
            (reason,) = [r for r in workspace.store.ledger.quality(label.id)[index].reasons if "all labels" in r]
            assert reason.startswith(f"{name}, all labels: students trained on other images"), image_id


def test_no_labels_is_a_fault(phantom_workspace):
    with pytest.raises(LabelError, match="no image has a label yet"):
        score_store(phantom_workspace())
