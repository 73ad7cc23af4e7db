"""Stage 4: a student on the corrected, weighted labels, promoted only if it is not worse."""

import logging
from typing import Any

import numpy as np
import torch

from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort
from samcorrect.lib.loop.promotion import decide, hold_out_cases, open_gate
from samcorrect.lib.loop.students import SEED_STRIDE, can_start_from, train_on
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.student import Student

logger = logging.getLogger(__name__)

# Shown in the progress.
STUDENT_NAME = "student"
# A label of the bad population still shows what an image looks like, but teaches little.
MIN_SAMPLING = 0.1
# From this posterior of being good on the gate may trust a label.
TRUSTED_POSTERIOR = 0.5


def train_student(
    workspace: Workspace, *, progress: Progress = no_progress, steps: int | None = None
) -> dict[str, Any]:
    """Train a student on the best labels, weighted by their stored quality, and promote or refuse it.

    Args:
        workspace: With a protocol.
        progress: Told about each step.
        steps: Instead of the setting `student_steps`.

    Returns:
        As `promotion.decide`.

    Raises:
        LabelError: There are no labels, or none that the setting `train_on` admits.
    """
    if steps is not None:
        workspace = workspace.with_settings(student_steps=steps)
    cohort = load_cohort(workspace, best_labels(workspace), progress=progress)
    posterior = np.full((len(cohort), cohort.n_structures), np.nan)
    for number, label in enumerate(cohort.labels):
        quality = workspace.store.ledger.quality(label.id)
        for k, index in enumerate(cohort.config.indices):
            if index in quality and quality[index].posterior_good is not None:
                posterior[number, k] = quality[index].posterior_good
    trusted = None if np.isnan(posterior).all() else posterior >= TRUSTED_POSTERIOR
    posterior = np.where(np.isnan(posterior) | cohort.is_approved[:, None], 1.0, posterior)
    seed = workspace.settings.seed
    return retrain(workspace, cohort, posterior, None, trusted, seed=seed, round_number=0, progress=progress)


def retrain(
    workspace: Workspace,
    cohort: Cohort,
    posterior: np.ndarray,
    weights: torch.Tensor | None,
    trusted: np.ndarray | None,
    *,
    seed: int,
    round_number: int,
    run_id: int | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train on those labels of a cohort that the setting `train_on` admits and the gate does not hold out, weighted by
    the posterior of being good, those that people approved above all (not by the preset huang2023), and let the gate
    decide.

    Args:
        workspace: With a protocol.
        cohort: Images and labels.
        posterior: (n, K) of being good, in [0, 1]; nan counts as little.
        weights: (N, side, side) of pixels; None for 1.
        trusted: (n, K) bool, what the gate may trust, see `promotion.open_gate`.
        seed: Of the training.
        round_number, run_id: Of the loop.
        progress: Told about each step.

    Returns:
        As `promotion.decide`.

    Raises:
        LabelError: No label is left to learn from.
    """
    admitted = workspace.settings.states_to_train_on
    is_admitted = np.array([label.state in admitted for label in cohort.labels], dtype=bool)
    learnt = np.flatnonzero(is_admitted & ~hold_out_cases(workspace, cohort))
    if not len(learnt):
        raise LabelError(
            f"no label has one of the states {', '.join(admitted)} that the student may learn from, or the promotion "
            "gate holds all of them out; make or approve some, or let it learn from others with the setting train_on"
        )
    sampling = np.clip(np.nan_to_num(posterior, nan=MIN_SAMPLING).mean(1), MIN_SAMPLING, 1.0)
    trained = train_on(
        workspace,
        cohort,
        learnt,
        name=STUDENT_NAME,
        seed=seed + 10 * SEED_STRIDE,
        steps=workspace.settings.student_steps,
        sampling=sampling,
        favours_approved=workspace.settings.preset == "samcorrect",
        weights=weights,
        start=_start(workspace, cohort, run_id, round_number),
        progress=progress,
    )
    gate = open_gate(workspace, cohort, trusted, learnt)
    return decide(workspace, trained, gate, round_number=round_number, run_id=run_id)


def _start(workspace: Workspace, cohort: Cohort, run_id: int | None, round_number: int) -> Student | None:
    """The student whose weights a retraining begins with; None for random ones, by the setting `student_start` or
    because the student in use does not fit, which is logged."""
    if workspace.settings.student_start == "scratch":
        return None
    row = workspace.store.ledger.promoted_model()
    if row is not None and run_id is not None and (row.run_id, row.round) == (run_id, round_number):
        # A killed round goes on after its decision: it begins again with what it began with.
        started_from = row.metrics.get("started_from")
        row = next((other for other in workspace.store.ledger.models() if other.digest == started_from), None)
    student = None if row is None else workspace.load_student(row)
    if student is None or not can_start_from(student, cohort):
        why = "there is none yet" if student is None else "it has other structures or another architecture"
        logger.warning("the training starts from random weights, not from those of the student in use: %s", why)
        return None
    return student
