"""Reviews over HTTP: approve, reject, comment, and the history of an image."""

from typing import Any

from fastapi import APIRouter
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.loop.reviews import approve_label, comment_on_label, image_state, reject_label
from samcorrect.lib.loop.versions import list_versions
from samcorrect.lib.server.access import Annotator, Viewer, user_name
from samcorrect.lib.server.bodies import Body, parse_body
from samcorrect.lib.store.schema import LabelVersionRow

router = APIRouter(prefix="/samcorrect", tags=["samcorrect"])


class ReviewBody(Body):
    """What every review names: an image, and a label version of it, by default the best."""

    image: str
    version: int | None = None


class ApproveBody(ReviewBody):
    """`expected_best` is the best version that the sender saw, by default the one that is approved; it is what they
    approve without a `version`.
    """

    comment: str = ""
    expected_best: int | None = None
    even_rejected: bool = False


class RejectBody(ReviewBody):
    """A rejection has a reason."""

    reason: str


class CommentBody(ReviewBody):
    """A comment has a text."""

    text: str


@router.post("/approve", summary="Approve a label as it is")
def approve(params: dict[str, Any], user: User = Annotator) -> dict[str, Any]:
    """Make a label version the sender's final label; its image leaves the queue, and it goes to the PACS."""
    body = parse_body(ApproveBody, params)
    seen = {"expected_best": body.expected_best, "even_rejected": body.even_rejected}
    given = {"reviewer": user_name(user, body.sender), "comment": body.comment, **seen}
    app = app_instance()
    row = approve_label(app.workspace, body.image, body.version, **given)
    return {**_told(row), **app.datastore().publish_label(row.image_id)}


@router.post("/reject", summary="Reject a label; a reason is required")
def reject(params: dict[str, Any], user: User = Annotator) -> dict[str, Any]:
    """Take a label version out of all training; its image goes to the head of the queue."""
    body = parse_body(RejectBody, params)
    given = {"reviewer": user_name(user, body.sender), "reason": body.reason}
    return _told(reject_label(app_instance().workspace, body.image, body.version, **given))


@router.post("/comment", summary="Comment on a label")
def comment(params: dict[str, Any], user: User = Annotator) -> dict[str, Any]:
    """Keep a comment on a label version."""
    body = parse_body(CommentBody, params)
    given = {"reviewer": user_name(user, body.sender), "text": body.text}
    comment_on_label(app_instance().workspace, body.image, body.version, **given)
    return {"image": body.image}


@router.get("/history", summary="All versions of an image's label, and what people decided")
def read_history(image: str, user: User = Viewer) -> dict[str, Any]:
    """State, label versions and reviews of an image, oldest first."""
    workspace = app_instance().workspace
    versions, ledger = list_versions(workspace, image), workspace.store.ledger
    keys = ("label_version_id", "decision", "reviewer", "reason", "created_at")
    reviews = [{key: getattr(row, key) for key in keys} for row in ledger.reviews(image)]
    return {"image": image, "state": image_state(workspace, image), "versions": versions, "reviews": reviews}


def _told(row: LabelVersionRow) -> dict[str, Any]:
    return {"image": row.image_id, "version": row.id, "tag": row.tag, "is_rejected": row.is_rejected}
