"""Host fault: params of a request replace the request itself, and steer the background process that serves it.

`request.update(params)` lets params name another model or method than the path does; `bundle_path` among them is put on
the PYTHONPATH of the process (`monailabel/utils/async_tasks/utils.py`), so that code of any folder runs; a `gpus` that
is no text, or params too long for a command line, end the worker thread unseen and the task is SUBMITTED for ever.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from samcorrect.lib.compat.json_objects import check_json_object
from samcorrect.lib.errors import RequestError

# One argument of a Linux command line holds 128 KiB.
MAX_BYTES = 2**16
GPUS = re.compile(r"all|\d{1,3}(,\d{1,3})*")


def check_task_params(params: object, *, reserved: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the params of a background task.

    Args:
        params: What the client sent; None is an empty object.
        reserved: Keys that the path of the request gives.

    Raises:
        RequestError: They are no plain JSON object, are too long, name a reserved key or a bundle, or `gpus` is no list
            of numbers.
    """
    checked = check_json_object({} if params is None else params, "params")
    refuse_keys(checked, (*reserved, "bundle_path"))
    if not GPUS.fullmatch(str(checked.get("gpus") or "all")):
        raise RequestError(f'`gpus` is "all" or numbers such as "0,1"; got {checked["gpus"]!r:.40}')
    n_bytes = len(json.dumps(checked))
    if n_bytes > MAX_BYTES:
        raise RequestError(f"`params` of a background task are at most {MAX_BYTES} bytes; got {n_bytes}")
    return checked


def refuse_keys(params: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Raises RequestError where `params` holds one of `keys`."""
    for key in keys:
        if key in params:
            raise RequestError(f"`{key}` does not belong among the params; got {params[key]!r:.80}")
