"""Scoring a store: everything by new peers, or only what changed by those of the last scoring."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from samcorrect.lib.core.calibration import ExpectedDice
from samcorrect.lib.core.fusion import places_in_ledger
from samcorrect.lib.core.metrics import rounded
from samcorrect.lib.core.quality import FEATURES
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort
from samcorrect.lib.loop.frame_candidates import read_candidates
from samcorrect.lib.loop.peer_context import ContextPeers, PeerContext, read_context, write_context
from samcorrect.lib.loop.scoring import (
    Scores,
    are_empty,
    expect_structures,
    finish_scores,
    fuse_structures,
    measure_labels,
    score_cohort,
    with_typicality,
    write_quality,
    write_scores,
)
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow

logger = logging.getLogger(__name__)

# Beyond this share of new labels the peers have learnt too little of what they judge; ten submits are no such change
# unless they are more than a quarter of a small store.
MAX_CHANGED_SHARE = 0.1
MAX_CHANGED, MAX_CHANGED_SHARE_OF_FEW = 10, 0.25
Qualities = dict[int, dict[int, QualityRow]]


def score_store(workspace: Workspace, *, full: bool = False, progress: Progress = no_progress) -> dict[str, Any]:
    """Score the best label of every image and write the scores to the ledger.

    Where at most a tenth of the labels are new since peers were taught, or ten that are at most a quarter, only what is
    new since the last scoring is scored, by those peers; beyond it peers are taught anew, and every label is scored.

    Args:
        workspace: With a protocol.
        full: Teach new peers in any case.
        progress: Told about every stage.

    Returns:
        `n_scored` labels in all, `n_rescored` now, `is_full`, `mean_score` of all, `has_peers` (false below eight
        images, where no student can judge) and `doubtful_structures`, the names of those whose labels are contradicted
        as a whole.

    Raises:
        LabelError: There are no labels.
    """
    labels = best_labels(workspace)
    told = None if full else _score_changed(workspace, labels, progress)
    if told is not None:
        return told
    cohort = load_cohort(workspace, labels, progress=progress)
    scores = score_cohort(workspace, cohort, seed=workspace.settings.seed, progress=progress)
    write_scores(workspace, cohort, scores)
    return {
        "n_scored": len(cohort),
        "n_rescored": len(cohort),
        "is_full": True,
        "mean_score": round(float(np.nanmean(scores.scores)), 4) if np.isfinite(scores.scores).any() else None,
        "has_peers": scores.peer_probs is not None,
        "doubtful_structures": list(scores.doubtful(cohort.config.names)),
    }


def is_too_much(n_changed: int, n_labels: int) -> bool:
    """Whether so many of the labels changed that peers are taught anew."""
    return n_changed > max(MAX_CHANGED_SHARE * n_labels, min(MAX_CHANGED, MAX_CHANGED_SHARE_OF_FEW * n_labels))


def _score_changed(
    workspace: Workspace, labels: Mapping[str, LabelVersionRow], progress: Progress
) -> dict[str, Any] | None:
    """Score what changed by the peers of the last scoring; None where there are none, or where too much changed."""
    found = read_context(workspace)
    if found is None:
        return None
    context, judges = found
    known = workspace.store.ledger.scored_labels() & set(context.label_ids.tolist())
    changed = {image_id: label for image_id, label in labels.items() if label.id not in known}
    n_untaught = sum(label.id not in context.taught_ids for label in labels.values())
    if not labels or is_too_much(max(n_untaught, len(changed)), len(labels)):
        return None
    cohort = _read_changed(workspace, changed, progress) if changed else None
    doubtful = context.doubtful
    if cohort is not None:
        doubtful = _rescore(workspace, labels, cohort, context, judges, progress)
    waiting = [row.queue_score for row in workspace.store.ledger.images() if row.id in labels]
    values = [score for score in waiting if score is not None]
    return {
        "n_scored": len(waiting),
        "n_rescored": 0 if cohort is None else len(cohort),
        "is_full": False,
        "mean_score": round(float(np.mean(values)), 4) if values else None,
        "has_peers": True,
        "doubtful_structures": list(doubtful),
    }


def _read_changed(workspace: Workspace, changed: Mapping[str, LabelVersionRow], progress: Progress) -> Cohort | None:
    try:
        return load_cohort(workspace, changed, progress=progress)
    except LabelError:  # none can be read, and each is quarantined with its reason
        return None


def _rescore(
    workspace: Workspace,
    labels: Mapping[str, LabelVersionRow],
    cohort: Cohort,
    context: PeerContext,
    judges: ContextPeers,
    progress: Progress,
) -> tuple[str, ...]:
    """Score the labels of a cohort among all labels and write what is new; returns the doubtful structures."""
    candidates = read_candidates(workspace, cohort, progress=progress)
    columns, forms = measure_labels(cohort, candidates, judges.judge(cohort, candidates), progress=progress)
    of_image = dict(zip((row.id for row in cohort.images), cohort.labels, strict=True))
    place = {int(label_id): number for number, label_id in enumerate(context.label_ids)}
    unchanged = [label for image_id, label in labels.items() if image_id not in of_image and label.id in place]
    qualities = workspace.store.ledger.qualities(label.id for label in unchanged)
    stored = _stored_columns(unchanged, qualities, cohort.config.indices)
    everyone = [*unchanged, *cohort.labels]
    n_old = len(unchanged)

    all_forms = np.concatenate([context.forms[[place[label.id] for label in unchanged]], forms])
    features = with_typicality({name: np.concatenate([stored[name], columns[name]]) for name in FEATURES}, all_forms)
    values = fuse_structures(features, context)
    # What is not scored again keeps its score.
    values[:n_old] = stored["score"]
    expected = expect_structures(workspace, values, features, everyone, context)
    is_empty = are_empty(all_forms)
    scores = finish_scores(cohort.config.names, everyone, values, expected, features, is_empty=is_empty)
    _refresh_expected(workspace, unchanged, qualities, scores, cohort.config.indices)
    write_quality(workspace, everyone, scores, np.arange(n_old, len(everyone)))
    doubtful = scores.doubtful(cohort.config.names)
    label_ids = np.array([label.id for label in everyone])
    write_context(workspace, replace(context, label_ids=label_ids, forms=all_forms, doubtful=doubtful))
    logger.info("%d of %d labels scored again", len(cohort), len(everyone))
    return doubtful


def _stored_columns(
    labels: list[LabelVersionRow], qualities: Qualities, indices: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Feature, and "score", to (n, K) as the ledger has them; nan where it has none."""
    rows = [[qualities[label.id].get(index) for index in indices] for label in labels]
    told = [[{} if row is None else {**row.features, "score": row.score} for row in of] for of in rows]
    return {
        name: np.array([[of.get(name) for of in of_label] for of_label in told], dtype=np.float64).reshape(
            len(labels), len(indices)
        )
        for name in (*FEATURES, "score")
    }


def _refresh_expected(
    workspace: Workspace,
    labels: list[LabelVersionRow],
    qualities: Qualities,
    scores: Scores,
    indices: tuple[int, ...],
) -> None:
    """Write the expected Dice of the labels that keep their scores, where other approvals calibrate it now."""
    changes = []
    for number, label in enumerate(labels):
        rows = qualities[label.id]
        for index, k in places_in_ledger(scores.structure_scores[number], indices):
            if index not in rows:
                continue
            row, columns = rows[index], _expected_columns(scores.expected[k], number)
            # The same number can be of other labels: one was rejected, or submitted again.
            is_calibrated = columns["n_approved"] or row.n_approved
            if is_calibrated and any(getattr(row, name) != value for name, value in columns.items()):
                changes.append({"id": row.id, **columns})
    if changes:
        workspace.store.ledger.update_quality(changes)


def _expected_columns(expected: ExpectedDice, number: int) -> dict[str, Any]:
    return {
        "expected_dice": rounded(expected.mean[number]),
        "expected_dice_low": rounded(expected.low[number]),
        "expected_dice_high": rounded(expected.high[number]),
        "n_approved": int(expected.n_approved[number]),
    }
