"""Training and applying students on a cohort; a finished training is kept by the digest of its inputs and never
repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNet
from scipy.ndimage import binary_dilation

from samcorrect.lib.core.pieces import come_in_one_piece, is_one_piece
from samcorrect.lib.core.reweighting import favour_approved
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.cohort import Cohort, standing
from samcorrect.lib.loop.side_by_side import threads_of_training, torch_threads, train_side_by_side
from samcorrect.lib.loop.trainings import (
    MODELS_NAME,
    CheckpointFile,
    Curve,
    keep_training,
    load_kept,
    open_tracker,
    training_digest,
)
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.samples import TrainingData
from samcorrect.lib.networks.student import Student, StudentConfig
from samcorrect.lib.networks.training import WeighBatch, train_network
from samcorrect.lib.settings import Settings

# Fold seeds and student seeds are drawn apart so that no two trainings of a round share their batches.
SEED_STRIDE = 1000
# With fewer subfolders than this they are no patients, but a way of keeping files, as one for each hospital.
MIN_CASES = 4
# Around a label that is not trusted this many pixels of the frame are ignored in training.
IGNORED_MARGIN_PX = 4
# Early stop: the share of the trusted cases of a training that it holds out, and how many images it takes to do so.
HELD_OUT_SHARE = 0.1
MIN_IMAGES_TO_HOLD_OUT = 8
# An image is trusted from this share of its structures, or this posterior of being good, on.
TRUSTED_SAMPLING = 0.5


@dataclass(frozen=True)
class Trained:
    """A trained student, where its file is (below the state folder) and how its training went."""

    student: Student
    path: str
    curve: Curve

    @property
    def network(self) -> UNet:
        """The student's network."""
        return self.student.network

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss)."""
        return list(self.curve.losses)


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
    steps: int | None = None,
    sampling: np.ndarray | None = None,
    favours_approved: bool = False,
    weights: torch.Tensor | None = None,
    dropout: float = 0.0,
    weigh_batch: WeighBatch | None = None,
    start: Student | None = None,
    n_beside: int = 1,
    progress: Progress = no_progress,
) -> Trained:
    """Train a student on some images of a cohort, or go on with such a training that was killed.

    Args:
        workspace: Settings and state folder.
        cohort: Images and targets.
        numbers: Which images, at least one; labels that were rejected since they were read are left out.
        name: Shown in the progress.
        seed: Of the training.
        steps: Of the optimiser; by default as many as a judge takes.
        sampling: (n,) how often each image of the cohort is drawn; 1 by default, and without the module image_weights.
        favours_approved: Draws what people approved more often, see `favour_approved`; needs that module too.
        weights: (N, side, side) pixel weights of any type; 1 by default, and without the module pixel_weights.
        dropout: Of the network.
        weigh_batch: Weights from each batch's logits.
        start: Whose weights to begin with, see `can_start_from`; by default random ones.
        n_beside: Trainings at work at the same time, this one among them, which share the CPU.
        progress: Told about each step.

    Raises:
        LabelError: All of the labels were rejected.
        TrainingError: The training collapsed from every seed.
        DependencyError, TrackingError: MLflow is wanted and cannot be used.
    """
    settings = workspace.settings
    steps = steps or settings.steps_of_judges
    numbers = numbers[standing(workspace, cohort)[numbers]]
    if not len(numbers):
        raise LabelError(f"every label that the {name} would learn from was rejected; make new labels, then run again")
    sampling = sampling if settings.has_module("image_weights") else None
    weights = weights if settings.has_module("pixel_weights") else None
    data = _training_data(cohort, numbers, sampling, weights)
    if settings.student_early_stop:
        data = _hold_out(cohort, numbers, data, seed=seed)
    if favours_approved and settings.has_module("image_weights"):
        data = _favour_approved(cohort, data)
    config = replace(cohort.config, dropout=dropout, in_one_piece=_in_one_piece(settings, cohort, numbers))
    rules = {"steps": steps, "seed": seed, "weigh_batch": weigh_batch, "start": start}
    with torch_threads(threads_of_training(settings, n_beside)):
        relative = Path(MODELS_NAME) / f"{training_digest(workspace, config, data, **rules)[:32]}.pt"
        path = workspace.store.state_dir / relative
        kept = load_kept(path) or _train(workspace, config, data, path, name=name, progress=progress, **rules)
    progress(name, steps, steps)
    return Trained(kept[0], relative.as_posix(), kept[1])


def _train(
    workspace: Workspace,
    config: StudentConfig,
    data: TrainingData,
    path: Path,
    *,
    name: str,
    steps: int,
    seed: int,
    weigh_batch: WeighBatch | None,
    start: Student | None,
    progress: Progress,
) -> tuple[Student, Curve]:
    """Train to the end and keep the student at `path`; a training that was killed goes on."""
    settings = workspace.settings
    # Hidden, as all files that are being written are: no backup takes it.
    checkpoint = CheckpointFile(path.with_name(f".{path.stem}.checkpoint"))
    tracker = open_tracker(workspace, name, path.stem)
    try:
        training = train_network(
            config,
            data,
            steps=steps,
            batch_size=settings.student_batch_size,
            learning_rate=settings.student_learning_rate,
            seed=seed,
            weigh_batch=weigh_batch,
            start=start.network.state_dict() if start else None,
            on_step=lambda done, total: progress(name, done, total),
            checkpoint=checkpoint,
            tracker=tracker,
        )
    finally:
        if tracker is not None:
            tracker.close()
    kept = keep_training(path, training, config, start)
    checkpoint.remove()
    return kept


def can_start_from(student: Student, cohort: Cohort) -> bool:
    """Whether a training on a cohort can begin with a student's weights: the same structures and architecture."""
    one, other = student.config, cohort.config
    return (one.names, one.indices, one.dims) == (other.names, other.indices, other.dims)


