import pytest

from samcorrect.lib.compat.task_params import MAX_BYTES, check_task_params, refuse_keys
from samcorrect.lib.errors import RequestError


@pytest.mark.parametrize("params", [{}, {"steps": "5"}, {"gpus": "all"}, {"gpus": "0,1"}, {"gpus": None}, {"gpus": ""}])
def test_plain_params_come_back(params):
    assert check_task_params(params, reserved=("model",)) == params


def test_none_is_an_empty_object():
    assert check_task_params(None) == {}


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ([1], "JSON object"),
        ({"a": float("nan")}, "nan"),
        ({"bundle_path": "/x"}, "`bundle_path` does not belong among the params; got '/x'"),
        ({"model": "sam"}, "`model` does not belong"),
        ({"gpus": "0; id"}, "got '0; id'"),
        ({"gpus": [0]}, r"got \[0\]"),
        ({"a": "x" * MAX_BYTES}, f"at most {MAX_BYTES} bytes"),
    ],
)
def test_params_that_steer_the_process_are_refused(params, says):
    with pytest.raises(RequestError, match=says):
        check_task_params(params, reserved=("model",))


def test_keys_are_refused_whatever_they_hold():
    refuse_keys({"a": 1}, ("b",))
    with pytest.raises(RequestError, match="`b`"):
        refuse_keys({"b": None}, ("b",))
