"""The requests of infer tasks, parsed once into small typed objects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.errors import RequestError

RESULT_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
BOOLS = {True: True, False: False, "true": True, "false": False}


@dataclass(frozen=True)
class InferRequest:
    """What every infer task is asked.

    Attributes:
        image_id: None for the image of an upload session.
        image_path: File of the image.
        result_extension: One of RESULT_EXTENSIONS.
        is_compressed: False where a viewer cannot unpack (OHIF).
        label_tag: Tag to save the result under; None where it is not to be saved.
        user: Who asks.
    """

    image_id: str | None
    image_path: Path
    result_extension: str
    is_compressed: bool
    label_tag: str | None
    user: str


@dataclass(frozen=True)
class PromptRequest:
    """Prompts of a viewer in voxels of the image; `label` is the name of the structure that is being drawn."""

    label: str
    slice_index: int | None
    box_vox: np.ndarray | None
    foreground: tuple[tuple[int, int, int], ...]
    background: tuple[tuple[int, int, int], ...]

    @property
    def clicked_slice(self) -> int | None:
        """The slice that a person looks at; None where a box in several slices is all there is."""
        return self.foreground[-1][2] if self.slice_index is None and self.foreground else self.slice_index


def parse_infer_request(request: Mapping[str, Any], *, saved_tag: str | None) -> InferRequest:
    """Parse what all infer requests share.

    Args:
        request: The host's request, with `image_id` and `image` as `compat.infer.confined_infer` sets them.
        saved_tag: The one tag that this model may write; None where its results are not saved.

    Raises:
        RequestError: A parameter cannot be used, or the label would be saved as something that a model may not make.
    """
    extension = request.get("result_extension") or RESULT_EXTENSIONS[0]
    if extension not in RESULT_EXTENSIONS:
        raise RequestError(f"`result_extension` is one of {', '.join(RESULT_EXTENSIONS)}; got {str(extension)[:20]!r}")
    image_id, label_tag = request["image_id"], None
    if _bool(request, "save_label", default=False):
        label_tag = request.get("label_tag") or saved_tag
        if saved_tag is None:
            raise RequestError("this model's results are not saved: submit the label with PUT /datastore/label")
        if label_tag != saved_tag:
            raise RequestError(
                f"this model saves with the tag {saved_tag!r}; got {str(label_tag)[:40]!r}. `final` is a person's"
            )
        if image_id is None:
            raise RequestError(
                "the image of an upload session is not in the store: add it with PUT /datastore/image first"
            )
    return InferRequest(
        image_id=image_id,
        image_path=Path(request["image"]),
        result_extension=extension,
        is_compressed=_bool(request, "result_compress", default=True),
        label_tag=label_tag,
        user=str(request.get("client_id") or "unknown")[:200],
    )


def parse_prompt_request(request: Mapping[str, Any], shape_hwd: tuple[int, int, int]) -> PromptRequest:
    """Parse the prompts of Slicer's and OHIF's interactive tools.

    `roi` is [x0, x1, y0, y1, z0, z1], or without z for a 2D image, in either order and with both ends inside the box,
    as Slicer sends it. `slice` can be 0. Slicer gives a `slice` with every box, in mm where no point is set: where it
    lies outside the box it says nothing, and all slices of the box are meant.

    Args:
        request: With `foreground` and `background` as lists of [i, j, k], `roi`, `slice` and `label`, all optional.
        shape_hwd: Voxels of the image along its three axes.

    Raises:
        RequestError: A parameter has another form.
    """
    foreground = _points(request, "foreground", shape_hwd)
    background = _points(request, "background", shape_hwd)
    box = _box(request.get("roi"), shape_hwd)
    slice_index = request.get("slice")
    if slice_index is not None:
        slice_index = round(_number(slice_index, "`slice`"))
    if shape_hwd[2] == 1:
        slice_index = 0
    elif box is not None and not foreground and slice_index is not None and not box[2, 0] <= slice_index < box[2, 1]:
        slice_index = None
    label = request.get("label") or "structure"
    if not isinstance(label, str) or len(label) > 64:
        raise RequestError(f"`label` is the name of a structure, at most 64 characters; got {str(label)[:80]!r}")
    return PromptRequest(label, slice_index, box, foreground, background)


def _points(request: Mapping[str, Any], name: str, shape_hwd: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    points = request.get(name) or []
    sizes = (2, 3) if shape_hwd[2] == 1 else (3,)
    if not isinstance(points, list) or any(not isinstance(p, list) or len(p) not in sizes for p in points):
        raise RequestError(f"`{name}` is a list of points [i, j, k] in voxels; got {points!r:.80}")
    numbers = [[round(_number(v, f"`{name}`")) for v in point] for point in points]
    # A 2D image has the one slice 0, whatever a viewer makes of its position in the patient.
    return tuple((n[0], n[1], n[2] if shape_hwd[2] > 1 else 0) for n in numbers)


def _box(roi: object, shape_hwd: tuple[int, int, int]) -> np.ndarray | None:
    if roi is None or roi == []:
        return None
    if not isinstance(roi, list) or len(roi) not in (4, 6):
        raise RequestError(f"`roi` is [x0, x1, y0, y1, z0, z1] in voxels, or [x0, x1, y0, y1]; got {roi!r:.80}")
    ends = np.sort(np.array([_number(v, "`roi`") for v in roi]).reshape(-1, 2), axis=1)
    if len(ends) == 2 or shape_hwd[2] == 1:
        ends = np.vstack([ends[:2], [0, shape_hwd[2] - 1]])
    ends[:, 1] += 1
    return ends


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RequestError(f"{name} holds numbers; got {value!r:.40}")
    return float(value)


def _bool(request: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = request.get(name, default)
    value = value.lower() if isinstance(value, str) else value
    if not isinstance(value, (bool, str)) or value not in BOOLS:
        raise RequestError(f"`{name}` is true or false; got {value!r:.40}")
    return BOOLS[value]
