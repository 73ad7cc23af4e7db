"""The public names of the app: what infers, trains, scores and chooses under each."""

from dataclasses import dataclass

from monailabel.interfaces.tasks.train import TrainTask

from samcorrect.lib.infers.base import MaskTask
from samcorrect.lib.infers.sam import SamPromptTask, SamTask, SamVolumeTask
from samcorrect.lib.infers.stored import BestLabelTask, CorrectedLabelTask
from samcorrect.lib.infers.student import StudentTask
from samcorrect.lib.trainers.student import StudentTrainer


@dataclass(frozen=True)
class TaskConfig:
    """One public model name.

    Attributes:
        infer: Makes masks under this name.
        trainer: Trains under this name; None where nothing does.
        needs_protocol: Whether the model is served only where a protocol names the structures.
    """

    infer: type[MaskTask]
    trainer: type[TrainTask] | None = None
    needs_protocol: bool = True


MODELS = {
    "sam": TaskConfig(SamTask),
    "sam_prompt": TaskConfig(SamPromptTask, needs_protocol=False),
    "sam_volume": TaskConfig(SamVolumeTask, needs_protocol=False),
    "student": TaskConfig(StudentTask, StudentTrainer),
    "corrected_label": TaskConfig(CorrectedLabelTask),
    "best_label": TaskConfig(BestLabelTask, needs_protocol=False),
}