def _in_one_piece(settings: Settings, cohort: Cohort, numbers: np.ndarray) -> tuple[bool, ...]:
    """(K,) whether the labels of some images show a structure in one piece, and those of people do not contradict: SAM
    may have made one piece of whatever there is. Empty without the module largest_piece.
    """
    if not settings.has_module("largest_piece"):
        return ()
    found, is_approved = [], cohort.is_approved[numbers]
    for channel in range(1, cohort.n_structures + 1):
        said = [is_one_piece(cohort.mask(n, channel)) for n in numbers]
        of_people = [is_whole for is_whole, is_of_a_person in zip(said, is_approved, strict=True) if is_of_a_person]
        found.append(come_in_one_piece(said) is True and come_in_one_piece(of_people) is not False)
    return tuple(found)


def _training_data(
    cohort: Cohort, numbers: np.ndarray, sampling: np.ndarray | None, weights: torch.Tensor | None
) -> TrainingData:
    slices = cohort.subset(numbers)
    drawn = cohort.of_slices(np.ones(len(cohort)) if sampling is None else sampling)[slices]
    if not (drawn > 0).any():  # none is trusted
        drawn = torch.ones_like(drawn)
    return TrainingData(
        frames=cohort.frames,
        targets=cohort.targets,
        weights=weights,
        sampling=drawn,
        lengths=cohort.lengths(numbers),
        slices=slices,
    )


def _hold_out(cohort: Cohort, numbers: np.ndarray, data: TrainingData, *, seed: int) -> TrainingData:
    """The data with a seeded share of the trusted cases held out for early stop, if there are enough of them."""
    lengths = torch.tensor(data.lengths)
    is_trusted = (data.sampling[lengths.cumsum(0) - lengths] >= TRUSTED_SAMPLING).numpy()
    if is_trusted.sum() < MIN_IMAGES_TO_HOLD_OUT:
        return data
    of_all = cases_of([image.id for image in cohort.images], [image.case_id for image in cohort.images])
    cases = [of_all[n] for n in numbers]
    trusted = list(dict.fromkeys(case for case, is_good in zip(cases, is_trusted, strict=True) if is_good))
    order = np.random.default_rng(seed).permutation(len(trusted))
    chosen = {trusted[number] for number in order[: max(1, round(HELD_OUT_SHARE * len(trusted)))]}
    is_held_out = torch.tensor([case in chosen for case in cases])
    return replace(data, held_out=is_held_out.repeat_interleave(lengths))


def _favour_approved(cohort: Cohort, data: TrainingData) -> TrainingData:
    """The data with what people approved drawn more often, where it is not held out."""
    is_taught = torch.ones_like(data.sampling, dtype=torch.bool) if data.held_out is None else ~data.held_out
    is_approved = cohort.of_slices(cohort.is_approved)[data.slices] > 0
    sampling = data.sampling.clone()
    sampling[is_taught] = favour_approved(sampling[is_taught], is_approved[is_taught])
    return replace(data, sampling=sampling)


def split_cases(case_ids: Sequence[str], *, seed: int) -> list[np.ndarray]:
    """Two folds of image numbers, each in rising order; no case is in both unless there are too few cases."""
    cases = cases_of([str(number) for number in range(len(case_ids))], case_ids)
    names = list(dict.fromkeys(cases))
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[number] for number in order[0::2]}
    is_first = np.array([case in first for case in cases])
    return [np.flatnonzero(is_first), np.flatnonzero(~is_first)]


