"""Students over HTTP: which there are, and which one is used."""

from typing import Any

from fastapi import APIRouter
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.loop.models import promote_model, roll_back_model
from samcorrect.lib.server.access import Admin, Viewer, user_name
from samcorrect.lib.server.bodies import Body, parse_body
from samcorrect.lib.store.schema import ModelRow

router = APIRouter(prefix="/samcorrect", tags=["samcorrect"])
TOLD = ("dice", "dice_before", "n_labels", "is_provisional", "reason", "promoted_by")


class PromoteBody(Body):
    """A student is named by how its digest begins."""

    digest: str


@router.get("/models", summary="Students and what the promotion gate said of them")
def read_models(user: User = Viewer) -> dict[str, Any]:
    """All students, oldest first; what is not known of one is null."""
    return {"models": [_told(row) for row in app_instance().workspace.store.ledger.models()]}


@router.post("/models/promote", summary="Use a student from now on")
def promote(params: dict[str, Any], user: User = Admin) -> dict[str, Any]:
    """Use a student whatever the gate said of it; the audit log names the sender."""
    body = parse_body(PromoteBody, params)
    return _told(promote_model(app_instance().workspace, body.digest, by=user_name(user, body.sender)))


@router.post("/models/rollback", summary="Back to the student that was in use before")
def roll_back(params: dict[str, Any] | None = None, user: User = Admin) -> dict[str, Any]:
    """Go back by one promotion; the audit log names the sender."""
    body = parse_body(Body, params)
    return _told(roll_back_model(app_instance().workspace, by=user_name(user, body.sender)))


def _told(row: ModelRow) -> dict[str, Any]:
    known = {"digest": row.digest, "status": row.status, "round": row.round, "created_at": row.created_at}
    return known | {key: row.metrics.get(key) for key in TOLD}
