"""Stage 3: better labels for those that are judged low."""

from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from samcorrect.lib.core.correction import (
    HUANG_PASSES,
    Choice,
    choose_correction,
    huang_correct,
    signed_distance_blend,
)
from samcorrect.lib.core.pseudo_label import merge_structures
from samcorrect.lib.core.reweighting import below_better_half
from samcorrect.lib.errors import ImageError, LabelError
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort
from samcorrect.lib.loop.corrected_labels import Correction, known_ceiling, save_correction
from samcorrect.lib.loop.promotion import hold_out_cases
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.loop.scoring import Scores, score_cohort, write_scores
from samcorrect.lib.loop.second_choice import SecondChoice, choose_again, usual_areas, with_choices
from samcorrect.lib.loop.side_by_side import train_side_by_side
from samcorrect.lib.loop.students import SEED_STRIDE, predict_cohort, train_on, trusted_only
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.student import predict_frames, with_dropout_on
from samcorrect.lib.transforms.frame import from_frame

STAGE_CORRECT = "correcting labels"
N_CORRECTORS = 2
# The correctors learn from the better part of the labels of each structure alone.
UNTRUSTED_SHARE = 0.5
STUDENT = "prediction of the student"
# Peers that agree less than this with the labels that are trusted have not learnt a structure and may not judge it.
MIN_JUDGE_DICE = 0.5