def teachers_of(fold: np.ndarray, is_held_out: np.ndarray) -> np.ndarray:
    """The numbers of a fold that are not held out; all of them where each is."""
    teachers = fold[~is_held_out[fold]]
    return teachers if len(teachers) else fold


def cases_of(image_ids: Sequence[str], case_ids: Sequence[str]) -> list[str]:
    """The case of each image: its patient, or the image itself where cases are too few to be patients."""
    return list(case_ids if _are_cases(case_ids) else image_ids)


def _are_cases(case_ids: Sequence[str]) -> bool:
    return len(set(case_ids)) >= MIN_CASES


def predict_cohort(students: Sequence[Trained], cohort: Cohort) -> torch.Tensor:
    """The mean of some students' probabilities for all slices of a cohort: (N, K + 1, side, side) float32."""
    probs = empty_probs(cohort)
    for slices, lengths in cohort.portions(np.arange(len(cohort))):
        frames = cohort.frames[slices]
        probs[slices] = torch.stack([of.student.predict_frames(frames, lengths) for of in students]).mean(0)
    return probs


def empty_probs(cohort: Cohort) -> torch.Tensor:
    """(N, K + 1, side, side) float32 of zeros."""
    return cohort.scratch.zeros(len(cohort.frames), cohort.n_structures + 1, *cohort.frames.shape[1:])


def out_of_fold_probs(
    workspace: Workspace,
    cohort: Cohort,
    *,
    seed: int,
    name: str = "out-of-fold student",
    seed_offset: int = 0,
    sampling: np.ndarray | None = None,
    weights: torch.Tensor | None = None,
    mean_with: torch.Tensor | None = None,
    is_held_out: np.ndarray | None = None,
    progress: Progress = no_progress,
) -> tuple[torch.Tensor, Pair]:
    """Probabilities for every slice from a student that never saw its case: two folds, each predicts the other.

    The images of one subfolder are one case (a patient), unless there are fewer than MIN_CASES such folders.

    Args:
        workspace: Settings and state folder.
        cohort: Images and targets.
        seed: Of the folds, and with `seed_offset` of the trainings.
        name: Shown in the progress in the plural; of each, with A or B, in its curve and errors.
        seed_offset: Another training on the same folds takes another one.
        sampling, weights: As in `train_on`.
        mean_with: Such probabilities of other students, which are overwritten by the mean with these.
        is_held_out: (n,) bool, images that are predicted and teach nobody, unless a fold has no others.
        progress: Told about each step.

    Returns:
        (N, K + 1, side, side) float32, `mean_with` where it was given, and the students.
    """
    case_ids = [image.case_id for image in cohort.images]
    folds = split_cases(case_ids, seed=seed)
    learnt = folds if is_held_out is None else [teachers_of(fold, is_held_out) for fold in folds]
    jobs = [
        partial(
            train_on,
            workspace,
            cohort,
            numbers,
            name=f"{name} {'AB'[number]}",
            seed=seed + seed_offset + number,
            sampling=sampling,
            weights=weights,
        )
        for number, numbers in enumerate(learnt)
    ]
    trained = train_side_by_side(workspace.settings, jobs, name=f"{name}s", progress=progress)
    students = []
    probs = empty_probs(cohort) if mean_with is None else mean_with
    for of, numbers, predicted in zip(trained, learnt, folds[::-1], strict=True):
        for slices, lengths in cohort.portions(predicted):
            found = of.student.predict_frames(cohort.frames[slices], lengths)
            probs[slices] = found if mean_with is None else (mean_with[slices] + found) / 2
        cases = sorted({case_ids[n] for n in numbers}) if _are_cases(case_ids) else ()
        students.append(FoldStudent(of.path, tuple(cohort.images[n].id for n in numbers), tuple(cases)))
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
        (n,) sampling and (N, side, side) uint8 weights.
    """
    sampling = 1.0 - untrusted.mean(1)
    weights = cohort.scratch.zeros(*cohort.frames.shape, dtype=torch.uint8).fill_(1)
    for number in np.flatnonzero(untrusted.any(1)):
        span = cohort.spans[number]
        peer = peer_probs[span].argmax(1) if peer_probs is not None else None
        for k in np.flatnonzero(untrusted[number]):
            doubtful = cohort.mask(number, k + 1)
            if peer is not None:
                doubtful = doubtful | (peer == k + 1).numpy()
            wide = binary_dilation(doubtful, structure=np.ones((1, 3, 3), bool), iterations=IGNORED_MARGIN_PX)
            weights[span][torch.from_numpy(wide)] = 0
    return sampling, weights
