"""Host fault: params and infos are parsed with a bare `json.loads` and taken for objects, whatever they are.

A list is a 500 (`i["user"] = ...` in `monailabel/endpoints/datastore.py`). NaN, lone surrogates and nesting that only
the parser bears are accepted, kept, and then break every reply that holds them.
"""

import json
import math
from typing import Any

from samcorrect.lib.errors import RequestError

MAX_DEPTH = 16
# What JavaScript and SQL integers both hold.
MAX_INT = 2**53
TEXT_CONTROLS = frozenset("\t\n\r")


def parse_json_object(text: str, name: str) -> dict[str, Any]:
    """Parse a parameter that holds a JSON object.

    Args:
        text: What the client sent; empty is an empty object.
        name: Of the parameter, for the message.

    Raises:
        RequestError: As `check_json_object`, or the text is no JSON.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"`{name}` is not JSON: {error}; got {text!r:.80}") from error
    return check_json_object(value, name)


def check_json_object(value: object, name: str) -> dict[str, Any]:
    """Return `value` if it is an object that any reply and any database can hold.

    Raises:
        RequestError: It is no object, is nested deeper than MAX_DEPTH, or holds NaN, an infinite or huge number, a
            control character or half a surrogate pair.
    """
    if not isinstance(value, dict):
        raise RequestError(f"`{name}` is a JSON object; got {value!r:.80}")
    _check(value, name, MAX_DEPTH)
    return value


def _check(value: object, name: str, depth: int) -> None:
    if depth == 0:
        raise RequestError(f"`{name}` is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check(key, name, depth - 1)
            _check(entry, name, depth - 1)
    elif isinstance(value, list):
        for entry in value:
            _check(entry, name, depth - 1)
    elif isinstance(value, str):
        if any((char < " " and char not in TEXT_CONTROLS) or "\ud800" <= char <= "\udfff" for char in value):
            raise RequestError(f"`{name}` holds text with control characters: {value!r:.80}")
    elif isinstance(value, (int, float)) and not (
        math.isfinite(value) if isinstance(value, float) else -MAX_INT <= value <= MAX_INT
    ):
        raise RequestError(f"`{name}` holds the number {value!s:.40}; numbers are finite and whole ones at most 2**53")
