"""Trainings on the disk: finished ones, kept by the digest of their inputs, and the state of unfinished ones."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from samcorrect.lib.errors import StoreError, WeightsError
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.runtimes import has_fast_bf16
from samcorrect.lib.networks.samples import SLICES_AT_ONCE, TrainingData
from samcorrect.lib.networks.student import FORMAT, Student, StudentConfig, load_student, student_bytes
from samcorrect.lib.networks.tracking import MLflow, TensorBoard, Tracker
from samcorrect.lib.networks.training import RECIPE_VERSION, Training, WeighBatch
from samcorrect.lib.store.files import write_bytes_atomically

logger = logging.getLogger(__name__)

MODELS_NAME = "models"
TENSORBOARD_NAME = "tensorboard"
CHECKPOINT_EVERY_S = 30.0


@dataclass(frozen=True)
class Curve:
    """How a training went; kept beside its student.

    Attributes:
        losses: (step, loss).
        held_out_dice: (step, mean Dice with held-out labels), where early stop is on.
        n_restarts: From how many other seeds it began again because it had collapsed.
        fault: Why the last of these collapsed too; "" where it did not.
        started_from: Digest of the student whose weights it began with; None where they were random.
    """

    losses: Sequence[tuple[int, float]]
    held_out_dice: Sequence[tuple[int, float]] = ()
    n_restarts: int = 0
    fault: str = ""
    started_from: str | None = None


class CheckpointFile:
    """The state of one training in a file, written every CHECKPOINT_EVERY_S seconds."""

    def __init__(self, path: Path):
        """Keep it at `path`."""
        self._path = path
        self._written_at = time.monotonic()

    def read(self) -> bytes | None:
        """What a killed training left."""
        return self._path.read_bytes() if self._path.is_file() else None

    def is_due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written_at >= CHECKPOINT_EVERY_S

    def write(self, content: bytes) -> None:
        """Keep a state; a disk that refuses it stops no training."""
        try:
            write_bytes_atomically(self._path, content)
        except StoreError as error:
            logger.warning("a training that is killed now begins anew: %s", error)
        self._written_at = time.monotonic()

    def remove(self) -> None:
        """The training is finished."""
        self._path.unlink(missing_ok=True)


def training_digest(
    workspace: Workspace,
    config: StudentConfig,
    data: TrainingData,
    *,
    steps: int,
    seed: int,
    weigh_batch: WeighBatch | None,
    start: Student | None,
) -> str:
    """Everything that decides the bytes of a trained student."""
    settings = workspace.settings
    sizes = [steps, settings.student_batch_size, settings.student_learning_rate, seed, data.lengths]
    rule = weigh_batch.__name__ if weigh_batch else ""
    machine = [torch.get_num_threads(), has_fast_bf16()]
    recipe = [FORMAT, RECIPE_VERSION, asdict(config), *sizes, rule, *machine, start and start.digest]
    digest = hashlib.sha256(json.dumps(recipe).encode())
    for tensor in (data.frames, data.targets, data.weights):
        for numbers in data.numbers().split(SLICES_AT_ONCE) if tensor is not None else ():
            digest.update(tensor[numbers].numpy().tobytes())
    for tensor in (data.sampling, data.held_out):
        digest.update(b"" if tensor is None else tensor.numpy().tobytes())
    return digest.hexdigest()


def load_kept(path: Path) -> tuple[Student, Curve] | None:
    """A finished training; None where there is none, or where another release left one that does not load."""
    curve_path = path.with_suffix(".json")
    if not (path.is_file() and curve_path.is_file()):
        return None
    try:
        student = load_student(path)
    except WeightsError as error:
        logger.warning("trained anew: %s", error)
        return None
    told: dict[str, Any] = json.loads(curve_path.read_text(encoding="utf-8"))
    pairs = {name: [(int(step), float(value)) for step, value in told[name]] for name in ("losses", "held_out_dice")}
    return student, Curve(**{**told, **pairs})


def keep_training(
    path: Path, training: Training, config: StudentConfig, start: Student | None
) -> tuple[Student, Curve]:
    """Write a finished training to `path` and its curve beside it, and give what `load_kept` will."""
    curve = Curve(
        losses=training.losses,
        held_out_dice=training.held_out_dice,
        n_restarts=training.n_restarts,
        fault=training.fault,
        started_from=start.digest if start else None,
    )
    write_bytes_atomically(path.with_suffix(".json"), json.dumps(asdict(curve)).encode())
    write_bytes_atomically(path, student_bytes(training.network, config))
    return load_student(path), curve


def open_tracker(workspace: Workspace, name: str, digest: str) -> Tracker | None:
    """Where the setting `tracking` wants the curve of a training.

    Raises:
        DependencyError, TrackingError: MLflow is wanted and cannot be used.
    """
    settings = workspace.settings
    run = f"{name.replace(' ', '-')}-{digest[:8]}"
    if settings.tracking == "tensorboard":
        return TensorBoard(workspace.store.state_dir / TENSORBOARD_NAME / run)
    if settings.tracking == "mlflow":
        sizes = {key: getattr(settings, key) for key in type(settings).model_fields if key.startswith("student_")}
        return MLflow(settings.tracking_uri, run, sizes)
    return None
