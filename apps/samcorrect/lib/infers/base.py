"""What all infer tasks share: read the image, let the task make a label map, save it where asked, write the reply."""

import logging
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from samcorrect.lib.errors import StoreError
from samcorrect.lib.infers.request import InferRequest, parse_infer_request
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.label_names import name_indices, ordered_names, present_indices
from samcorrect.lib.store.volumes import Volume, encode_label_map

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmented:
    """What a task made of one image.

    Attributes:
        label_map: (H, W, D) uint8 on the image's grid.
        names: Index to name, where the protocol does not name them.
        params: Goes to the client beside the mask.
        maker: What made it.
        model_digest, runtime: Of the network that made it, and how it ran.
        prompts: From what; kept with a saved label.
        info: Kept with a saved label.
    """

    label_map: np.ndarray
    names: Mapping[int, str] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    maker: str = ""
    model_digest: str = ""
    runtime: str = ""
    prompts: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


class MaskTask(InferTask):
    """An infer task that returns a mask on the image's grid. Subclasses say what they are and implement `segment`."""

    infer_type: ClassVar[InferType] = InferType.SEGMENTATION
    text: ClassVar[str]
    # Slicer sends `slice` only to interactive models of two dimensions, and changes only that slice.
    dimension_shown: ClassVar[int] = 3
    # The tag of a label that is saved on request; None where results are not saved.
    saved_tag: ClassVar[str | None] = None

    def __init__(self, workspace: Workspace):
        """Serve `workspace`. Its protocol names the labels, in index order as OHIF wants them: as a list."""
        labels = ordered_names(workspace.protocol)
        super().__init__(type=self.infer_type, labels=labels, dimension=self.dimension_shown, description=self.text)
        self.workspace = workspace

    def is_valid(self) -> bool:
        """Whether the task is shown to viewers."""
        return True

    @abstractmethod
    def segment(self, infer_request: InferRequest, volume: Volume, request: Mapping[str, Any]) -> Segmented:
        """Make the label map. `request` holds what else the client sent."""

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Run the task.

        Returns:
            A temporary file, which the host deletes after its reply, and the params of the reply: `label_names` (name
            to index of what is present, in index order), `latencies` in seconds, and what the task adds.
        """
        with self.workspace.warmer.giving_way():
            return self._answer(parse_infer_request(request, saved_tag=self.saved_tag), request)

    def _answer(self, infer_request: InferRequest, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        started_s = time.monotonic()
        volume = self.workspace.volumes.read(infer_request.image_path)
        read_s = time.monotonic()
        made = self.segment(infer_request, volume, request)
        made_s = time.monotonic()
        if infer_request.label_tag is not None:
            self._save(infer_request, volume, made)
        label_names = self._label_names(made)
        named_s = time.monotonic()
        file = self._write(infer_request, volume, made)
        ended_s = time.monotonic()
        latencies = {
            "pre": read_s - started_s,
            "infer": made_s - read_s,
            "post": named_s - made_s,
            "write": ended_s - named_s,
            "total": ended_s - started_s,
        }
        logger.info("infer %s in %.2f s", self.text.split(":")[0], latencies["total"])
        params = {
            "label_names": label_names,
            "latencies": {name: round(seconds, 3) for name, seconds in latencies.items()},
            **made.params,
        }
        return str(file), params

    def _label_names(self, made: Segmented) -> dict[str, int]:
        present = present_indices(made.label_map)
        if made.names is not None:
            return {made.names[index]: index for index in present}
        return name_indices(present, self.workspace.protocol)

    def _save(self, infer_request: InferRequest, volume: Volume, made: Segmented) -> None:
        self.workspace.store.save_label_map(
            infer_request.image_id,
            made.label_map,
            tag=infer_request.label_tag,
            maker=made.maker,
            affine=volume.affine,
            model_digest=made.model_digest,
            runtime=made.runtime,
            prompts=made.prompts,
            info={**made.info, "user": infer_request.user},
        )

    def _write(self, infer_request: InferRequest, volume: Volume, made: Segmented) -> Path:
        handle, name = tempfile.mkstemp(prefix="samcorrect.", suffix=infer_request.result_extension)
        os.close(handle)
        path = Path(name)
        try:
            encode_label_map(path, made.label_map, volume.affine, is_compressed=infer_request.is_compressed)
        except OSError as error:
            path.unlink()
            raise StoreError(f"cannot write the mask in {path.parent}: {error.strerror or error}") from error
        return path
