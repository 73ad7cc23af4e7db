"""Bodies of our own routes: JSON objects of known keys and types."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from samcorrect.lib.compat.json_objects import check_json_object
from samcorrect.lib.errors import RequestError


class Body(BaseModel):
    """What every body may hold: who sends it, where nobody has to log in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user: str | None = None
    client_id: str | None = None

    @property
    def sender(self) -> dict[str, str | None]:
        """For `access.user_name`."""
        return {"user": self.user, "client_id": self.client_id}


AnyBody = TypeVar("AnyBody", bound=Body)


def parse_body(kind: type[AnyBody], params: Mapping[str, Any] | None) -> AnyBody:
    """The body of a request; None is an empty object.

    Raises:
        RequestError: It is no plain JSON object, a key is missing or unknown, or a value has another type.
    """
    checked = check_json_object(dict(params or {}), "the body")
    try:
        return kind.model_validate(checked)
    except ValidationError as error:
        faults = [f"`{'.'.join(map(str, fault['loc']))[:80]}`: {fault['msg']}" for fault in error.errors()]
        known = ", ".join(kind.model_fields)
        raise RequestError(f"{'; '.join(faults[:5])}. The body may hold {known}") from error
