"""Who may do what, by the host's roles, and who did it."""

from collections.abc import Mapping
from typing import Any

from fastapi import Depends
from monailabel.config import settings as host_settings
from monailabel.endpoints.user.auth import RBAC, User

from samcorrect.lib.errors import RequestError

Admin = Depends(RBAC(host_settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
Annotator = Depends(RBAC(host_settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
Viewer = Depends(RBAC(host_settings.MONAI_LABEL_AUTH_ROLE_USER))
MAX_USER_LENGTH = 200
UNKNOWN_USER = "unknown"


def user_name(user: User, params: Mapping[str, Any]) -> str:
    """Who sends a request: whoever logged in; without a login whoever `user` or `client_id` among the params names.

    Raises:
        RequestError: The name is no text of 1 to MAX_USER_LENGTH printable characters.
    """
    if host_settings.MONAI_LABEL_AUTH_ENABLE:
        name: object = user.username
    else:
        name = params.get("user") or params.get("client_id") or UNKNOWN_USER
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > MAX_USER_LENGTH:
        raise RequestError(
            f"a user is named with 1 to {MAX_USER_LENGTH} printable characters in `user` or `client_id`; "
            f"got {name!r:.80}"
        )
    return name


def with_user(user: User, params: Mapping[str, Any]) -> dict[str, Any]:
    """Params in which nobody is named but who sends them. Raises RequestError as `user_name` does."""
    name = user_name(user, params)
    return {**params, "user": name, "client_id": name}
