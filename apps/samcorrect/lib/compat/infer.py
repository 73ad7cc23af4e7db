"""Host faults of `MONAILabelApp.infer` (`monailabel/interfaces/app.py`), mended by taking its place.

It opens any file that `image` names (`/infer/x?image=/etc/passwd`, or `image` among the params), writes any label tag
that a client names, `final` among them, and its caller deletes the file that the task returns, even a stored label. A
task here returns a temporary file, and saves labels itself.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from samcorrect.lib.errors import RequestError, UnknownModelError

InferFunction = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]


def confined_infer(
    tasks: Mapping[str, InferFunction],
    request: Mapping[str, Any],
    *,
    find_image: Callable[[str], str],
    sessions_dir: Path | None,
) -> dict[str, Any]:
    """Run one infer task on an image of the store or of an upload session, and on nothing else.

    Args:
        tasks: Public model name to task; a task returns a temporary file and params, and saves its label itself.
        request: The host's request; `image` is an image id, or the path of a session's image.
        find_image: The path of an image id; raises UnknownImageError or RequestError.
        sessions_dir: Folder of the upload sessions.

    Returns:
        What the host's `infer` returns.

    Raises:
        UnknownModelError: No such model.
        RequestError: `image` is neither.
    """
    name = request.get("model")
    task = tasks.get(name) if isinstance(name, str) else None
    if task is None:
        raise UnknownModelError(f"no model {str(name)[:80]!r}; served are {', '.join(tasks) or 'none'}")
    image = request.get("image")
    if not isinstance(image, str) or not image:
        raise RequestError(f"`image` is the id of an image; got {type(image).__name__} {str(image)[:80]!r}")
    task_request = copy.deepcopy(dict(request))
    if (
        sessions_dir is not None
        and Path(image).is_absolute()
        and Path(image).resolve().is_relative_to(sessions_dir.resolve())
    ):
        task_request["image_id"], task_request["image"] = None, str(Path(image).resolve())
    else:
        task_request["image_id"], task_request["image"] = image, find_image(image)
    file, params = task(task_request)
    return {"label": file, "tag": params.get("label_tag", ""), "file": file, "params": params}


def refuse_whole_slides() -> NoReturn:
    """Take the place of `MONAILabelApp.infer_wsi`, which opens any path as a slide. Raises RequestError."""
    raise RequestError("samcorrect has no models for whole-slide images; POST /infer/<model> takes radiological images")
