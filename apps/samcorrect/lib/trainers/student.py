"""Trainer `student`: retraining on weighted, corrected labels, in a process of its own."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.workspace import Workspace, log_progress
from samcorrect.lib.settings import Settings


class StudentTrainer(TrainTask):
    """Trains a student and promotes it if it is not worse than the one in use."""

    def __init__(self, workspace: Workspace):
        """Train on the labels of `workspace`."""
        super().__init__("Trains the student on the weighted and corrected labels; promoted only if it is not worse")
        self.workspace = workspace

    def config(self) -> dict[str, Any]:
        """What a viewer may set, with its default."""
        return {"steps": self.workspace.settings.student_steps}

    def stats(self) -> dict[str, Any]:
        """The promoted student's gate result; Slicer shows `best_metric` in its accuracy bar."""
        row = self.workspace.store.ledger.promoted_model()
        if row is None:
            return {}
        dice = row.metrics.get("dice")
        told = {key: row.metrics.get(key) for key in ("dice", "dice_before", "is_provisional", "reason")}
        return {"best_metric": dice or 0.0, "digest": row.digest, "created_at": row.created_at, **told}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train.

        Raises:
            RequestError: `steps` is not a number of steps.
            ProtocolError: There is no protocol.
            LabelError: There are no labels.
        """
        steps = parse_steps(request.get("steps"))
        self.workspace.require_protocol()
        return train_student(self.workspace, progress=log_progress, steps=steps)


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
