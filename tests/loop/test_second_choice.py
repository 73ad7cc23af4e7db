"""Another candidate of SAM in place of a label, where students agree better with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samcorrect.lib.core.correction import loses_edges
from samcorrect.lib.core.metrics import dice
from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop import correction, second_choice
from samcorrect.lib.loop.asked_again import ask_cohort
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.corrected_labels import save_correction
from samcorrect.lib.loop.correction import correct_cohort, count_corrections, flagged_images
from samcorrect.lib.loop.frame_candidates import shrink_masks
from samcorrect.lib.loop.peers import Peers
from samcorrect.lib.loop.pseudo_label import masks_to_grid, pseudo_label_store
from samcorrect.lib.loop.scoring import score_cohort
from samcorrect.lib.loop.second_choice import ANOTHER_PROMPT, ASKED_AGAIN, SecondChoice, choose_again, with_choices


def one_hot_of(cohort) -> torch.Tensor:
    """(N, K + 1, side, side) of students that see what the labels say."""
    return torch.nn.functional.one_hot(cohort.targets.long(), 3).permute(0, 3, 1, 2).float()


@pytest.fixture
def disputed(phantom_workspace):
    """A workspace and a cohort of two pseudo-labels; peers who say of the first structure of the first image what
    another candidate says, and of all else what the labels say; and that candidate's number.
    """
    workspace = phantom_workspace(n_candidates=12)
    pseudo_label_store(workspace, image_ids=["case0", "case1"])
    cohort = load_cohort(workspace, best_labels(workspace))
    side = cohort.config.side_px
    found = [find_candidates(workspace, workspace.store.read_image(row.id), row.path) for row in cohort.images]
    small = shrink_masks(found[0][0].masks, side)
    label, frames = cohort.mask(0, 1), cohort.frames[cohort.spans[0]].numpy()
    other = int(np.argmin([np.inf if loses_edges(label, mask, frames) else dice(mask, label) for mask in small]))
    assert dice(small[other], label) < 0.95
    judge = cohort.targets.clone()
    judge[0][judge[0] == 1] = 0
    judge[0][torch.from_numpy(small[other, 0])] = 1
    taken_first = [[label.info["structures"][n]["candidate"] for n in cohort.config.names] for label in cohort.labels]
    nearest = np.array(taken_first)
    nearest[0, 0] = other
    probs = one_hot_of(replace(cohort, targets=judge))
    return workspace, cohort, Peers(probs, nearest, nearest, *np.ones((2, 2), bool)), other


def test_what_the_students_prefer_is_taken_where_it_is_open(disputed):
    workspace, cohort, peers, other = disputed
    everywhere = np.ones((2, 2), bool)

    taken = choose_again(workspace, cohort, peers, everywhere, everywhere, everywhere)

    assert {number: list(of) for number, of in taken.items()} == {0: [0]}
    choice = taken[0][0]
    assert choice.name == ANOTHER_PROMPT
    assert choice.score_before < choice.score_after == 1.0
    found = find_candidates(workspace, workspace.store.read_image("case0"), cohort.images[0].path)[0]
    assert choice.info["candidate"] == other
    assert choice.info["stability"] == found.stability[other]
    np.testing.assert_array_equal(choice.soft > 0.5, found.masks[other])
    changed = with_choices(cohort, taken)
    np.testing.assert_array_equal(changed.mask(0, 1), (peers.probs[:1].argmax(1) == 1).numpy())
    assert torch.equal(changed.targets[1], cohort.targets[1])
    # Nothing is taken of what is not open, as long as SAM is not asked again.
    assert not choose_again(workspace, cohort, peers, ~everywhere, everywhere, everywhere)
    # No prompt, no candidate.
    unprompted = replace(peers, nearest=np.full((2, 2), -1))
    assert not choose_again(workspace, cohort, unprompted, everywhere, everywhere, everywhere)


def test_an_image_without_its_box_keeps_its_label(disputed, monkeypatch):
    workspace, cohort, peers, _ = disputed

    def forgotten(*_):
        raise ProtocolError("the boxes file has no row for this image")

    monkeypatch.setattr(second_choice, "find_candidates", forgotten)
    assert not choose_again(workspace, cohort, peers, *np.ones((3, 2, 2), bool))


def test_an_image_that_is_gone_meanwhile_keeps_its_label(disputed, lose_images):
    workspace, cohort, peers, _ = disputed
    lose_images(workspace)
    everything = np.ones((2, 2), bool)
    assert choose_again(workspace, cohort, peers, everything, everything, everything) == {}


def test_a_label_is_corrected_without_a_flag_and_says_from_which_prompt(disputed):
    workspace, cohort, peers, other = disputed
    scored = score_cohort(workspace, cohort, seed=0)
    features = [{**of, "present_peer_dice": np.full(2, 0.9)} for of in scored.features]
    scores = replace(scored, peers=peers, peer_probs=peers.probs, doubts=("doubtful", ""), features=features)
    nowhere = np.zeros((2, 2), bool)

    corrections = dict(correct_cohort(workspace, cohort, scores, nowhere, seed=0))

    assert list(corrections) == [0]
    assert count_corrections(flagged_images(nowhere), corrections.keys()) == {
        "n_flagged": 0,
        "n_corrected": 0,
        "n_chosen_again": 1,
    }
    save_correction(workspace, cohort, 0, corrections[0], ceiling=[-1, -1], run_id=None, round_number=1)
    row = workspace.store.label("case0", "corrected")
    name, index = cohort.config.names[0], cohort.config.indices[0]
    found = find_candidates(workspace, workspace.store.read_image("case0"), cohort.images[0].path)[0]
    mask = masks_to_grid(found.masks[other], cohort.shapes[0][:2]) > 0.5
    # A pixel of both structures is the smaller one's.
    is_alone = workspace.store.read_label(cohort.labels[0]) != cohort.config.indices[1]
    np.testing.assert_array_equal((workspace.store.read_label(row) == index)[is_alone], mask[is_alone])
    told, before = row.info["structures"], cohort.labels[0].info["structures"]
    assert told[name]["candidate"] == other != before[name]["candidate"]
    assert told[cohort.config.names[1]] == before[cohort.config.names[1]]
    assert row.prompts[name]["box"] == pytest.approx(found.boxes[other], abs=0.01)
    assert row.info["reasons"] == [f"{name}: {ANOTHER_PROMPT} (judge {corrections[0].score_before:.2f} to 1.00)"]
    # A structure that is not doubtful, or that the students do not know, keeps its labels, and so does a person.
    assert not list(correct_cohort(workspace, cohort, replace(scores, doubts=("", "")), nowhere, seed=0))
    ignorant = replace(scores, peers=replace(peers, is_judge=np.zeros(2, bool)))
    assert not list(correct_cohort(workspace, cohort, ignorant, nowhere, seed=0))
    workspace.store.submit_label("case0", workspace.store.label_path(row), tag="final", user="anna")
    approved = load_cohort(workspace, best_labels(workspace) | {"case0": workspace.store.label("case0", "final")})
    assert not list(correct_cohort(workspace, replace(cohort, labels=approved.labels), scores, nowhere, seed=0))


@pytest.mark.parametrize("around", [0, 1])
def test_a_mask_around_another_structure_or_inside_it_leaves_the_smaller_one_whole(disputed, monkeypatch, around):
    workspace, cohort, peers, _ = disputed
    scored = score_cohort(workspace, cohort, seed=0)
    features = [{**of, "present_peer_dice": np.full(2, 0.9)} for of in scored.features]
    scores = replace(scored, peers=peers, peer_probs=peers.probs, doubts=("", ""), features=features)
    indices, before = cohort.config.indices, workspace.store.read_label(cohort.labels[0])

    def corrected(k, mask):
        bits = [np.packbits(of, axis=-1) for of in (mask, shrink_masks(mask[None], cohort.config.side_px)[0])]
        taken = {0: {k: SecondChoice(*bits, 0.5, 0.9, {}, None, ANOTHER_PROMPT)}}
        monkeypatch.setattr(correction, "choose_again", lambda *_, **__: taken)
        ((_, made),) = correct_cohort(workspace, cohort, scores, np.zeros((2, 2), bool), seed=0)
        return made.label_map, with_choices(cohort, taken)

    label_map, changed = corrected(around, np.ones((1, 256, 256), bool))

    inside = before == indices[1 - around]
    assert np.array_equal(label_map, np.where(inside, indices[1 - around], indices[around]))
    np.testing.assert_array_equal(changed.mask(0, 2 - around), cohort.mask(0, 2 - around))
    # A mask in the middle of a label, whose outline lies between pixels of the image.
    large = find_candidates(workspace, workspace.store.read_image("case0"), cohort.images[0].path)[around].masks[0]
    small = np.zeros_like(large)
    row, column = (int(np.median(at)) for at in np.nonzero(large[0]))
    small[0, row - 15 : row + 14, column - 11 : column + 12] = True

    label_map, changed = corrected(1 - around, small)

    on_grid = masks_to_grid(small, before.shape[:2]) > 0.5
    assert np.array_equal(label_map == indices[1 - around], on_grid)
    np.testing.assert_array_equal(changed.mask(0, 2 - around), shrink_masks(small[None], cohort.config.side_px)[0])


def test_what_sam_takes_in_the_box_of_the_students_replaces_a_good_label_that_they_agree_with_less(disputed):
    workspace, cohort, peers, _ = disputed
    truth = one_hot_of(cohort)
    asked = ask_cohort(workspace, cohort, truth, np.ones(2, bool))
    # Students see in each image what SAM takes there, and no candidate is open.
    judge = cohort.targets.clone()
    judge[0][judge[0] == 2] = 0
    judge[0][torch.from_numpy(asked.masks(cohort.spans[0], 1)[0][0][0])] = 2
    moved = cohort.targets.clone()
    moved[0][moved[0] == 2] = 0
    moved[0][torch.from_numpy(np.roll(cohort.mask(0, 2)[0], 1, axis=0))] = 2
    cohort = replace(cohort, targets=moved)
    peers = replace(peers, probs=one_hot_of(replace(cohort, targets=judge)), asked=asked)
    nowhere, everywhere = np.zeros((2, 2), bool), np.ones((2, 2), bool)

    taken = choose_again(workspace, cohort, peers, nowhere, everywhere, everywhere)

    choice = taken[0][1]
    assert choice.name == ASKED_AGAIN
    assert choice.score_after == 1.0
    np.testing.assert_array_equal(choice.small, asked.masks(cohort.spans[0], 1)[0][0])
    changed = with_choices(cohort, {0: {1: choice}})
    np.testing.assert_array_equal(changed.mask(0, 2), asked.masks(cohort.spans[0], 1)[0][0])
    assert not choose_again(workspace, cohort, peers, nowhere, nowhere, everywhere)


def test_a_label_that_no_prompt_made_gets_none(labelled):
    """An imported label takes SAM's mask in the students' box, and says so, but no prompt of the protocol."""
    workspace = labelled(shares_trainings=False, is_bad=lambda _: False)
    whole = load_cohort(workspace, best_labels(workspace))
    moved = replace(whole, targets=torch.roll(whole.targets, 2, dims=1))
    probs = one_hot_of(whole)
    nothing = np.full((10, 2), -1)
    asked = ask_cohort(workspace, whole, probs, np.ones(2, bool))
    peers = Peers(probs, nothing, nothing, *np.ones((2, 2), bool), is_asked=np.ones(2, bool), asked=asked)
    scored = score_cohort(workspace.with_settings(modules="search,correct"), whole, seed=0)
    features = [{**of, "present_peer_dice": np.full(10, 0.9)} for of in scored.features]
    scores = replace(scored, peers=peers, peer_probs=probs, doubts=("", ""), features=features)

    corrections = dict(correct_cohort(workspace, moved, scores, np.zeros((10, 2), bool), seed=0))

    assert len(corrections) > 5
    number = next(iter(corrections))
    save_correction(workspace, whole, number, corrections[number], ceiling=[-1, -1], run_id=None, round_number=1)
    row = workspace.store.label(whole.images[number].id, "corrected")
    assert row.prompts == {}
    assert all(ASKED_AGAIN in reason for reason in row.info["reasons"])
    assert all("stability" in row.info["structures"][whole.config.names[k]] for k in corrections[number].changes)
