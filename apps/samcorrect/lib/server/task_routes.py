"""Routes that run models and stages, in place of the host's: what they are asked is checked before anything starts."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, File, Form, UploadFile
from monailabel.endpoints import batch_infer, infer, scoring, train
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance

from samcorrect.lib.compat.infer import refuse_whole_slides
from samcorrect.lib.compat.json_objects import check_json_object, parse_json_object
from samcorrect.lib.compat.task_params import check_task_params, refuse_keys
from samcorrect.lib.errors import RequestError, UnknownModelError
from samcorrect.lib.infers.batch import check_batch_request
from samcorrect.lib.scoring.tasks import parse_full
from samcorrect.lib.server.access import Admin, Annotator, Viewer, with_user
from samcorrect.lib.server.session_routes import require_session
from samcorrect.lib.trainers.student import parse_steps

router = APIRouter()

IMAGES_ASKED = [kind.value for kind in BatchInferImageType]


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
    if label is not None:
        raise RequestError("no model here takes a label with the request; prompts are sent in `params`")
    if output is infer.ResultType.dicom_seg:
        raise RequestError("masks are not written as DICOM SEG here; `output` is image, json or all")
    if session_id:
        require_session(session_id)
    elif not image:
        raise RequestError("name an image of the store with `image`, or an upload session with `session_id`")
    given = with_user(user, parse_json_object(params, "params"))
    refuse_keys(given, ("model", "image", "image_id", "session"))
    return infer.run_inference(background_tasks, model, image, session_id, json.dumps(given), None, None, output)


@router.post("/infer/wsi/{model}", tags=["Infer"], include_in_schema=False)
@router.post("/infer/wsi_v2/{model}", tags=["Infer"], include_in_schema=False)
def run_infer_wsi(model: str, user: User = Viewer) -> None:
    """Raises RequestError."""
    refuse_whole_slides()


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="Reserve the next image for a client")
def next_sample(strategy: str, params: dict[str, Any] | None = None, user: User = Viewer) -> dict[str, Any]:
    """The next image, with what clients noted about it; empty where none is left."""
    app = app_instance()
    given = with_user(user, check_json_object(params or {}, "params"))
    sample = app.next_sample({**given, "strategy": strategy})
    # A note never takes the place of what the strategy says: a viewer opens the `path` it is given.
    return {**app.datastore().get_image_info(sample["id"]), **sample} if sample else {}


@router.post("/scoring/", tags=["Scoring"], include_in_schema=False)
def run_all_scoring(
    params: dict[str, Any] | None = None, run_sync: bool = False, user: User = Annotator
) -> dict[str, Any]:
    """Start every scoring method; `params` may hold an object for each."""
    checked = check_task_params(params, reserved=("method",))
    for entry in [checked, *_check_entries(checked, app_instance().info()["scoring"], "method")]:
        parse_full(entry.get("full"))
    return scoring.run(checked, run_sync)


@router.post("/scoring/{method}", tags=["Scoring"], summary="Run a scoring method")
def run_scoring(
    method: str, params: dict[str, Any] | None = None, run_sync: bool = False, user: User = Annotator
) -> Any:
    """Start a scoring method; GET /scoring/ says how far it is."""
    _require("scoring method", method, app_instance().info()["scoring"])
    checked = check_task_params(params, reserved=("method",))
    parse_full(checked.get("full"))
    return scoring.run_method(method, checked, run_sync)


@router.post("/train/", tags=["Train"], include_in_schema=False)
def run_all_training(
    params: dict[str, Any] | None = None, run_sync: bool = False, user: User = Admin
) -> dict[str, Any]:
    """Start every training; `params` may hold an object for each."""
    checked = check_task_params(params, reserved=("model",))
    for entry in [checked, *_check_entries(checked, app_instance().info()["trainers"], "model")]:
        parse_steps(entry.get("steps"))
    return train.run(checked, run_sync)


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
    checked = check_task_params(params, reserved=("model",))
    parse_steps(checked.get("steps"))
    return train.run_model(model, checked, run_sync, enqueue)


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Make pseudo-labels")
def run_batch_infer(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    user: User = Admin,
) -> Any:
    """Start pseudo-labelling; GET /batch/infer says how far it is. `images` among the params may be a list of ids."""
    checked = check_task_params(params, reserved=("model",))
    check_batch_request({"model": model, **checked})
    _check_images(checked.get("images", images.value))
    return batch_infer.run(model, images, checked, run_sync)


def _require(kind: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise UnknownModelError(f"no {kind} {name[:80]!r}; there are {', '.join(known) or 'none'}")


def _check_entries(params: Mapping[str, Any], names: Mapping[str, Any], reserved: str) -> list[dict[str, Any]]:
    return [check_task_params(params[name], reserved=(reserved,)) for name in names if name in params]


def _check_images(images: object) -> None:
    if images in IMAGES_ASKED:
        return
    if not isinstance(images, list) or not all(isinstance(image_id, str) for image_id in images):
        raise RequestError(f"`images` is one of {', '.join(IMAGES_ASKED)} or a list of image ids; got {images!r:.80}")
    for image_id in images:
        app_instance().datastore().get_image_info(image_id)
