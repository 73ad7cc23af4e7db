import pytest
from monailabel.config import settings as host_settings
from monailabel.endpoints.user.auth import DEFAULT_USER, User

from samcorrect.lib.errors import RequestError
from samcorrect.lib.server.access import user_name, with_user


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"user": "Dr. Müller", "client_id": "slicer-7"}, "Dr. Müller"),
        ({"client_id": "slicer-7"}, "slicer-7"),
        ({"user": ""}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_without_a_login_the_params_name_the_user(params, name):
    assert user_name(DEFAULT_USER, params) == name


def test_nobody_names_somebody_else_where_there_is_a_login(monkeypatch):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    user = User(username="ann")
    assert user_name(user, {"user": "bob", "client_id": "carl"}) == "ann"
    given = {"user": "bob", "steps": 3}
    assert with_user(user, given) == {"user": "ann", "client_id": "ann", "steps": 3}
    assert given == {"user": "bob", "steps": 3}


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\u202ex", " ", "x" * 201, 5, ["a"], {"a": 1}])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(RequestError, match="1 to 200 printable characters"):
        user_name(DEFAULT_USER, {"user": name})
