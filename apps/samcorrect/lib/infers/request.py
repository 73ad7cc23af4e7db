"""The requests of infer tasks, parsed once into small typed objects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.prompted import Prompts

RESULT_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
# What `mask` may name.
STORED_MASK = "best_label"
# Each costs up to half a second of the server's time.
MAX_STRUCTURES, MAX_BOXES, MAX_POINTS = 32, 64, 200
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
    """Prompts of a viewer.

    Attributes:
        structures: What is marked of each structure; `start` is not filled in.
        refines_stored: Whether the best stored label is what the prompts refine.
    """

    structures: tuple[Prompts, ...]
    refines_stored: bool


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


def require_stored(infer_request: InferRequest) -> str:
    """The image's id. Raises RequestError for the image of an upload session, of which nothing is stored."""
    if infer_request.image_id is None:
        raise RequestError("the image of an upload session has no stored label: add it with PUT /datastore/image first")
    return infer_request.image_id


def parse_prompt_request(
    request: Mapping[str, Any], shape_hwd: tuple[int, int, int], *, spreads: bool = False
) -> PromptRequest:
    """Parse the prompts of Slicer's and OHIF's interactive tools, and of programs.

    `roi` is [x0, x1, y0, y1, z0, z1], or without z for a 2D image, in either order and with both ends inside the box,
    as Slicer sends it; or a list of such boxes. `slice` can be 0. Slicer gives a `slice` with every box, in mm where no
    point is set: where it lies outside the box it says nothing, and all slices of the box are meant.

    Args:
        request: With `label`, `foreground` and `background` as lists of [i, j, k], `roi` and `slice`, all optional; or
            with `structures`, a list of objects with these keys, one a structure. For all structures: `axis` of the
            slices (0, 1 or 2, the default), `propagate` and `mask` ("best_label" refines the stored label).
        shape_hwd: Voxels of the image along its three axes.
        spreads: What `propagate` is where it is not given.

    Raises:
        RequestError: A parameter has another form.
    """
    axis = request.get("axis")
    axis = 2 if axis is None else axis
    if isinstance(axis, bool) or axis not in (0, 1, 2) or (shape_hwd[2] == 1 and axis != 2):
        raise RequestError(f"`axis` is 0, 1 or 2, the axis of the slices, and 2 in a 2D image; got {axis!r:.40}")
    mask = request.get("mask") or None
    if mask not in (None, STORED_MASK):
        raise RequestError(f"`mask` is {STORED_MASK!r} or left out; got {mask!r:.40}")
    common = {"axis": int(axis), "spreads": shape_hwd[2] > 1 and _bool(request, "propagate", default=spreads)}
    entries = request.get("structures") or [request]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise RequestError(f"`structures` is a list of objects with `label` and prompts; got {entries!r:.80}")
    if len(entries) > MAX_STRUCTURES:
        raise RequestError(f"`structures` holds at most {MAX_STRUCTURES}; got {len(entries)}")
    structures = tuple(_structure(entry, shape_hwd, common) for entry in entries)
    names = [s.label for s in structures]
    if len(set(names)) < len(names):
        raise RequestError(f"`structures` holds one `label` more than once: {', '.join(sorted(names))[:200]}")
    return PromptRequest(structures, mask is not None)


def _structure(entry: Mapping[str, Any], shape_hwd: tuple[int, int, int], common: Mapping[str, Any]) -> Prompts:
    axis = common["axis"]
    foreground = _points(entry, "foreground", shape_hwd)
    background = _points(entry, "background", shape_hwd)
    boxes = _boxes(entry.get("roi"), shape_hwd)
    slice_index = entry.get("slice")
    if slice_index is not None:
        slice_index = round(_number(slice_index, "`slice`"))
    if shape_hwd[2] == 1:
        slice_index = 0
    elif boxes and not foreground and slice_index is not None:
        is_inside = any(box[axis, 0] <= slice_index < box[axis, 1] for box in boxes)
        slice_index = slice_index if is_inside else None
    label = entry.get("label") or "structure"
    if not isinstance(label, str) or len(label) > 64:
        raise RequestError(f"`label` is the name of a structure, at most 64 characters; got {str(label)[:80]!r}")
    return Prompts(
        label, slice_index=slice_index, boxes_vox=boxes, foreground=foreground, background=background, **common
    )


def _points(request: Mapping[str, Any], name: str, shape_hwd: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    points = request.get(name) or []
    sizes = (2, 3) if shape_hwd[2] == 1 else (3,)
    if not isinstance(points, list) or any(not isinstance(p, list) or len(p) not in sizes for p in points):
        raise RequestError(f"`{name}` is a list of points [i, j, k] in voxels; got {points!r:.80}")
    if len(points) > MAX_POINTS:
        raise RequestError(f"`{name}` holds at most {MAX_POINTS} points; got {len(points)}")
    numbers = [[round(_number(v, f"`{name}`")) for v in point] for point in points]
    # A 2D image has the one slice 0, whatever a viewer makes of its position in the patient.
    return tuple((n[0], n[1], n[2] if shape_hwd[2] > 1 else 0) for n in numbers)


def _boxes(roi: object, shape_hwd: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    if roi is None or roi == []:
        return ()
    boxes = roi if isinstance(roi, list) and isinstance(roi[0], list) else [roi]
    if len(boxes) > MAX_BOXES:
        raise RequestError(f"`roi` holds at most {MAX_BOXES} boxes; got {len(boxes)}")
    return tuple(_box(box, shape_hwd) for box in boxes)


def _box(roi: object, shape_hwd: tuple[int, int, int]) -> np.ndarray:
    if not isinstance(roi, list) or len(roi) not in (4, 6):
        raise RequestError(
            f"`roi` is [x0, x1, y0, y1, z0, z1] in voxels, or [x0, x1, y0, y1], or a list of such; got {roi!r:.80}"
        )
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