def correct_store(workspace: Workspace, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Score the best labels, choose again among SAM's prompts, correct what is low and, where any changed, score again.

    Returns:
        The counts of `count_corrections`.
    """
    cohort = load_cohort(workspace, best_labels(workspace), progress=progress)
    scores = score_cohort(workspace, cohort, seed=workspace.settings.seed, progress=progress)
    write_scores(workspace, cohort, scores)
    known = known_ceiling(workspace, cohort)
    flagged = flag_labels(workspace, cohort, scores, ceiling=known)
    ceiling = [new if old is None else old for old, new in zip(known, flag_ceiling(scores, flagged), strict=True)]
    changed = set()
    corrections = correct_cohort(workspace, cohort, scores, flagged, seed=workspace.settings.seed, progress=progress)
    for number, correction in corrections:
        made_in = {"ceiling": ceiling, "run_id": None, "round_number": 0}
        if save_correction(workspace, cohort, number, correction, **made_in):
            changed.add(number)
    if changed:
        # The peers that chose a correction are no judges of it.
        score_store(workspace, full=True, progress=progress)
    return count_corrections(flagged_images(flagged), changed)


def count_corrections(flagged: Set[Hashable], changed: Set[Hashable]) -> dict[str, int]:
    """How many images are `n_flagged`, how many of these `n_corrected`, and in how many others (`n_chosen_again`) the
    mask of another prompt was taken.
    """
    n_corrected = len(flagged & changed)
    return {"n_flagged": len(flagged), "n_corrected": n_corrected, "n_chosen_again": len(changed) - n_corrected}


def flagged_images(flagged: np.ndarray) -> set[int]:
    """The numbers of the images of which (n, K) bool flags a structure."""
    return set(np.flatnonzero(flagged.any(1)).tolist())


def flag_labels(
    workspace: Workspace, cohort: Cohort, scores: Scores, *, ceiling: Sequence[float | None] | None = None
) -> np.ndarray:
    """Which structures of which images are open to correction.

    huang2023 takes the worst images, a share of `huang_noise_rate` (arXiv 2308.00883: 75%). Ours takes, for each
    structure, those that are more likely of the bad population than of the good one, or, where the scores of the first
    round are one population, those that lie far below the better half; approved labels are never taken, nor
    structures of which the boxes file says that they are not in the image.

    Args:
        workspace: Its preset decides.
        cohort: The labels.
        scores: Of the labels.
        ceiling: `flag_ceiling` of the first round, for ours; None, or None for a structure, where there was none. What
            was good enough there is not bad in a later round.
            After a correction, the corrected labels and those that SAM made are two populations too, of one quality,
            and the score ranks what is left much less well.

    Returns:
        (n, K) bool.
    """
    values, of_present = scores.structure_scores, _of_present(cohort, scores)
    if workspace.settings.preset == "huang2023":
        is_low = _worst(scores.scores, workspace.settings.huang_noise_rate)[:, None] & np.isfinite(values)
    else:
        is_low = scores.posterior < 0.5
        for k, line in enumerate(ceiling or [None] * cohort.n_structures):
            if line is not None:
                is_low[:, k] &= values[:, k] <= line
            elif not is_low[:, k].any():
                is_low[:, k] = below_better_half(of_present[:, k])
    return is_low & ~cohort.is_approved[:, None] & ~cohort.is_absent


def flag_ceiling(scores: Scores, flagged: np.ndarray) -> list[float]:
    """The highest score that was flagged, for each structure; -1 where none was."""
    values = np.where(flagged & np.isfinite(scores.structure_scores), scores.structure_scores, -1.0)
    return [round(float(v), 6) for v in values.max(0)]


def correct_cohort(
    workspace: Workspace,
    cohort: Cohort,
    scores: Scores,
    flagged: np.ndarray,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Iterator[tuple[int, Correction]]:
    """Corrections by the preset: image numbers with their correction, one by one, only where something changed.

    Ours changes only structures that the students know better than SAM's prompts agree on them. It first takes another
    mask of SAM where students agree better with it: the one that they choose for what is flagged, and for all labels of
    a structure that is doubtful as a whole; of good labels they know less than SAM does, and offer what it takes itself
    when asked with their box. Students of the labels that are trusted then correct what is flagged.
    """
    if workspace.settings.preset == "huang2023":
        yield from _correct_by_uncertainty(cohort, scores, flagged, seed=seed, progress=progress)
        return
    if scores.peers is None or not workspace.settings.has_module("correct"):
        return
    untrusted = flagged | _worse_half(cohort, scores)
    has_judge = scores.peers.is_judge & _has_judge(scores, untrusted)
    judged = flagged & has_judge
    is_doubtful = np.array([bool(told) for told in scores.doubts])
    is_known = has_judge & ~cohort.is_approved[:, None] & ~cohort.is_absent
    is_open = (judged | is_doubtful) & is_known
    if not is_known.any():
        return
    taken = choose_again(workspace, cohort, scores.peers, is_open, is_known, ~untrusted, progress=progress)
    cohort = with_choices(cohort, taken)
    probs = (
        _corrector_probs(workspace, cohort, scores, untrusted, seed=seed, progress=progress) if judged.any() else None
    )
    areas = usual_areas(cohort, ~untrusted)
    numbers = sorted({*taken, *(flagged_images(judged) if probs is not None else ())})
    for done, number in enumerate(numbers):
        choices: dict[int, Choice | SecondChoice] = dict(taken.get(number, {}))
        for k in map(int, np.flatnonzero(judged[number])) if probs is not None else ():
            choice = _choose(cohort, scores, probs, number, k, area_range=areas[k])
            if choice.is_changed or k not in choices:
                before = choices[k].score_before if k in choices else choice.score_before
                choices[k] = replace(choice, score_before=before)
        correction = _on_grid(workspace, cohort, number, choices)
        if correction is not None:
            yield number, correction
        progress(STAGE_CORRECT, done + 1, len(numbers))


def _corrector_probs(
    workspace: Workspace, cohort: Cohort, scores: Scores, untrusted: np.ndarray, *, seed: int, progress: Progress
) -> torch.Tensor | None:
    """(N, K + 1, side, side) of students of the labels that are trusted; None where these are too few."""
    sampling, weights = trusted_only(cohort, scores.peer_probs, untrusted)
    sampling[hold_out_cases(workspace, cohort)] = 0
    if (sampling > 0).sum() < 2:
        return None
    jobs = [
        partial(
            train_on,
            workspace,
            cohort,
            np.flatnonzero(sampling > 0),
            name=f"corrector {number + 1}",
            seed=seed + SEED_STRIDE * (number + 1),
            sampling=sampling,
            weights=weights,
        )
        for number in range(N_CORRECTORS)
    ]
    correctors = train_side_by_side(workspace.settings, jobs, name="correctors", progress=progress)
    return predict_cohort(correctors, cohort)


def _worse_half(cohort: Cohort, scores: Scores) -> np.ndarray:
    """(n, K) bool: labels that score below the median of their structure and do not teach the correctors."""
    values = _of_present(cohort, scores)
    halves = np.stack([_worst(values[:, k], UNTRUSTED_SHARE) for k in range(values.shape[1])], 1)
    return halves & ~cohort.is_approved[:, None]


def _of_present(cohort: Cohort, scores: Scores) -> np.ndarray:
    """(n, K) scores; nan where the label is empty, since what agrees with that scores above every label that is not."""
    return np.where(cohort.is_empty, np.nan, scores.structure_scores)


def _has_judge(scores: Scores, untrusted: np.ndarray) -> np.ndarray:
    """(K,) bool: the out-of-fold peers know the structure well enough to judge corrections of it."""
    agreements = [of_structure["present_peer_dice"][~untrusted[:, k]] for k, of_structure in enumerate(scores.features)]
    return np.array([bool(np.isfinite(a).any()) and np.nanmedian(a) >= MIN_JUDGE_DICE for a in agreements])


def disputed_pixels(cohort: Cohort, peer_probs: torch.Tensor, flagged: np.ndarray) -> torch.Tensor:
    """Where the labels of flagged structures and the judge still differ: there no training should guess.

    Args:
        cohort: The labels after a correction.
        peer_probs: (N, K + 1, side, side) of the judge.
        flagged: (n, K) bool.

    Returns:
        (N, side, side) bool.
    """
    disputed = cohort.scratch.zeros(*cohort.targets.shape, dtype=torch.bool)
    for number, k in np.argwhere(flagged):
        span = cohort.spans[number]
        disputed[span] |= (cohort.targets[span] == k + 1) != (peer_probs[span].argmax(1) == k + 1)
    return disputed


def _choose(
    cohort: Cohort, scores: Scores, probs: torch.Tensor, number: int, k: int, *, area_range: tuple[float, float]
) -> Choice:
    """What the judge takes for one structure of an image: its label, the correctors' prediction, or what is between."""
    span = cohort.spans[number]
    old, prediction = cohort.mask(number, k + 1), (probs[span].argmax(1) == k + 1).numpy()
    candidates = {
        "prediction of the correctors": probs[span, k + 1].numpy()
        if prediction.any()
        else np.zeros_like(old, np.float32),
        "half way between label and prediction": signed_distance_blend(old, prediction),
    }
    judge = (scores.peer_probs[span].argmax(1) == k + 1).numpy()
    return choose_correction(old, candidates, judge, area_range=area_range, frames=cohort.content(number))


def _on_grid(
    workspace: Workspace, cohort: Cohort, number: int, choices: dict[int, Choice | SecondChoice]
) -> Correction | None:
    """The correction of an image by what was chosen; None where nothing changes or the image is gone meanwhile."""
    label = cohort.labels[number]
    if not any(choice.is_changed for choice in choices.values()):
        return None
    try:
        volume = workspace.store.read_image(label.image_id)
        before = workspace.store.read_label(label, volume)
    except (ImageError, LabelError):
        return None
    shape_hw = volume.array.shape[:2]
    soft, reasons = [], []
    for k, (name, index) in enumerate(zip(cohort.config.names, cohort.config.indices, strict=True)):
        choice = choices.get(k)
        if choice is None or not choice.is_changed:
            soft.append(before == index)
            continue
        on_grid = from_frame(torch.from_numpy(choice.soft), shape_hw).permute(1, 2, 0).numpy()
        # SAM's mask claims all of it alike, as the labels that stay do; students are less sure at their outlines.
        soft.append(on_grid > 0.5 if isinstance(choice, SecondChoice) else on_grid)
        reasons.append(f"{name}: {choice.name} (judge {choice.score_before:.2f} to {choice.score_after:.2f})")
    label_map = merge_structures(soft, cohort.config.indices)
    change_map = (label_map != before).astype(np.uint8)
    judged = list(choices.values())
    score_before, score_after = (
        float(np.mean([getattr(c, a) for c in judged])) for a in ("score_before", "score_after")
    )
    changes = {k: choice for k, choice in choices.items() if choice.is_changed}
    return Correction(label_map, change_map, reasons, score_before, score_after, changes)


def _correct_by_uncertainty(
    cohort: Cohort, scores: Scores, flagged: np.ndarray, *, seed: int, progress: Progress
) -> Iterator[tuple[int, Correction]]:
    probs = scores.peer_probs
    network = with_dropout_on(scores.trained.network)
    numbers = np.flatnonzero(flagged.any(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for done, number in enumerate(numbers):
            span = cohort.spans[number]
            passes = torch.stack(
                [predict_frames(network, cohort.frames[span]).argmax(1) for _ in range(HUANG_PASSES)]
            ).numpy()
            old = cohort.targets[span].numpy()
            new = huang_correct(old, probs[span].argmax(1).numpy(), passes)
            new = np.where(np.isin(new, np.flatnonzero(cohort.is_absent[number]) + 1), old, new)
            if (new != old).any():
                yield int(number), _huang_on_grid(cohort, int(number), old, new)
            progress(STAGE_CORRECT, done + 1, len(numbers))


def _huang_on_grid(cohort: Cohort, number: int, old: np.ndarray, new: np.ndarray) -> Correction:
    shape_hw = cohort.shapes[number][:2]

    def on_grid(channels: np.ndarray) -> np.ndarray:
        masks = [
            from_frame(torch.from_numpy((channels == k + 1).astype(np.float32)), shape_hw)
            for k in range(cohort.n_structures)
        ]
        return merge_structures(torch.stack(masks).permute(0, 2, 3, 1).numpy(), cohort.config.indices)

    label_map = on_grid(new)
    change_map = (label_map != on_grid(old)).astype(np.uint8)
    nan, share = float("nan"), float((new != old).mean())
    changes = {
        k: Choice(STUDENT, (new == k + 1).astype(np.float32), nan, nan)
        for k in range(cohort.n_structures)
        if ((new == k + 1) != (old == k + 1)).any()
    }
    return Correction(label_map, change_map, [f"{share:.1%} of the pixels follow the student"], nan, nan, changes)


def _worst(values: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the lowest `share` of the defined values."""
    worst = np.zeros(len(values), bool)
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")[
        : round(share * np.isfinite(values).sum())
    ]
    worst[order] = True
    return worst
