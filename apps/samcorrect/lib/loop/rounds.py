"""A run of the loop: pseudo-label once, then rounds of score, correct and retrain, each step a checkpoint."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from samcorrect import __version__
from samcorrect.lib.core.metrics import rounded
from samcorrect.lib.errors import ImageError, LabelError
from samcorrect.lib.loop.audit import audit_start
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort
from samcorrect.lib.loop.corrected_labels import save_correction
from samcorrect.lib.loop.correction import (
    correct_cohort,
    count_corrections,
    disputed_pixels,
    flag_ceiling,
    flag_labels,
    flagged_images,
)
from samcorrect.lib.loop.peer_context import KEY_SETTINGS
from samcorrect.lib.loop.progress import STAGE_STOPPED
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.retraining import retrain
from samcorrect.lib.loop.scoring import Scores, score_cohort, write_scores
from samcorrect.lib.loop.students import trusted_only
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.runtimes import has_fast_bf16
from samcorrect.lib.store.records.labels import RESTORED_BY
from samcorrect.lib.store.schema import TAG_CORRECTED, TAG_FINAL, TAG_ORIGINAL, LabelVersionRow, RunRow
from samcorrect.lib.transforms.frame import labels_to_frame

logger = logging.getLogger(__name__)

# Settings that change the result of a run; where its files lie and how the queue works do not.
RESULT_SETTINGS = (
    *KEY_SETTINGS,
    "student_steps",
    "judge_steps",
    "rounds",
    "train_on",
    "student_start",
    "huang_noise_rate",
)
# Two trainings of one recipe differ by about this much; a mean score that rises by less has stopped to improve.
MIN_SCORE_GAIN = 0.005
# Seeds of runs and of the rounds in them are this far apart; a round uses less than the second.
RUN_SEED_STRIDE, ROUND_SEED_STRIDE = 1_000_000, 20_000


@dataclass
class RunResult:
    """What a run left behind.

    Attributes:
        run_id: Its number in the ledger.
        rounds: A dict a round: round, counts of corrections, mean_score, scores, flagged, student (see `retraining`).
        labels_first: Image id to the label before the first round.
        labels_last: Image id to the label after the last.
        final_scores: Image id to the score of its last label, or None.
        seconds: Stage to seconds spent in this process.
        stop_reason: Why it ended before its last round; None where it did not.
    """

    run_id: int
    rounds: list[dict[str, Any]] = field(default_factory=list)
    labels_first: dict[str, LabelVersionRow] = field(default_factory=dict)
    labels_last: dict[str, LabelVersionRow] = field(default_factory=dict)
    final_scores: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stop_reason: str | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - started, 2)


def run_loop(workspace: Workspace, *, progress: Progress = no_progress) -> RunResult:
    """Run or resume the loop.

    A killed run resumes where it was: pseudo-labels and corrections are kept image by image, trainings whole. A
    finished run of the same settings, images, approvals and rejections is only read again: the labels that it ended
    with are the best again, and the student in use stays; where it is another, the log says so. Another version of
    samcorrect begins a new run, so that no run holds rounds of two. A run starts from the original labels and the
    approvals it saw at its start, so its result does not depend on earlier runs. What a person rejects while it runs
    teaches nothing from then on; from the next round on the label before takes its place. It ends before its last round
    where another promises nothing, see `stop_reason`.

    Args:
        workspace: With a protocol.
        progress: Told about every stage.

    Raises:
        StoreError, ProtocolError, LabelError: As the stages.
    """
    workspace.store.rescan()
    seconds = RunResult(0)
    with seconds.timed("pseudo-label"):
        pseudo_label_store(workspace, progress=progress)
    run = _open_run(workspace)
    result = RunResult(run.id, seconds=seconds.seconds)
    result.labels_first = {i: workspace.store.ledger.label_version(v) for i, v in run.snapshot["labels"].items()}
    cohort: Cohort | None = None
    for number in range(1, workspace.settings.rounds + 1):
        told = run.progress.get(str(number))
        if told is None:
            cohort = _with_labels(workspace, cohort, _labels_after(workspace, result, number - 1), progress)
            told = _run_round(workspace, cohort, result, number, progress)
            workspace.store.ledger.update_run(run.id, progress={str(number): told})
        result.rounds.append(told)
        result.stop_reason = stop_reason(result.rounds, workspace.settings.rounds)
        if result.stop_reason is not None:
            progress(f"{STAGE_STOPPED} {number} of {workspace.settings.rounds}: {result.stop_reason}", 1, 1)
            break
    _end_run(workspace, result, cohort, progress)
    _warn_of_another_student(workspace, result)
    return result


def stop_reason(rounds: Sequence[Mapping[str, Any]], n_rounds: int) -> str | None:
    """Why a run of at most `n_rounds` ends after the rounds it has done, which alone decide; None where it goes on.

    No ground truth is asked: a round that accepted no correction leaves the labels as they are, and where the mean
    score no longer rises, corrections make no labels that students of other images agree with more.
    """
    if len(rounds) >= n_rounds:
        return None
    last = rounds[-1]
    if not last["n_corrected"] + last.get("n_chosen_again", 0):
        return f"no correction was accepted in round {last['round']}"
    before, after = rounds[-2]["mean_score"] if len(rounds) > 1 else None, last["mean_score"]
    if before is not None and after is not None and after < before + MIN_SCORE_GAIN:
        return f"the mean score went from {before:.3f} to {after:.3f}, and a gain of {MIN_SCORE_GAIN} was wanted"
    return None


def _run_round(
    workspace: Workspace, cohort: Cohort, result: RunResult, number: int, progress: Progress
) -> dict[str, Any]:
    seed = _round_seed(workspace, number)

    def of_round(stage: str, done: int, total: int) -> None:
        progress(f"round {number}: {stage}", done, total)

    with result.timed("score"):
        scores = score_cohort(workspace, cohort, seed=seed, progress=of_round)
        write_scores(workspace, cohort, scores)
        ceiling = result.rounds[0]["flag_ceiling"] if result.rounds else None
        flagged = flag_labels(workspace, cohort, scores, ceiling=ceiling)
        told_ceiling = flag_ceiling(scores, flagged)
    with result.timed("correct"):
        judged: dict[int, dict[int, float]] = {}
        corrections = correct_cohort(workspace, cohort, scores, flagged, seed=seed, progress=of_round)
        for image_number, correction in corrections:
            judged[image_number] = {k: choice.score_after for k, choice in correction.changes.items()}
            image_id = cohort.images[image_number].id
            if workspace.store.ledger.run_label(image_id, TAG_CORRECTED, result.run_id, number) is None:
                made_in = {"ceiling": ceiling or told_ceiling, "run_id": result.run_id, "round_number": number}
                save_correction(workspace, cohort, image_number, correction, **made_in)
        # What a person has rejected, before it was made or since, is no correction.
        made = workspace.store.ledger.run_labels(TAG_CORRECTED, result.run_id, number)
        judged = {n: changes for n, changes in judged.items() if cohort.images[n].id in made}
    with result.timed("retrain"):
        student = _retrain_round(workspace, cohort, scores, flagged, judged, result.run_id, number, of_round)
    logger.info("round %d: %d flagged, %d corrected", number, int(flagged.any(1).sum()), len(judged))
    return {
        "round": number,
        **count_corrections(flagged_images(flagged), judged.keys()),
        "flag_ceiling": told_ceiling,
        "mean_score": rounded(float(np.nanmean(scores.scores))) if np.isfinite(scores.scores).any() else None,
        "scores": {row.id: rounded(s) for row, s in zip(cohort.images, scores.scores, strict=True)},
        "structure_scores": {
            row.id: [rounded(v) for v in s] for row, s in zip(cohort.images, scores.structure_scores, strict=True)
        },
        "flagged": {row.id: f.tolist() for row, f in zip(cohort.images, flagged, strict=True) if f.any()},
        "corrected": sorted(cohort.images[n].id for n in judged),
        "student": student,
        # Students of other threads or another precision differ in their last digits.
        "arithmetic": {"threads": torch.get_num_threads(), "is_bf16": has_fast_bf16()},
    }


def _retrain_round(
    workspace: Workspace,
    cohort: Cohort,
    scores: Scores,
    flagged: np.ndarray,
    judged: Mapping[int, Mapping[int, float]],
    run_id: int,
    number: int,
    progress: Progress,
) -> dict[str, Any]:
    labels = {row.id: label for row, label in zip(cohort.images, cohort.labels, strict=True)}
    labels |= workspace.store.ledger.run_labels(TAG_CORRECTED, run_id, number)
    updated = _relabelled(workspace, cohort, labels)
    weights: torch.Tensor | None = None
    posterior = np.ones(scores.posterior.shape)
    if workspace.settings.preset == "samcorrect":
        posterior = posterior_after(scores, flagged, judged)
        _, weights = trusted_only(cohort, scores.peer_probs, flagged & (posterior < 0.5))
        if scores.peer_probs is not None:
            is_corrected = np.isin(np.arange(len(cohort)), list(judged))
            weights[disputed_pixels(updated, scores.peer_probs, flagged & is_corrected[:, None])] = 0
    # Every round, and every arm of a comparison, trains its student from the same seed.
    seed = workspace.settings.seed
    given = {"seed": seed, "round_number": number, "run_id": run_id, "progress": progress}
    return retrain(workspace, updated, posterior, weights, ~flagged, **given)


def posterior_after(scores: Scores, flagged: np.ndarray, judged: Mapping[int, Mapping[int, float]]) -> np.ndarray:
    """(n, K) of being good, of the labels after a correction: 1 where none was flagged, the judge's score where a mask
    was replaced (`judged`: image number to structure number to score), and what it was where the flagged mask is still
    there.
    """
    posterior = np.where(flagged, np.nan_to_num(scores.posterior), 1.0)
    for number, of_image in judged.items():
        for k, score in of_image.items():
            posterior[number, k] = score if flagged[number, k] else 1.0
    return posterior


def _end_run(workspace: Workspace, result: RunResult, cohort: Cohort | None, progress: Progress) -> None:
    """Make the labels that a run ends with the best and score them; where a finished one is read again only if others
    have become the best since.
    """
    store, n_rounds = workspace.store, len(result.rounds)
    before, scored = best_labels(workspace), store.ledger.scored_labels()
    # What another run left behind does not outrank what this run ends with; what a person went back to since does.
    labels = {
        i: before[i] if i in before and _is_restored_since(before[i], label) else store.make_best(label)
        for i, label in _labels_after(workspace, result, n_rounds).items()
    }
    last = store.ledger.run(result.run_id).progress.get("final_scores")
    here = [] if last is None else [i for i in labels if i in last and i in before]
    if last is None or any(before[i].id != labels[i].id or labels[i].id not in scored for i in here):
        cohort = _with_labels(workspace, cohort, labels, progress)
        with result.timed("score"):
            scores = score_cohort(workspace, cohort, seed=_round_seed(workspace, n_rounds + 1), progress=progress)
            write_scores(workspace, cohort, scores)
        last = {row.id: rounded(s) for row, s in zip(cohort.images, scores.scores, strict=True)}
        ended = {"final_scores": last, "stop_reason": result.stop_reason}
        store.ledger.update_run(result.run_id, progress=ended, is_finished=True)
    result.final_scores = last
    # An image that could not be read any more was set aside on the way.
    result.labels_first = {i: label for i, label in result.labels_first.items() if i in last}
    result.labels_last = {i: label for i, label in labels.items() if i in last}


def _is_restored_since(best: LabelVersionRow, label: LabelVersionRow) -> bool:
    """Whether a person made an older version the best after another version was made."""
    return RESTORED_BY in best.info and best.id > label.id


def _warn_of_another_student(workspace: Workspace, result: RunResult) -> None:
    """Say in the log where the last student that a run promoted is not in use; the gate or a person chose the other."""
    students = (told["student"] for told in result.rounds)
    promoted = [student["digest"][:12] for student in students if student.get("status") == "promoted"]
    current = workspace.store.ledger.promoted_model()
    if promoted and current is not None and not current.digest.startswith(promoted[-1]):
        told = (result.run_id, promoted[-1], current.digest[:12])
        logger.warning("run %d promoted the student %s, but %s, which took its place, stays in use", *told)


def _open_run(workspace: Workspace) -> RunRow:
    settings, ledger = workspace.settings, workspace.store.ledger
    config = {key: getattr(settings, key) for key in RESULT_SETTINGS}
    config |= {
        "samcorrect": __version__,
        "protocol": workspace.require_protocol().digest,
        "sam": workspace.sam.digest,
        "runtime": workspace.sam.runtime,
    }
    latest = ledger.latest_labels()
    start = {row.id: latest.get((row.id, TAG_FINAL)) or latest.get((row.id, TAG_ORIGINAL)) for row in ledger.images()}
    found = {image_id: label for image_id, label in start.items() if label is not None}
    if not found:
        faults = ledger.quarantined()
        if not faults:
            raise LabelError("every label was rejected; submit or import others, or try another prompt or SAM model")
        raise ImageError(f"none of the {len(faults)} image(s) can be used; the first fault: {faults[0][1]}")
    labels = {image_id: label.id for image_id, label in found.items()}
    # A label that a person approved as it is has the same content and another weight.
    contents = {image_id: [label.content_sha256, label.tag == TAG_FINAL] for image_id, label in found.items()}
    rejected = sorted([label.image_id, label.content_sha256] for label in ledger.rejected_labels())
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([contents, rejected], sort_keys=True).encode()).hexdigest()
    run, is_known = ledger.open_run(digest, config, {"key": key, "labels": labels})
    if is_known:
        logger.info("run %d goes on (%s)", run.id, "finished" if run.is_finished else "unfinished")
    else:
        audit_start(workspace, f"loop, run {run.id}")
    return run


def _labels_after(workspace: Workspace, result: RunResult, n_rounds: int) -> dict[str, LabelVersionRow]:
    """Image id to its label after some rounds, without those that are rejected by now."""
    ledger = workspace.store.ledger
    labels = dict(result.labels_first)
    for number in range(1, n_rounds + 1):
        labels |= ledger.run_labels(TAG_CORRECTED, result.run_id, number)
    rejected = {label.id for label in ledger.rejected_labels()}
    return {image_id: label for image_id, label in labels.items() if label.id not in rejected}


def _with_labels(
    workspace: Workspace, cohort: Cohort | None, labels: dict[str, LabelVersionRow], progress: Progress
) -> Cohort:
    """The cohort with other labels; only what changed is read, unless an image has none any more or was set aside."""
    usable = labels.keys() & set(workspace.store.ledger.image_ids())
    if cohort is None or any(row.id not in usable for row in cohort.images):
        return load_cohort(workspace, labels, progress=progress)
    return _relabelled(workspace, cohort, labels)


def _relabelled(workspace: Workspace, cohort: Cohort, labels: dict[str, LabelVersionRow]) -> Cohort:
    """The images of a cohort with other labels."""
    targets, used = cohort.scratch.copy(cohort.targets), list(cohort.labels)
    for number, row in enumerate(cohort.images):
        label = labels[row.id]
        if label.id != used[number].id:
            label_map = workspace.store.read_label(label)
            targets[cohort.spans[number]] = labels_to_frame(label_map, cohort.config.indices, cohort.config.side_px)
            used[number] = label
    return replace(cohort, targets=targets, labels=used)


def _round_seed(workspace: Workspace, number: int) -> int:
    return workspace.settings.seed * RUN_SEED_STRIDE + number * ROUND_SEED_STRIDE
