"""Training and applying students on a cohort; a finished training is kept by the digest of its inputs and never
repeated.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from torch import nn

from samcorrect.lib.errors import LabelError, WeightsError
from samcorrect.lib.loop.cohort import Cohort, standing
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.sam import has_fast_bf16
from samcorrect.lib.networks.student import FORMAT, Student, StudentConfig, load_student, predict_frames, student_bytes
from samcorrect.lib.networks.training import TrainingData, WeighBatch, train_network
from samcorrect.lib.store.files import write_bytes_atomically

logger = logging.getLogger(__name__)

MODELS_NAME = "models"
# Fold seeds and student seeds are drawn apart so that no two trainings of a round share their batches.
SEED_STRIDE = 1000
# With fewer subfolders than this they are no patients, but a way of keeping files.
MIN_CASES = 8
# Around a label that is not trusted this many pixels of the frame are ignored in training.
IGNORED_MARGIN_PX = 4


@dataclass(frozen=True)
class Trained:
    """A trained student, where its file is (below the state folder) and its loss curve of (step, loss)."""

    student: Student
    network: nn.Module
    path: str
    losses: list[tuple[int, float]]


@dataclass(frozen=True)
class FoldStudent:
    """A student that learnt one fold.

    Attributes:
        path: Its file, below the state folder.
        image_ids: The images that it learnt.
        case_ids: Their cases; empty where each image counted as a case of its own.
    """

    path: str
    image_ids: tuple[str, ...]
    case_ids: tuple[str, ...]


# The students of both folds.
Pair = tuple[FoldStudent, FoldStudent]


def train_on(
    workspace: Workspace,
    cohort: Cohort,
    numbers: np.ndarray,
    *,
    name: str,
    seed: int,
    sampling: np.ndarray | None = None,
    weights: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    dropout: float = 0.0,
    weigh_batch: WeighBatch | None = None,
    progress: Progress = no_progress,
) -> Trained:
    """Train a student on some images of a cohort.

    Args:
        workspace: Settings and state folder.
        cohort: Images and targets.
        numbers: Which images, at least one; labels that were rejected since they were read are left out.
        name: Shown in the progress.
        seed: Of the training.
        sampling: (n,) how often each image of the cohort is drawn; 1 by default.
        weights: (N, side, side) pixel weights; 1 by default.
        targets: Instead of the cohort's.
        dropout: Of the network.
        weigh_batch: Weights from each batch's logits.

    Raises:
        LabelError: All of the labels were rejected.
    """
    settings = workspace.settings
    numbers = numbers[standing(workspace, cohort)[numbers]]
    if not len(numbers):
        raise LabelError(f"every label that the {name} would learn from was rejected; make new labels, then run again")
    data = _training_data(cohort, numbers, sampling, weights, targets)
    config = replace(cohort.config, dropout=dropout)
    relative = Path(MODELS_NAME) / f"{_training_digest(workspace, config, data, seed, weigh_batch)[:32]}.pt"
    path = workspace.store.state_dir / relative
    kept = _load_kept(path)
    if kept is None:
        training = train_network(
            config,
            data,
            steps=settings.student_steps,
            batch_size=settings.student_batch_size,
            learning_rate=settings.student_learning_rate,
            seed=seed,
            weigh_batch=weigh_batch,
            on_step=lambda done, total: progress(name, done, total),
        )
        write_bytes_atomically(path.with_suffix(".json"), json.dumps(training.losses).encode())
        write_bytes_atomically(path, student_bytes(training.network, config))
        kept = load_student(path), training.losses
    else:
        progress(name, settings.student_steps, settings.student_steps)
    student, losses = kept
    return Trained(student, student.network, relative.as_posix(), losses)


def _training_data(
    cohort: Cohort,
    numbers: np.ndarray,
    sampling: np.ndarray | None,
    weights: torch.Tensor | None,
    targets: torch.Tensor | None,
) -> TrainingData:
    slices = cohort.subset(numbers)
    drawn = np.ones(len(cohort)) if sampling is None else sampling
    return TrainingData(
        frames=cohort.frames[slices],
        targets=(cohort.targets if targets is None else targets)[slices],
        weights=torch.ones_like(cohort.frames[slices]) if weights is None else weights[slices],
        sampling=cohort.of_slices(drawn)[slices],
    )


def _training_digest(
    workspace: Workspace, config: StudentConfig, data: TrainingData, seed: int, weigh_batch: WeighBatch | None
) -> str:
    """Everything that decides the bytes of a trained student."""
    settings = workspace.settings
    sizes = [settings.student_steps, settings.student_batch_size, settings.student_learning_rate, seed]
    rule = weigh_batch.__name__ if weigh_batch else ""
    digest = hashlib.sha256(
        json.dumps([FORMAT, asdict(config), *sizes, rule, torch.get_num_threads(), has_fast_bf16()]).encode()
    )
    for tensor in (data.frames, data.targets, data.weights, data.sampling):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _load_kept(path: Path) -> tuple[Student, list[tuple[int, float]]] | None:
    """A finished training; None where there is none, or where another release left one that does not load."""
    curve_path = path.with_suffix(".json")
    if not (path.is_file() and curve_path.is_file()):
        return None
    try:
        student = load_student(path)
    except WeightsError as error:
        logger.warning("trained anew: %s", error)
        return None
    return student, [(int(step), float(loss)) for step, loss in json.loads(curve_path.read_text(encoding="utf-8"))]


def split_cases(case_ids: Sequence[str], *, seed: int) -> list[np.ndarray]:
    """Two folds of image numbers, each in rising order; no case is in both unless there are too few cases."""
    cases = list(case_ids)
    if not _are_cases(cases):
        cases = [str(number) for number in range(len(cases))]
    names = list(dict.fromkeys(cases))
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[number] for number in order[0::2]}
    is_first = np.array([case in first for case in cases])
    return [np.flatnonzero(is_first), np.flatnonzero(~is_first)]


def _are_cases(case_ids: Sequence[str]) -> bool:
    return len(set(case_ids)) >= MIN_CASES


def predict_cohort(trained: Trained, cohort: Cohort) -> torch.Tensor:
    """Probabilities for all slices of a cohort: (N, K + 1, side, side) float32."""
    return predict_frames(trained.network, cohort.frames)


def out_of_fold_probs(
    workspace: Workspace,
    cohort: Cohort,
    *,
    seed: int,
    name: str = "out-of-fold student",
    seed_offset: int = 0,
    targets: torch.Tensor | None = None,
    sampling: np.ndarray | None = None,
    weights: torch.Tensor | None = None,
    progress: Progress = no_progress,
) -> tuple[torch.Tensor, Pair]:
    """Probabilities for every slice from a student that never saw its case: two folds, each predicts the other.

    The images of one subfolder are one case (a patient), unless there are fewer than MIN_CASES such folders.

    Args:
        workspace: Settings and state folder.
        cohort: Images and targets.
        seed: Of the folds, and with `seed_offset` of the trainings.
        name: Shown in the progress, with A or B.
        seed_offset: Another training on the same folds takes another one.
        targets, sampling, weights: As in `train_on`.
        progress: Told about each step.

    Returns:
        (N, K + 1, side, side) float32, and the students.
    """
    case_ids = [image.case_id for image in cohort.images]
    folds = split_cases(case_ids, seed=seed)
    students = []
    probs = torch.zeros(len(cohort.frames), cohort.n_structures + 1, *cohort.frames.shape[1:])
    for number, (learnt, predicted) in enumerate([folds, folds[::-1]]):
        trained = train_on(
            workspace,
            cohort,
            learnt,
            name=f"{name} {'AB'[number]}",
            seed=seed + seed_offset + number,
            sampling=sampling,
            weights=weights,
            targets=targets,
            progress=progress,
        )
        slices = cohort.subset(predicted)
        probs[slices] = predict_frames(trained.network, cohort.frames[slices])
        cases = sorted({case_ids[n] for n in learnt}) if _are_cases(case_ids) else ()
        students.append(FoldStudent(trained.path, tuple(cohort.images[n].id for n in learnt), tuple(cases)))
    return probs, (students[0], students[1])


def trusted_only(
    cohort: Cohort, peer_probs: torch.Tensor | None, untrusted: np.ndarray
) -> tuple[np.ndarray, torch.Tensor]:
    """Sampling and pixel weights that let only trusted structures teach.

    An image is drawn by the share of its structures that are trusted. Around an untrusted structure (its label and its
    peer's mask, with a margin) pixels weigh 0: what is uncertain is ignored, not guessed.

    Args:
        cohort: Images and labels.
        peer_probs: (N, K + 1, side, side) out of fold, or None.
        untrusted: (n, K) bool.

    Returns:
        (n,) sampling and (N, side, side) weights.
    """
    sampling = 1.0 - untrusted.mean(1)
    weights = torch.ones_like(cohort.frames)
    peer = peer_probs.argmax(1) if peer_probs is not None else None
    for number in np.flatnonzero(untrusted.any(1) & (sampling > 0)):
        span = cohort.spans[number]
        for k in np.flatnonzero(untrusted[number]):
            doubtful = cohort.mask(number, k + 1)
            if peer is not None:
                doubtful = doubtful | (peer[span] == k + 1).numpy()
            wide = binary_dilation(doubtful, structure=np.ones((1, 3, 3), bool), iterations=IGNORED_MARGIN_PX)
            weights[span][torch.from_numpy(wide)] = 0
    return sampling, weights
