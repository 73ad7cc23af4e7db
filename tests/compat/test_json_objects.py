import json

import pytest

from samcorrect.lib.compat.json_objects import MAX_DEPTH, MAX_INT, check_json_object, parse_json_object
from samcorrect.lib.errors import RequestError


def test_an_object_comes_back_as_it_is():
    given = {"a": [1, 2.5, None, True, "Müller\tü\n"], "b": {"c": -MAX_INT}}
    assert parse_json_object(json.dumps(given), "params") == given


def test_nothing_is_an_empty_object():
    assert parse_json_object("", "params") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", r"`info` is a JSON object; got \[1\]"),
        ("null", "got None"),
        ("{", "`info` is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": 1' + "0" * 5000 + "}", "is not JSON"),
        ('{"a": NaN}', "holds the number nan"),
        ('{"a": [1e999]}', "holds the number inf"),
        ('{"a": 9007199254740993}', "holds the number 9007199254740993"),
        ('{"a": "\\u0000"}', "control characters"),
        ('{"\\u001b[31m": 1}', "control characters"),
        ('{"a": {"b": "\\ud83d"}}', "control characters"),
    ],
)
def test_what_no_reply_could_hold_is_refused(text, says):
    with pytest.raises(RequestError, match=says):
        parse_json_object(text, "info")


def test_depth_is_limited_to_the_limit():
    def nested(depth):
        return {"a": 1} if depth == 2 else {"a": nested(depth - 1)}

    check_json_object(nested(MAX_DEPTH), "params")
    with pytest.raises(RequestError, match=f"more than {MAX_DEPTH} deep"):
        check_json_object(nested(MAX_DEPTH + 1), "params")


def test_a_whole_character_beyond_the_basic_plane_is_text():
    assert parse_json_object('{"a": "\\ud83d\\ude00"}', "params") == {"a": "\N{GRINNING FACE}"}
