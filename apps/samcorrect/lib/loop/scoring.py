"""Stage 2: the quality of every label, without ground truth."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from samcorrect.lib.core.calibration import ExpectedDice, prior_expected_dice
from samcorrect.lib.core.losses import cross_entropy_map
from samcorrect.lib.core.metrics import rounded
from samcorrect.lib.core.quality import FEATURES, cohort_typicality, fuse_features, label_features
from samcorrect.lib.core.reweighting import huang_weights, posterior_good
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort
from samcorrect.lib.loop.students import Trained, out_of_fold_probs, train_on
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.student import predict_frames
from samcorrect.lib.store.schema import QualityRow

STAGE_SCORE = "scoring labels"
# Below this two folds of students learn nothing; the score then rests on the prompts alone and says so.
MIN_IMAGES_FOR_PEERS = 8
HUANG_DROPOUT = 0.2
MAX_REASONS = 3
# A feature this far below the cohort's median (in its own units) is worth telling a person.
REASON_GAP = 0.08
REASONS = {
    "peer_surface_dice": "its outline differs from what students trained on other images predict",
    "peer_dice": "its area overlaps little with what students trained on other images predict",
    "band_softmin": "students trained on other images are sure of another outline at some places",
    "prompt_agreement": "small changes of the prompt give very different masks",
    "stability": "SAM's mask depends on its threshold",
    "predicted_iou": "SAM itself is not sure of this mask",
    "cohort_area": "its area is unusual for this structure",
}


@dataclass(frozen=True)
class Scores:
    """Scores of the labels of a cohort of n images and K structures.

    Attributes:
        structure_scores: (n, K) in [0, 1], nan where not defined.
        scores: (n,) the score of the worst structure.
        posterior: (n, K) posterior of the good population; 1 for approved labels.
        expected: Of each structure, over the images.
        features: Of each structure, name to (n,).
        peer_probs: (N, K + 1, side, side) out of fold, or None.
        trained: The preset's first student where it has one (huang2023).
    """

    structure_scores: np.ndarray
    scores: np.ndarray
    posterior: np.ndarray
    expected: list[ExpectedDice]
    features: list[dict[str, np.ndarray]]
    peer_probs: torch.Tensor | None
    trained: Trained | None = None


def score_store(workspace: Workspace, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Score the best label of every image and write the scores to the ledger.

    Returns:
        `n_scored`, `mean_score` and `has_peers` (false below eight images, where only prompt features count).

    Raises:
        LabelError: There are no labels.
    """
    cohort = load_cohort(workspace, best_labels(workspace), progress=progress)
    scores = score_cohort(workspace, cohort, seed=workspace.settings.seed, progress=progress)
    write_scores(workspace, cohort, scores)
    return {
        "n_scored": len(cohort),
        "mean_score": round(float(np.nanmean(scores.scores)), 4) if np.isfinite(scores.scores).any() else None,
        "has_peers": scores.peer_probs is not None,
    }


def score_cohort(workspace: Workspace, cohort: Cohort, *, seed: int, progress: Progress = no_progress) -> Scores:
    """Score the labels of a cohort by the preset."""
    if workspace.settings.preset == "huang2023":
        return _score_by_loss(workspace, cohort, seed=seed, progress=progress)
    peer_probs = None
    if len(cohort) >= MIN_IMAGES_FOR_PEERS:
        peer_probs = out_of_fold_probs(workspace, cohort, seed=seed, progress=progress)
    features = cohort_features(cohort, peer_probs, progress=progress)
    fused = np.stack([fuse_features(f).scores for f in features], 1)
    expected = [prior_expected_dice(fused[:, k], features[k]["peer_dice"]) for k in range(cohort.n_structures)]
    return _finish(cohort, fused, expected, features, peer_probs)


def cohort_features(
    cohort: Cohort, peer_probs: torch.Tensor | None, *, progress: Progress = no_progress
) -> list[dict[str, np.ndarray]]:
    """The features of every label: for each structure, name to (n,) values in [0, 1] or nan."""
    n_images = len(cohort)
    features = [{name: np.full(n_images, np.nan) for name in FEATURES} for _ in range(cohort.n_structures)]
    peer_channels = peer_probs.argmax(1) if peer_probs is not None else None
    for number in range(n_images):
        span = cohort.spans[number]
        told = cohort.labels[number].info.get("structures", {})
        for k, name in enumerate(cohort.config.names):
            mask = cohort.mask(number, k + 1)
            if peer_probs is not None and peer_channels is not None:
                peer = (peer_channels[span] == k + 1).numpy()
                for feature, value in label_features(mask, peer_probs[span, k + 1].numpy(), peer).items():
                    features[k][feature][number] = value
            for feature in ("prompt_agreement", "stability", "predicted_iou"):
                value = told.get(name, {}).get(feature)
                features[k][feature][number] = np.nan if value is None else value
            features[k]["cohort_area"][number] = mask.sum()
        progress(STAGE_SCORE, number + 1, n_images)
    for of_structure in features:
        of_structure["cohort_area"] = cohort_typicality(of_structure["cohort_area"])
    return features


