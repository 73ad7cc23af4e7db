"""Routes in place of the host's, where it would start a background task that dies unseen or fail on bad params."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, File, Form, UploadFile
from monailabel.config import settings as host_settings
from monailabel.endpoints import batch_infer, infer, scoring, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.errors import RequestError, UnknownModelError
from samcorrect.lib.infers.batch import check_batch_request

router = APIRouter()
Admin = Depends(RBAC(host_settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
Viewer = Depends(RBAC(host_settings.MONAI_LABEL_AUTH_ROLE_USER))
Annotator = Depends(RBAC(host_settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


def add_routes(app: FastAPI) -> None:
    """Put our routes before those of the host."""
    n_routes = len(app.router.routes)
    app.include_router(router, prefix=host_settings.MONAI_LABEL_API_STR)
    routes = app.router.routes
    routes[:] = routes[n_routes:] + routes[:n_routes]


@router.post("/infer/{model}", tags=["Infer"], summary="Run a model on an image")
def run_infer(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
    user: User = Viewer,
) -> Any:
    """Run a model on an image of the store or of an upload session."""
    if file is not None:
        raise RequestError("an image is not sent with the request: add it with PUT /datastore/image, or open a session")
    if not isinstance(json.loads(params), dict):
        raise RequestError(f"`params` is a JSON object; got {params!r:.80}")
    return infer.run_inference(background_tasks, model, image, session_id, params, None, label, output)


@router.post("/scoring/{method}", tags=["Scoring"], summary="Run a scoring method")
def run_scoring(
    method: str, params: dict[str, Any] | None = None, run_sync: bool = False, user: User = Annotator
) -> Any:
    """Start a scoring method; GET /scoring/ says how far it is."""
    _require("scoring method", method, app_instance().info()["scoring"])
    return scoring.run_method(method, params, run_sync)


@router.post("/train/{model}", tags=["Train"], summary="Train a model")
def run_training(
    model: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
    user: User = Admin,
) -> Any:
    """Start a training; GET /train/ says how far it is."""
    _require("trainer", model, app_instance().info()["trainers"])
    return train.run_model(model, params, run_sync, enqueue)


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Make pseudo-labels")
def run_batch_infer(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    user: User = Admin,
) -> Any:
    """Start pseudo-labelling; GET /batch/infer says how far it is."""
    check_batch_request({"model": model, **(params or {})})
    return batch_infer.run(model, images, params or {}, run_sync)


def _require(kind: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise UnknownModelError(f"no {kind} {name[:80]!r}; there are {', '.join(known) or 'none'}")
