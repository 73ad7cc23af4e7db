"""Trainer `student`: retraining on weighted, corrected labels, in a process of its own."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.progress import PROGRESS_NAME, ProgressFile, read_progress
from samcorrect.lib.loop.retraining import STUDENT_NAME, train_student
from samcorrect.lib.loop.workspace import Workspace, log_progress
from samcorrect.lib.settings import Settings

METRIC = "val_mean_dice"
GATE_WORDS = ("dice", "dice_before", "is_provisional", "reason", "n_restarts")


class StudentTrainer(TrainTask):
    """Trains a student and promotes it if it is not worse than the one in use."""

    def __init__(self, workspace: Workspace):
        """Train on the labels of `workspace`."""
        super().__init__("Trains the student on the weighted and corrected labels; promoted only if it is not worse")
        self.workspace = workspace
        self._progress_dir = workspace.store.state_dir / "training"

    def config(self) -> dict[str, Any]:
        """What a viewer may set, with its default."""
        return {"steps": self.workspace.settings.student_steps}

    def stats(self) -> dict[str, Any]:
        """What the host's own trainers tell, in their words: Slicer shows `best_metric` as accuracy, `epoch` of
        `total_epochs` (steps of the optimiser) and `total_time`; with the gate's words on the student in use.
        """
        row = self.workspace.store.ledger.promoted_model()
        told = _times(read_progress(self._progress_dir))
        if row is None:
            return {**told, "best_metric": 0.0} if told else {}
        dice, losses = row.metrics.get("dice"), row.metrics.get("losses")
        told |= {"best_metric": dice or 0.0, "digest": row.digest, "created_at": row.created_at}
        told["eval"] = {"metrics": {METRIC: dice}, "key_metric_name": METRIC, "best_metric": dice}
        told["train"] = {"metrics": {"train_loss": losses[-1][1] if losses else None}}
        return told | {key: row.metrics.get(key) for key in GATE_WORDS}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train.

        Raises:
            RequestError: `steps` is not a number of steps.
            TrainingError: The training collapsed from every seed.
            ProtocolError: There is no protocol.
            LabelError: There are no labels.
        """
        steps = parse_steps(request.get("steps"))
        self.workspace.require_protocol()
        (self._progress_dir / PROGRESS_NAME).unlink(missing_ok=True)
        note = ProgressFile(self._progress_dir, n_rounds=0)

        def progress(stage: str, done: int, total: int) -> None:
            log_progress(stage, done, total)
            note(stage, done, total)

        told = train_student(self.workspace, progress=progress, steps=steps)
        note.finish()
        return told


def _times(progress: Mapping[str, Any]) -> dict[str, Any]:
    """How far a training is, or how long the last one took; empty where there was none."""
    if not progress:
        return {}
    is_training, is_finished = progress["stage"] == STUDENT_NAME, progress.get("is_finished", False)
    seconds = {**progress["seconds"], progress["stage"]: progress["updated_at"] - progress["stage_began_at"]}
    return {
        "epoch": progress["done"] if is_training else 0,
        "total_epochs": progress["total"] if is_training else 1,
        "start_ts": int(progress["updated_at"] - sum(seconds.values())),
        "total_time" if is_finished else "current_time": str(timedelta(seconds=round(sum(seconds.values())))),
    }


def parse_steps(value: object) -> int | None:
    """The optimiser steps that a request names, None where it names none; Slicer's table sends numbers as text.

    Raises:
        RequestError: Not a number, or outside the range of the setting `student_steps`.
    """
    if value is None:
        return None
    bounds = {type(entry).__name__: entry for entry in Settings.model_fields["student_steps"].metadata}
    low, high = bounds["Ge"].ge, bounds["Le"].le
    text = str(value)
    if not text.isdecimal() or len(text) > len(str(high)) or not low <= int(text) <= high:
        raise RequestError(f"`steps` is a number from {low} to {high}; got {text[:40]!r}")
    return int(text)