def write_scores(workspace: Workspace, cohort: Cohort, scores: Scores) -> None:
    """Enter the scores of a cohort's labels in the ledger; structure index 0 is the whole label."""
    now = time.time()
    medians = [
        {name: np.nanmedian(v) if np.isfinite(v).any() else np.nan for name, v in f.items()} for f in scores.features
    ]
    for number, label in enumerate(cohort.labels):
        rows, reasons = [], []
        for k, (name, index) in enumerate(zip(cohort.config.names, cohort.config.indices, strict=True)):
            told = explain({f: v[number] for f, v in scores.features[k].items()}, medians[k], structure=name)
            reasons += told
            rows.append(_quality_row(label.id, index, scores, number, k, told, now))
        worst = int(np.nanargmin(scores.structure_scores[number])) if np.isfinite(scores.scores[number]) else 0
        whole = _quality_row(label.id, 0, scores, number, worst, reasons[:MAX_REASONS], now)
        workspace.store.ledger.set_quality(label.id, [whole, *rows])


def explain(features: dict[str, float], medians: dict[str, float], *, structure: str) -> list[str]:
    """Why a structure's score is low, in words, the strongest reason first; empty where nothing stands out."""
    gaps = {
        name: medians[name] - value
        for name, value in features.items()
        if np.isfinite(value) and np.isfinite(medians[name])
    }
    order: Sequence[str] = sorted((n for n, gap in gaps.items() if gap > REASON_GAP), key=lambda n: -gaps[n])
    return [f"{structure}: {REASONS[n]} ({features[n]:.2f}, usual {medians[n]:.2f})" for n in order if n in REASONS][
        :MAX_REASONS
    ]


def _score_by_loss(workspace: Workspace, cohort: Cohort, *, seed: int, progress: Progress) -> Scores:
    """Label quality of arXiv 2308.00883: the loss under a student trained with multi-level reweighting; score =
    exp(-loss).
    """
    everything = np.arange(len(cohort))
    trained = train_on(
        workspace,
        cohort,
        everything,
        name="reweighted student",
        seed=seed,
        dropout=HUANG_DROPOUT,
        weigh_batch=huang_weights,
        progress=progress,
    )
    probs = predict_frames(trained.network, cohort.frames)
    losses = cross_entropy_map(probs.clamp(min=1e-7).log(), cohort.targets)
    image_scores = np.array([float(torch.exp(-losses[span].mean())) for span in cohort.spans])
    fused = np.repeat(image_scores[:, None], cohort.n_structures, 1)
    expected = [ExpectedDice(*(np.full(len(cohort), np.nan) for _ in range(3))) for _ in range(cohort.n_structures)]
    return _finish(cohort, fused, expected, [{} for _ in range(cohort.n_structures)], probs, trained)


def _finish(
    cohort: Cohort,
    fused: np.ndarray,
    expected: list[ExpectedDice],
    features: list[dict[str, np.ndarray]],
    peer_probs: torch.Tensor | None,
    trained: Trained | None = None,
) -> Scores:
    posterior = np.stack([posterior_good(fused[:, k]) for k in range(cohort.n_structures)], 1)
    posterior[cohort.is_approved] = 1.0
    with np.errstate(all="ignore"):
        scores = np.where(np.isnan(fused).all(1), np.nan, np.nanmin(np.where(np.isnan(fused), np.inf, fused), axis=1))
    return Scores(fused, scores, posterior, expected, features, peer_probs, trained)


def _quality_row(
    label_id: int, index: int, scores: Scores, number: int, k: int, reasons: list[str], now: float
) -> QualityRow:
    expected = scores.expected[k]
    return QualityRow(
        label_version_id=label_id,
        structure_index=index,
        score=rounded(scores.structure_scores[number, k]),
        expected_dice=rounded(expected.mean[number]),
        expected_dice_low=rounded(expected.low[number]),
        expected_dice_high=rounded(expected.high[number]),
        posterior_good=rounded(scores.posterior[number, k]),
        features={name: rounded(values[number]) for name, values in scores.features[k].items()},
        reasons=reasons,
        created_at=now,
    )
