"""Upload sessions: one image that is not in the store, kept for a while so that models can be run on it.

In place of the host's (`endpoints/session.py`), which joins the client's file name and session id to folders, and
unpacks archives without looking (`tarfile` follows `../` and links, and a bomb fills the disk).
"""

import re
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, File, UploadFile
from monailabel.endpoints import session
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.errors import RequestError, UnknownImageError
from samcorrect.lib.server.access import Viewer
from samcorrect.lib.server.uploads import only_upload, private_upload
from samcorrect.lib.store.volumes import read_image

router = APIRouter(prefix="/session", tags=["Session"])

SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@router.put("/", summary="Open a session with an image")
def open_session(
    files: Annotated[list[UploadFile], File()], uncompress: bool = False, expiry: int = 0, user: User = Viewer
) -> dict[str, Any]:
    """Keep an image for `expiry` seconds after its last use, or for the longest time that the server allows."""
    if uncompress:
        raise RequestError("a session takes one image as it is; archives are not unpacked (`uncompress`)")
    sessions = _sessions()
    with private_upload(only_upload(files, "files")) as path:
        read_image(path)
        session_id, info = sessions.add_session(str(path), expiry, session_id=str(uuid.uuid4()))
    return {"session_id": session_id, "session_info": info.to_json()}


@router.get("/{session_id}", summary="Ask about a session")
def get_session(session_id: str, update_ts: bool = False, image: bool = False, user: User = Viewer) -> Any:
    """What is known of the session, or its image."""
    require_session(session_id)
    return session.get_session(session_id, update_ts, image)


@router.delete("/{session_id}", summary="Close a session")
def close_session(session_id: str, user: User = Viewer) -> Any:
    """Delete the session and its image."""
    require_session(session_id)
    return session.remove_session(session_id)


def require_session(session_id: str) -> None:
    """Raises RequestError where `session_id` cannot name a session, and UnknownImageError where it names none."""
    if not SESSION_ID.fullmatch(session_id):
        raise RequestError(f"{session_id[:80]!r} is not the id of a session: PUT /session/ gives one")
    if _sessions().get_session(session_id, update_ts=False) is None:
        raise UnknownImageError(f"no session {session_id}; it may have expired")


def _sessions() -> Any:
    sessions = app_instance().sessions()
    if sessions is None:
        raise RequestError("this server keeps no sessions (MONAI_LABEL_SESSIONS is off)")
    return sessions
