"""Stage 4: a student on the corrected, weighted labels, promoted only if it is not worse."""

import hashlib
import time
from typing import Any

import numpy as np
import torch

from samcorrect.lib.core.metrics import dice
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort, standing
from samcorrect.lib.loop.students import SEED_STRIDE, Trained, train_on
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.student import Student, predict_frames
from samcorrect.lib.store.schema import MODEL_CANDIDATE, ModelRow

# A label of the bad population still shows what an image looks like, but teaches little.
MIN_SAMPLING = 0.1
# With so many approved labels the gate compares on those; before, on trusted machine labels, and the promotion is
# provisional.
MIN_APPROVED_FOR_GATE = 10
# Two trainings of one recipe differ by about this much; less is no reason to refuse.
GATE_TOLERANCE = 0.005
# Below this a training has collapsed or not begun to learn; no viewer should be offered its masks.
MIN_GATE_DICE = 0.1


def train_student(
    workspace: Workspace, *, progress: Progress = no_progress, steps: int | None = None
) -> dict[str, Any]:
    """Train a student on the best labels, weighted by their stored quality, and promote or refuse it.

    Args:
        workspace: With a protocol.
        progress: Told about each step.
        steps: Instead of the setting `student_steps`.

    Returns:
        `digest`, `status` (promoted or refused), `is_provisional`, `dice`, `dice_before`, `reason`, `losses`.

    Raises:
        LabelError: There are no labels, or none that the setting `train_on` admits.
    """
    if steps is not None:
        workspace = workspace.with_settings(student_steps=steps)
    cohort = load_cohort(workspace, best_labels(workspace), progress=progress)
    posterior = np.ones((len(cohort), cohort.n_structures))
    for number, label in enumerate(cohort.labels):
        quality = workspace.store.ledger.quality(label.id)
        for k, index in enumerate(cohort.config.indices):
            if index in quality and quality[index].posterior_good is not None and not cohort.is_approved[number]:
                posterior[number, k] = quality[index].posterior_good
    return retrain(workspace, cohort, posterior, None, seed=workspace.settings.seed, round_number=0, progress=progress)


def retrain(
    workspace: Workspace,
    cohort: Cohort,
    posterior: np.ndarray,
    weights: torch.Tensor | None,
    *,
    seed: int,
    round_number: int,
    run_id: int | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train on those labels of a cohort that the setting `train_on` admits, weighted by the posterior of being good,
    and let the gate decide. Returns as `train_student`. Raises LabelError where it admits none.
    """
    learnt, held_out = gate_split(cohort)
    admitted = workspace.settings.states_to_train_on
    learnt = learnt[[cohort.labels[number].state in admitted for number in learnt]]
    if not len(learnt):
        raise LabelError(
            f"no label has one of the states {', '.join(admitted)} that the student may learn from; make or approve "
            "some, or let it learn from others with the setting train_on"
        )
    sampling = np.clip(np.nan_to_num(posterior, nan=MIN_SAMPLING).mean(1), MIN_SAMPLING, 1.0)
    trained = train_on(
        workspace,
        cohort,
        learnt,
        name="student",
        seed=seed + 10 * SEED_STRIDE,
        sampling=sampling,
        weights=weights,
        progress=progress,
    )
    return decide(workspace, cohort, trained, posterior, held_out, round_number=round_number, run_id=run_id)


def gate_split(cohort: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Images to learn from, and approved ones held out for the gate once there are ten: by a digest of their case, so
    that a patient stays on one side whatever is approved later."""
    approved = np.flatnonzero(cohort.is_approved)
    is_even = [hashlib.sha256(cohort.images[n].case_id.encode()).digest()[0] % 2 == 0 for n in approved]
    held_out = approved[is_even] if len(approved) >= MIN_APPROVED_FOR_GATE else np.array([], dtype=int)
    return np.setdiff1d(np.arange(len(cohort)), held_out), held_out


def decide(
    workspace: Workspace,
    cohort: Cohort,
    trained: Trained,
    posterior: np.ndarray,
    held_out: np.ndarray,
    *,
    round_number: int,
    run_id: int | None,
) -> dict[str, Any]:
    """Compare a candidate with the student in use and promote or refuse it; both stay on the disk."""
    is_provisional = len(held_out) == 0
    numbers = np.flatnonzero((posterior >= 0.5).all(1)) if is_provisional else held_out
    numbers = numbers[standing(workspace, cohort)[numbers]]
    candidate = _gate_dice(trained.student, cohort, numbers)
    current = workspace.student()
    same_task = current is not None and current.config.indices == cohort.config.indices
    before = _gate_dice(current, cohort, numbers) if current is not None and same_task else None
    has_learnt = np.isnan(candidate) or candidate >= MIN_GATE_DICE
    is_promoted = has_learnt and (before is None or not candidate < before - GATE_TOLERANCE)
    on = "trusted machine labels (provisional)" if is_provisional else "approved labels held out of training"
    reason = f"Dice {candidate:.4f} on {len(numbers)} {on}" + ("" if before is None else f", {before:.4f} before")
    if not has_learnt:
        reason += f"; below {MIN_GATE_DICE}, the training has collapsed or was too short"
    row = workspace.store.ledger.add_model(
        ModelRow(
            digest=trained.student.digest,
            path=trained.path,
            status=MODEL_CANDIDATE,
            run_id=run_id,
            round=round_number,
            created_at=time.time(),
        )
    )
    if row.status != MODEL_CANDIDATE and (row.run_id, row.round) == (run_id, round_number) and run_id is not None:
        # A killed round goes on after its decision: the candidate is not compared with itself.
        return {"digest": row.digest, **row.metrics}
    status = "promoted" if is_promoted else "refused"
    metrics = {
        "status": status,
        "dice": None if np.isnan(candidate) else round(candidate, 6),
        "dice_before": None if before is None or np.isnan(before) else round(before, 6),
        "is_provisional": is_provisional,
        "reason": reason,
        "losses": trained.losses,
    }
    workspace.store.ledger.decide_model(row.id, is_promoted=is_promoted, metrics=metrics)
    return {"digest": trained.student.digest, **metrics}


def _gate_dice(student: Student, cohort: Cohort, numbers: np.ndarray) -> float:
    values = []
    for number in numbers:
        span = cohort.spans[number]
        channels = predict_frames(student.network, cohort.frames[span]).argmax(1).numpy()
        values += [dice(cohort.mask(number, k + 1), channels == k + 1) for k in range(cohort.n_structures)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
