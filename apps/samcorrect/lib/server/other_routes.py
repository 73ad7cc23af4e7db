"""Routes of the host that write models, hand on requests, read logs or start over: mended, or refused with a reason."""

import re
import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from monailabel.config import settings as host_settings
from monailabel.endpoints import proxy
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.compat.viewer_files import viewer_file
from samcorrect.lib.errors import DependencyError, RequestError
from samcorrect.lib.server.access import Admin, Viewer

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


@router.api_route("/proxy/dicom/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def pass_to_pacs(request: Request, path: str, user: User = Viewer) -> Response:
    """Hand a viewer's request on to the DICOMweb server that the studies are on, and to no other."""
    if not host_settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise RequestError("the studies are a folder on this machine: there is no DICOMweb server to ask")
    parsed = DICOMWEB_PATH.fullmatch(path)
    if parsed is None or ".." in path:
        raise RequestError(f"{path[:80]!r} is not a path of DICOMweb")
    return await proxy.proxy_dicom(request, parsed["op"] or "", parsed["path"])


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
