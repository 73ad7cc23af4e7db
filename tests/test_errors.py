"""The messages and the built-in bases of the errors."""

import inspect

import pytest

from samcorrect.lib import errors


def test_a_key_error_shows_the_sentence_and_not_its_repr():
    assert str(errors.UnknownImageError("no image 'a'")) == "no image 'a'"
    assert str(errors.SamCorrectError()) == ""


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.SettingsError, ValueError),
        (errors.ProtocolError, ValueError),
        (errors.GeometryError, errors.LabelError),
        (errors.UnknownLabelError, KeyError),
        (errors.UnknownModelError, KeyError),
        (errors.StoreError, OSError),
        (errors.DependencyError, ImportError),
    ],
)
def test_an_error_can_be_caught_as_the_builtin_that_it_refines(error, builtin):
    with pytest.raises(builtin) as caught:
        raise error("what was wrong")
    assert str(caught.value) == "what was wrong"


def test_every_error_of_the_module_is_a_samcorrect_error():
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]
    assert len(classes) > 10
    assert all(issubclass(value, errors.SamCorrectError) for value in classes)
