"""Peers: two pairs of students, what teaches the second, and when they may choose."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, shift

from samcorrect.lib.core.metrics import dice
from samcorrect.lib.loop import peers as peers_module
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.frame_candidates import FrameCandidates
from samcorrect.lib.loop.peers import compare_with_peers, learn_peers
from samcorrect.lib.loop.students import split_cases

BAD_IMAGES = (2, 5)
LEFT_TO_TEACH = {"case1", "case2", "case4", "case6"}
RIGHT, WRONG = 0, 1
NAN = float("nan")


def candidates_of(cohort, *, firsts):
    """For each image a right candidate and one that is shifted far away; `firsts` is what SAM took."""
    found = []
    for number, first in enumerate(firsts):
        of_image = []
        for k in range(cohort.n_structures):
            right = cohort.mask(number, k + 1)
            masks = np.stack([right, shift(right, (0, 0, 12), order=0)])
            of_image.append(FrameCandidates(np.packbits(masks, axis=-1), np.array([0.9, 0.9]), first, NAN))
        found.append(of_image)
    return found


def test_two_pairs_are_trained_and_without_prompts_nothing_is_chosen(labelled):
    workspace = labelled(shares_trainings=False, student_steps=3)
    cohort = load_cohort(workspace, best_labels(workspace))
    seen = []

    peers = learn_peers(workspace, cohort, [None] * 10, seed=0, progress=lambda stage, *_: seen.append(stage))

    assert {s for s in seen if "fold students" in s} == {"out-of-fold students", "second out-of-fold students"}
    assert len(list((workspace.store.state_dir / "models").glob("*.pt"))) == 4
    assert torch.allclose(peers.probs.sum(1), torch.ones(10, 32, 32), atol=1e-4)
    assert (peers.chosen == -1).all()
    assert peers.is_judge.all()


def test_what_the_gate_holds_out_teaches_no_peer(labelled):
    workspace = labelled(shares_trainings=False, student_steps=1)
    cohort = load_cohort(workspace, best_labels(workspace))
    workspace.store.ledger.hold_out({"case0", "case7"})

    peers = learn_peers(workspace, cohort, [None] * 10, seed=0)

    learnt = [set(first.image_ids) | set(second.image_ids) for first, second in peers.pairs]
    assert learnt == [{image.id for image in cohort.images} - {"case0", "case7"}] * 2


def test_what_is_left_of_a_fold_teaches_however_good_what_is_held_out_is(labelled):
    """Half of each fold is held out, the better half: the median is that of the others."""
    workspace = labelled(is_bad=lambda image_id: image_id in LEFT_TO_TEACH)
    cohort = load_cohort(workspace, best_labels(workspace))
    workspace.store.ledger.hold_out({image.id for image in cohort.images} - LEFT_TO_TEACH)
    kept = [n for n, image in enumerate(cohort.images) if image.id in LEFT_TO_TEACH]
    assert all(set(kept) & set(fold) for fold in split_cases([image.case_id for image in cohort.images], seed=0))

    peers = learn_peers(workspace.with_settings(student_steps=3), cohort, [None] * 10, seed=0)

    assert {i for pair in peers.pairs for student in pair for i in student.image_ids} == LEFT_TO_TEACH


def test_students_that_know_nothing_do_not_choose(labelled):
    workspace = labelled(shares_trainings=False, student_steps=1, is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    found = candidates_of(cohort, firsts=[WRONG] * 10)
    # Three prompts that agree with each other: whatever one step of training says, it says it less clearly.
    agreeing = [
        [FrameCandidates(np.repeat(of.bits[:1], 3, axis=0), np.full(3, 0.9), 2, NAN) for of in of_image]
        for of_image in found
    ]

    peers = learn_peers(workspace, cohort, agreeing, seed=0)

    assert not peers.is_judge.any()
    assert (peers.chosen == 2).all()


@pytest.mark.parametrize("inner", [0, 1])
def test_both_pairs_learn_a_structure_that_lies_inside_another(labelled, monkeypatch, inner):
    workspace = labelled()
    cohort = load_cohort(workspace, best_labels(workspace))
    for label in cohort.labels:
        label.maker = "sam:any"
    masks = np.zeros((2, 1, 1, 32, 32), bool)
    masks[1 - inner, ..., 4:28, 4:28], masks[inner, ..., 12:18, 10:16] = True, True
    found = [[FrameCandidates(np.packbits(of, axis=-1), np.array([0.9]), 0, NAN) for of in masks]] * 10
    taught = []

    def trained(workspace, cohort, **_):
        taught.append(cohort.targets.clone())
        # Students see the inner structure, and of the outer one what is around it.
        return torch.nn.functional.one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2).float(), None

    monkeypatch.setattr(peers_module, "out_of_fold_probs", trained)

    learn_peers(workspace.with_settings(modules="search"), cohort, found, seed=0)

    for targets in taught:
        assert (targets == inner + 1).flatten(1).sum(1).tolist() == [36] * 10
        assert (targets == 2 - inner).flatten(1).sum(1).tolist() == [24 * 24 - 36] * 10
    assert len(taught) == 2


@pytest.mark.parametrize(("n_missed", "is_judge"), [(1, True), (4, False)])
def test_students_that_miss_a_structure_in_too_many_images_do_not_choose(labelled, n_missed, is_judge):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    # In the other images, and so in the median, they agree better with a prompt than the prompts with each other.
    probs = torch.nn.functional.one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2).float()
    probs[:n_missed] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    found = []
    for number in range(10):
        right = [cohort.mask(number, k + 1) for k in range(2)]
        masks = [np.stack([mask, shift(mask, (0, 0, 1), order=0)]) for mask in right]
        found.append([FrameCandidates(np.packbits(of, axis=-1), np.array([0.9, 0.9]), WRONG, 0.3) for of in masks])

    peers = compare_with_peers(cohort, found, probs)

    assert peers.is_judge.tolist() == [is_judge] * 2


@pytest.mark.parametrize(("agreement", "is_judge"), [(0.3, False), (NAN, False), (-0.3, True)])
def test_students_that_know_less_choose_where_sam_is_surest_of_what_its_prompts_contradict(
    labelled, agreement, is_judge
):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    found = [
        [FrameCandidates(of.bits[[RIGHT, RIGHT, WRONG]], np.full(3, 0.9), 2, agreement) for of in of_image]
        for of_image in candidates_of(cohort, firsts=[WRONG] * 10)
    ]
    # They agree with every candidate a little, and these with each other more.
    probs = torch.zeros(len(cohort.frames), 3, 32, 32)
    probs[:, 0] = 0.9
    probs[:, 1, :6], probs[:, 2, -6:] = 1.0, 1.0

    peers = compare_with_peers(cohort, found, probs)

    assert peers.is_judge.tolist() == [is_judge] * 2
    assert np.array_equal(peers.chosen, peers.nearest if is_judge else np.full((10, 2), 2))


def test_students_do_not_choose_what_loses_the_edges_that_sam_took(labelled):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    # They learnt a fault that most labels share: masks that reach far beyond the object.
    plane, probs = np.ones((1, 3, 3), bool), torch.zeros(10, 3, 32, 32)
    probs[:, 0] = 0.5
    firsts = [RIGHT if number < 4 else WRONG for number in range(10)]
    found = []
    for number, first in enumerate(firsts):
        right = cohort.mask(number, 1)
        masks = np.stack([right, binary_dilation(right, structure=plane, iterations=4)])
        found.append([FrameCandidates(np.packbits(masks, axis=-1), np.array([0.9, 0.9]), first, NAN)] * 2)
        probs[number, 1][torch.from_numpy(masks[WRONG, 0])] = 1.0

    peers = compare_with_peers(cohort, found, probs)

    assert peers.is_judge[0]
    assert (peers.nearest[:, 0] == WRONG).all()
    assert peers.chosen[:, 0].tolist() == firsts


@pytest.mark.slow
def test_students_choose_the_right_candidate_where_sam_took_the_wrong_one(labelled):
    workspace = labelled(is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    firsts = [WRONG if number in BAD_IMAGES else RIGHT for number in range(10)]
    truth = cohort.targets.clone()

    peers = learn_peers(workspace, cohort, candidates_of(cohort, firsts=firsts), seed=0)

    assert peers.is_judge.all()
    assert (peers.chosen == RIGHT).all()
    known = [dice((peers.probs[n].argmax(0) == c).numpy(), (truth[n] == c).numpy()) for n in range(10) for c in (1, 2)]
    assert np.mean(known) > 0.6
