"""Public model `student`: the promoted segmentation network."""

from collections.abc import Mapping
from typing import Any

from samcorrect.lib.errors import UnknownModelError
from samcorrect.lib.infers.base import MaskTask, Segmented
from samcorrect.lib.infers.request import InferRequest
from samcorrect.lib.store.schema import TAG_ORIGINAL
from samcorrect.lib.store.volumes import Volume


class StudentTask(MaskTask):
    """The student's own prediction."""

    text = "The student network, trained on the weighted and corrected labels of this store"
    saved_tag = TAG_ORIGINAL

    def is_valid(self) -> bool:
        """Shown once a student is promoted."""
        return self.workspace.store.ledger.promoted_model() is not None

    def segment(self, infer_request: InferRequest, volume: Volume, request: Mapping[str, Any]) -> Segmented:
        """Predict. Raises UnknownModelError before the first promotion."""
        student = self.workspace.student()
        if student is None:
            raise UnknownModelError("no student is promoted yet; train one with POST /train/student")
        return Segmented(
            label_map=student.predict(volume.array),
            names=dict(zip(student.indices, student.names, strict=True)),
            params={"model_digest": student.digest},
            maker=f"student:{student.digest[:12]}",
            model_digest=student.digest,
        )
