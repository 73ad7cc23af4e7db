import pytest

from samcorrect.lib.errors import RequestError
from samcorrect.lib.trainers.student import parse_steps


@pytest.mark.parametrize(("value", "steps"), [(None, None), (12, 12), ("12", 12)])
def test_steps(value, steps):
    assert parse_steps(value) == steps


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, 10**6, [3], "", "²"])
def test_bad_steps(value):
    with pytest.raises(RequestError, match="`steps` is a number from 1 to 100000"):
        parse_steps(value)
