import pytest

from samcorrect.lib.errors import RequestError, UnknownModelError
from samcorrect.lib.infers.batch import check_batch_request


@pytest.mark.parametrize("extra", [{}, {"label_tag": "original"}, {"max_batch_size": 3, "device": "cuda"}])
def test_pseudo_labelling_is_allowed(extra):
    check_batch_request({"model": "sam", **extra})


@pytest.mark.parametrize(
    ("extra", "error", "says"),
    [
        ({"model": "student"}, UnknownModelError, "student"),
        ({"label_tag": "final"}, RequestError, "`final` is a person's"),
        ({"label_tag": ["final"]}, RequestError, "tag"),
        ({"max_batch_size": -1}, RequestError, "max_batch_size"),
        ({"max_batch_size": "all"}, RequestError, "max_batch_size"),
    ],
)
def test_anything_else_is_refused(extra, error, says):
    with pytest.raises(error, match=says):
        check_batch_request({"model": "sam", **extra})
