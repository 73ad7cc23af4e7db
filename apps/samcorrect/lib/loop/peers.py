"""Peers: students that judge the labels of images they never saw, taught by the best labels there are.

The first pair learns the labels (where SAM made one, SAM's chosen candidate). What then agrees best with it, a label or
another candidate, teaches the second pair, and of that only the better half of each fold: a student of the better half
knows the truth better than one of all labels. Where students know a structure less well than SAM's prompts agree on it
(few images, objects that look different in each), they do not choose, unless SAM's own confidence contradicts its
prompts; and never what loses the edges of the image that SAM's choice lies on. What the promotion gate holds out is
judged and teaches nobody, unless a fold has nothing else: it would come back in the labels that its candidates learn.
No student ever learns from an image that it judges; which images of the other fold teach the second pair does depend on
the first, which learnt the judged one.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from samcorrect.lib.core.correction import judge_mask, loses_edges
from samcorrect.lib.core.metrics import dice
from samcorrect.lib.core.pseudo_label import choose_by_peer, is_confidence_believed
from samcorrect.lib.core.quality import pairwise_dice, prompt_agreement
from samcorrect.lib.loop.asked_again import AskedMasks, ask_cohort, structures_to_ask
from samcorrect.lib.loop.cohort import Cohort, draw_masks
from samcorrect.lib.loop.frame_candidates import CohortCandidates
from samcorrect.lib.loop.promotion import hold_out_cases
from samcorrect.lib.loop.pseudo_label import MAKER
from samcorrect.lib.loop.students import Pair, out_of_fold_probs, split_cases, teachers_of, trusted_only
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress

STAGE_CHOOSE_AGAIN = "comparing with the students"
# Between the seeds of the two pairs; less than `students.SEED_STRIDE`, by which correction counts.
SECOND_PAIR_OFFSET = 100


@dataclass(frozen=True)
class Peers:
    """What the peers of n images and K structures say.

    Attributes:
        probs: (N, K + 1, side, side) out of fold: the mean of both pairs.
        nearest: (n, K) the candidate that agrees best with the students; -1 where an image has none.
        chosen: (n, K) the candidate to take now: the nearest where the students are a judge of the structure and it
            keeps the edges of the one taken before there were students, else that one; -1 where an image has none.
        is_judge: (K,) bool: the students see the structure in at least half of the images whose labels show it, and
            agree better with the nearest candidate than SAM's prompts agree with each other, in the mean over the
            images, or SAM's confidence is not believed, or there are no prompts.
        is_believed: (K,) bool, `core.pseudo_label.is_confidence_believed`.
        pairs: The students of both pairs.
        is_asked: (K,) bool, the structures about which SAM was asked with the boxes of both pairs.
        asked: What it took; None where it was asked about none.
    """

    probs: torch.Tensor
    nearest: np.ndarray
    chosen: np.ndarray
    is_judge: np.ndarray
    is_believed: np.ndarray
    pairs: tuple[Pair, ...] = ()
    is_asked: np.ndarray | None = None
    asked: AskedMasks | None = None


def learn_peers(
    workspace: Workspace,
    cohort: Cohort,
    candidates: CohortCandidates,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Peers:
    """Train both pairs of students on two folds by patient, let each predict the other's fold, and ask SAM with the
    boxes of what they know."""
    taught, is_held_out = replace(cohort, targets=_first_targets(cohort, candidates)), hold_out_cases(workspace, cohort)
    first, first_pair = out_of_fold_probs(workspace, taught, seed=seed, is_held_out=is_held_out, progress=progress)
    chosen = compare_with_peers(taught, candidates, first, progress).chosen
    taught, agreement = _second_targets(taught, candidates, first, chosen)
    untrusted = np.zeros(agreement.shape, bool)
    # The median of the labels that are not empty: an empty one agrees by 1 or 0.
    of_present = np.ma.array(agreement, mask=taught.is_empty)
    for fold in split_cases([image.case_id for image in cohort.images], seed=seed):
        teachers = teachers_of(fold, is_held_out)
        untrusted[teachers] = agreement[teachers] < np.ma.filled(np.ma.median(of_present[teachers], 0), 1.0)
    untrusted &= ~cohort.is_approved[:, None]
    sampling, weights = trusted_only(taught, first, untrusted)
    probs, second_pair = out_of_fold_probs(
        workspace,
        taught,
        seed=seed,
        seed_offset=SECOND_PAIR_OFFSET,
        name="second out-of-fold student",
        sampling=sampling,
        weights=weights,
        mean_with=first,
        is_held_out=is_held_out,
        progress=progress,
    )
    peers = compare_with_peers(taught, candidates, probs, progress)
    is_asked = peers.is_judge & workspace.settings.has_module("ask_again")
    if is_asked.any():
        is_asked &= structures_to_ask(cohort, probs)
    asked = ask_cohort(workspace, cohort, probs, is_asked, progress=progress)
    return replace(peers, pairs=(first_pair, second_pair), is_asked=is_asked, asked=asked)


def _first_targets(cohort: Cohort, candidates: CohortCandidates) -> torch.Tensor:
    """The cohort's targets, with SAM's chosen candidates in place of the labels that SAM made, from whatever prompt."""
    targets = cohort.scratch.copy(cohort.targets)
    for number, found in enumerate(candidates):
        if found is not None and cohort.labels[number].maker.startswith(MAKER):
            targets[cohort.spans[number]] = draw_masks([of.masks[of.first] for of in found])
    return targets


def compare_with_peers(
    cohort: Cohort, candidates: CohortCandidates, probs: torch.Tensor, progress: Progress = no_progress
) -> Peers:
    """What students with such probabilities choose, and whether they may."""
    shape = (len(cohort), cohort.n_structures)
    nearest, first = np.full(shape, -1), np.full(shape, -1)
    loses, sees = np.zeros(shape, bool), np.zeros(shape, bool)
    with_peer, among_prompts, confirmed = (np.full(shape, np.nan) for _ in range(3))
    for number, found in enumerate(candidates):
        channels, frames = probs[cohort.spans[number]].argmax(1), cohort.content(number)
        for k in range(cohort.n_structures):
            peer = (channels == k + 1).numpy()
            sees[number, k] = peer.any()
            if found is None:
                continue
            masks = found[k].masks
            nearest[number, k], first[number, k] = choose_by_peer(masks, peer), found[k].first
            if nearest[number, k] != first[number, k]:
                loses[number, k] = loses_edges(masks[first[number, k]], masks[nearest[number, k]], frames)
            with_peer[number, k] = dice(masks[nearest[number, k]], peer)
            among_prompts[number, k] = prompt_agreement(pairwise_dice(masks))
            confirmed[number, k] = found[k].confidence_agreement
        progress(STAGE_CHOOSE_AGAIN, number + 1, len(cohort))
    is_believed = np.array([is_confidence_believed(of) for of in confirmed.T])
    is_judge = ~is_believed | [_know_more(*of) for of in zip(with_peer.T, among_prompts.T, strict=True)]
    # Those who see nothing in most of the images whose labels show something say nothing of these.
    is_shown = ~cohort.is_empty
    is_judge &= 2 * (sees & is_shown).sum(0) >= is_shown.sum(0)
    return Peers(probs, nearest, np.where(is_judge & ~loses, nearest, first), is_judge, is_believed)


def _know_more(with_peer: np.ndarray, among_prompts: np.ndarray) -> bool:
    """Whether students know a structure better than SAM's prompts do, from (n,) values of the images.

    Image by image and in the mean: students who miss a structure altogether in a few images are no judge of it, however
    well they do in the others.
    """
    gained = with_peer - among_prompts
    return bool(np.isnan(gained).all() or np.nanmean(gained) > 0)


def _second_targets(
    cohort: Cohort, candidates: CohortCandidates, probs: torch.Tensor, chosen: np.ndarray
) -> tuple[Cohort, np.ndarray]:
    """The cohort with what teaches the second pair, and its (n, K) agreement with the first."""
    targets, agreement = cohort.scratch.copy(cohort.targets), np.zeros(chosen.shape)
    for number, found in enumerate(candidates):
        span, teachers = cohort.spans[number], []
        channels = probs[span].argmax(1)
        for k in range(cohort.n_structures):
            teacher, peer = cohort.mask(number, k + 1), (channels == k + 1).numpy()
            agreement[number, k] = judge_mask(teacher, peer)
            if found is not None and not cohort.is_approved[number]:
                mask = found[k].masks[chosen[number, k]]
                score = judge_mask(mask, peer)
                if score > agreement[number, k]:
                    teacher, agreement[number, k] = mask, score
            teachers.append(teacher)
        targets[span] = draw_masks(teachers)
    return replace(cohort, targets=targets), agreement
