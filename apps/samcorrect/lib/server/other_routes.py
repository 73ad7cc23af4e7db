"""Routes of the host that write models, hand on requests, read logs or start over: mended, or refused with a reason."""

import re
import shutil
import subprocess
from collections import deque
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import requests
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from monailabel.config import settings as host_settings
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.compat.viewer_files import viewer_file
from samcorrect.lib.errors import DependencyError, RequestError
from samcorrect.lib.server.access import Admin, Annotator, Viewer
from samcorrect.lib.store.dicomweb import CONNECT_TIMEOUT_S, CREDENTIALS, STREAM_TIMEOUT_S
from samcorrect.lib.store.sources import pacs_login

router = APIRouter(tags=["Others"])

MAX_LOG_LINES = 10_000
DICOMWEB_PATH = re.compile(r"(?:(?P<op>wado|qido|stow)/)?(?P<path>[A-Za-z0-9_.,/-]*)")


@router.put("/model/{model}", include_in_schema=False)
@router.delete("/model/{model}", include_in_schema=False)
def refuse_model(model: str, user: User = Admin) -> None:
    """Raises RequestError: a model that comes over HTTP would pass no gate."""
    raise RequestError("models are neither written nor deleted over HTTP; use `samcorrect models import FILE`")


@router.post("/reload", include_in_schema=False)
def refuse_reload(user: User = Admin) -> None:
    """Raises RequestError: the host would open a second app on the same store."""
    raise RequestError("the app is not reloaded while it serves; restart the server")


async def _read_body(request: Request) -> bytes:
    return await request.body()


RequestBody = Depends(_read_body)


@router.get("/proxy/dicom/{path:path}", include_in_schema=False)
def ask_pacs(request: Request, path: str, user: User = Viewer) -> Response:
    """Hand a viewer's question on to the DICOMweb server that the studies are on, and to no other.

    In a thread, as all routes that wait for a PACS: on the event loop every client would wait for it.
    """
    return _pass_on(request, path)


@router.post("/proxy/dicom/{path:path}", include_in_schema=False)
def store_in_pacs(request: Request, path: str, user: User = Annotator, body: bytes = RequestBody) -> Response:
    """Hand on what a viewer stores. It is stored under the server's login, so whoever may not submit a label may not
    store either.
    """
    return _pass_on(request, path, body)


def _pass_on(request: Request, path: str, body: bytes = b"") -> Response:
    studies = host_settings.MONAI_LABEL_STUDIES
    if not studies.startswith(("http://", "https://")):
        raise RequestError("the studies are a folder on this machine: there is no DICOMweb server to ask")
    parsed = DICOMWEB_PATH.fullmatch(path)
    if parsed is None or ".." in path:
        raise RequestError(f"{path[:80]!r} is not a path of DICOMweb")
    # Some versions of OHIF ask for metadata by QIDO.
    op = "wado" if parsed["path"].endswith("metadata") and parsed["op"] == "qido" else parsed["op"]
    prefix = getattr(host_settings, f"MONAI_LABEL_{op.upper()}_PREFIX") if op else None
    url = "/".join(filter(None, (studies.rstrip("/"), prefix, parsed["path"])))
    told = _ask_pacs(request, url, body)
    kind = told.headers.get("Content-Type", "application/octet-stream")
    return Response(told.content, told.status_code, {"Content-Type": kind})


def _ask_pacs(request: Request, url: str, body: bytes) -> requests.Response:
    """The PACS's answer to a viewer's request, with the server's own login.

    Raises:
        HTTPException: 504 where it is late, 502 where it cannot be reached or refuses the login. Its cause is left out:
            one of OSError would pass for an upload that cannot be kept.
    """
    pacs = f"the PACS at {host_settings.MONAI_LABEL_STUDIES}"
    headers = {name: request.headers[name] for name in ("Accept", "Content-Type") if name in request.headers}
    asked = {"params": request.url.query, "data": body, "headers": headers, "auth": pacs_login()}
    try:
        reply = requests.request(request.method, url, **asked, timeout=(CONNECT_TIMEOUT_S, STREAM_TIMEOUT_S))
    except requests.Timeout:
        raise HTTPException(HTTPStatus.GATEWAY_TIMEOUT, f"{pacs} does not answer in time") from None
    except requests.RequestException as error:
        reason = type(error).__name__
        raise HTTPException(HTTPStatus.BAD_GATEWAY, f"cannot reach {pacs} ({reason}): check that it runs") from None
    if reply.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        # As it is, a browser would ask its user for a login to the PACS.
        refused = f"{pacs} refused the server's login (HTTP {reply.status_code}); set {CREDENTIALS}"
        raise HTTPException(HTTPStatus.BAD_GATEWAY, refused)
    return reply


@router.get("/logs/", summary="The last lines of the log")
def read_logs(lines: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 300, user: User = Admin) -> Response:
    """The end of `app.log`, as text."""
    folders = (app_instance().workspace.store.state_dir, Path(host_settings.MONAI_LABEL_APP_DIR))
    for path in (folder / "logs" / "app.log" for folder in folders):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                return PlainTextResponse("".join(deque(file, lines)))
    raise HTTPException(404, "this server writes no log file")


@router.get("/logs/gpu", summary="What nvidia-smi says")
def read_gpu(user: User = Admin) -> Response:
    """What `nvidia-smi` prints."""
    command = shutil.which("nvidia-smi")
    if command is None:
        raise DependencyError("nvidia-smi is not installed on the server: it has no NVIDIA GPU, or no driver")
    done = subprocess.run([command], capture_output=True, text=True, timeout=60, check=False)
    return PlainTextResponse(done.stdout)


@router.get("/ohif/{path:path}", include_in_schema=False)
def read_viewer(path: str, user: User = Viewer) -> Response:
    """A file of OHIF."""
    return FileResponse(viewer_file(path))
