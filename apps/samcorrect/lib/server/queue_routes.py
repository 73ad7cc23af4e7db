"""The queue over HTTP: what waits, the next image, and giving images back."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from monailabel.config import settings as host_settings
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.queue import NextImage, describe, next_image
from samcorrect.lib.server.access import Annotator, Viewer, user_name
from samcorrect.lib.server.bodies import Body, parse_body

router = APIRouter(prefix="/samcorrect", tags=["samcorrect"])

MAX_ROWS = 200


class NextBody(Body):
    """What POST /samcorrect/next takes."""

    strategy: str = "lowest_quality"


class ReleaseBody(Body):
    """What POST /samcorrect/release takes: an image, or nothing for all; and whose, by default the sender's own."""

    image: str | None = None
    holder: str | None = None


@router.get("/queue", summary="What waits for a person, worst first")
def read_queue(limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 20, user: User = Viewer) -> dict[str, Any]:
    """The head of the queue: score, expected Dice and state of each image, and who has it until when (s since 1970)."""
    now, ledger = time.time(), app_instance().workspace.store.ledger
    told = []
    for waiting in ledger.queue(limit, now=now):
        image_id, lease = waiting.image.id, waiting.lease
        held = {"holder": None, "expires_at": None}
        if lease is not None:
            held = {"holder": lease.holder, "expires_at": lease.expires_at}
        told.append({**_told(describe(waiting)), "state": ledger.state(image_id, now=now), **held})
    return {"images": told}


@router.post("/next", summary="Reserve the next image")
def reserve_next(params: dict[str, Any] | None = None, user: User = Annotator) -> dict[str, Any]:
    """The next image for the sender, and until when it is theirs; empty where none is left."""
    body = parse_body(NextBody, params)
    workspace, holder, now = app_instance().workspace, user_name(user, body.sender), time.time()
    chosen = next_image(workspace, holder, strategy=body.strategy, now=now)
    if chosen is None:
        return {}
    return {**_told(chosen), "holder": holder, "expires_at": now + workspace.settings.lease_s}


@router.post("/release", summary="Give images back before their time is over")
def release(params: dict[str, Any] | None = None, user: User = Annotator) -> dict[str, Any]:
    """Give back one image or all that the sender holds, or that `holder` does; where one has to log in, others' images
    are an administrator's to give back.
    """
    body = parse_body(ReleaseBody, params)
    name = user_name(user, body.sender)
    holder = name if body.holder is None else body.holder
    is_admin = not host_settings.MONAI_LABEL_AUTH_ENABLE or host_settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles
    if holder != name and not is_admin:
        raise RequestError(f"only an administrator gives back what {holder[:80]!r} holds; you are {name!r}")
    store = app_instance().workspace.store
    if body.image is not None:
        store.find_image(body.image)
    return {"holder": holder, "released": store.ledger.release(holder, body.image, now=time.time())}


def _told(image: NextImage) -> dict[str, Any]:
    return {
        "image": image.image_id,
        "score": image.score,
        "expected_dice": image.expected_dice,
        "expected_dice_interval": [image.expected_dice_low, image.expected_dice_high],
        "expected_dice_is_prior": image.is_prior,
        "reasons": image.reasons,
        "why": image.why,
    }
