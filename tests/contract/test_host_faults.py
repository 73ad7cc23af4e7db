"""Each fault of MONAI Label 0.8.5 that lib/compat mends: first that the host has it, then that the mend holds."""

import os
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from fastapi.background import BackgroundTasks
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.testclient import TestClient
from monailabel.app import app as host_application
from monailabel.config import settings as host_settings
from monailabel.endpoints.infer import send_response
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.utils.async_tasks.utils import run_background_task
from monailabel.utils.sessions import Sessions

from samcorrect.lib.compat.auto_scoring import disable_auto_scoring
from samcorrect.lib.compat.background_tasks import ensure_pythonpath
from samcorrect.lib.compat.cross_origin import forbid_other_origins
from samcorrect.lib.compat.infer import confined_infer, refuse_whole_slides
from samcorrect.lib.compat.sessions import keep_sessions_in
from samcorrect.lib.errors import LabelError, RequestError, UnknownImageError, UnknownModelError
from samcorrect.lib.server.errors import add_error_handlers


def test_background_task_dies_unseen_without_pythonpath(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    task = run_background_task({}, "contract")
    time.sleep(0.5)
    assert task["status"] == "SUBMITTED"  # the host: for ever

    ensure_pythonpath()
    assert os.environ["PYTHONPATH"] == ""


def test_pythonpath_that_is_set_is_kept(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    ensure_pythonpath()
    assert os.environ["PYTHONPATH"] == "/somewhere"


def test_scoring_runs_after_each_next_sample(host_app):
    host_app.next_sample({"strategy": "random"})
    assert host_app.n_scorings == 1  # the host

    disable_auto_scoring(host_app)
    host_app.next_sample({"strategy": "random"})
    assert host_app.n_scorings == 1


def test_infer_opens_any_path(host_app, tmp_path, echo_task):
    secret = tmp_path / "secret.txt"
    secret.write_text("not in the store")
    host_app.infer({"model": "echo", "image": str(secret)})
    assert host_app._infers["echo"].seen == [str(secret)]  # the host

    with pytest.raises(RequestError, match="not an image id"):
        _confined(echo_task, str(secret))
    assert echo_task.seen == []


def test_infer_writes_final_labels(host_app, tmp_path):
    host_app.infer({"model": "echo", "image": "a", "save_label": True, "label_tag": "final"})
    assert (tmp_path / "studies" / "labels" / "final" / "a.nii.gz").is_file()  # the host; ours: test_request.py


def test_confined_infer_takes_ids_and_session_images(tmp_path, echo_task):
    session_image = tmp_path / "sessions" / "s1" / "x.png"
    session_image.parent.mkdir(parents=True)
    session_image.touch()
    assert _confined(echo_task, "a")["file"]
    assert _confined(echo_task, str(session_image), sessions_dir=tmp_path / "sessions")["file"]
    assert echo_task.seen == ["/studies/a.png", str(session_image.resolve())]


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        ("../x", RequestError, "not an image id"),
        ("b", UnknownImageError, "b"),
        ("", RequestError, "`image` is the id"),
        (["a"], RequestError, "got list"),
        ("sessions/../../etc/passwd", RequestError, "not an image id"),
    ],
)
def test_confined_infer_refuses_other_images(tmp_path, echo_task, image, error, says):
    with pytest.raises(error, match=says):
        _confined(echo_task, image, sessions_dir=tmp_path / "sessions")


def test_confined_infer_refuses_a_path_that_leaves_the_sessions_folder(tmp_path, echo_task):
    with pytest.raises(RequestError, match="not an image id"):
        _confined(echo_task, str(tmp_path / "sessions" / ".." / "x.png"), sessions_dir=tmp_path / "sessions")


@pytest.mark.parametrize("model", ["nope", None, ["echo"]])
def test_confined_infer_refuses_other_models(echo_task, model):
    with pytest.raises(UnknownModelError, match="served are echo"):
        confined_infer({"echo": echo_task}, {"model": model, "image": "a"}, find_image=_find_image, sessions_dir=None)


def test_whole_slides_are_refused():
    with pytest.raises(RequestError, match="whole-slide"):
        refuse_whole_slides()


def test_host_deletes_the_file_that_an_infer_returns(tmp_path):
    stored = tmp_path / "label.nii.gz"
    stored.write_bytes(b"a stored label")
    tasks = BackgroundTasks()
    send_response(None, {"file": str(stored), "params": {}}, "json", tasks)
    TestClient(_application_that_runs(tasks)).get("/")
    assert not stored.exists()  # the host; ours: test_slicer_session.py


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_host_batch_inference_divides_by_zero_without_a_gpu():
    with pytest.raises(ZeroDivisionError):
        BatchInferTask()({"images": ["a"]}, None, None)


def test_other_origins_may_call_the_host():
    reply = TestClient(host_application).options(
        "/info/", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    )
    assert reply.headers["access-control-allow-origin"] == "http://evil.example"  # the host
    assert reply.headers["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize(("allowed", "is_open"), [([], False), (["http://viewer.example"], True)])
def test_other_origins_are_forbidden_unless_named(allowed, is_open):
    rule = Middleware(CORSMiddleware, allow_origins=allowed or ["*"], allow_credentials=True)
    application = FastAPI(middleware=[rule])
    forbid_other_origins(application, allowed)
    reply = TestClient(application).get("/openapi.json", headers={"Origin": "http://viewer.example"})
    assert ("access-control-allow-origin" in reply.headers) is is_open


def test_host_answers_every_error_with_a_bare_500(monkeypatch, tmp_path):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_APP_DIR", str(tmp_path))
    reply = TestClient(host_application, raise_server_exceptions=False).get("/info/")
    assert (reply.status_code, reply.text) == (500, "Internal Server Error")  # the host


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (UnknownImageError("no image 'x'"), 404, {"error": "UnknownImageError", "detail": "no image 'x'"}),
        (LabelError("not a label"), 422, {"error": "LabelError", "detail": "not a label"}),
        (MONAILabelException(MONAILabelError.INVALID_INPUT, "bad"), 400, {"error": "INVALID_INPUT", "detail": "bad"}),
        (RuntimeError("secret"), 500, {"error": "InternalError"}),
    ],
)
def test_errors_are_json_that_names_them(error, status, body):
    application = FastAPI()
    add_error_handlers(application)

    @application.get("/")
    def fail():
        raise error

    reply = TestClient(application, raise_server_exceptions=False).get("/")
    assert reply.status_code == status
    assert body.items() <= reply.json().items()
    assert "secret" not in reply.text


@pytest.mark.parametrize(("is_rebuilt", "status"), [(False, 500), (True, 404)])
def test_handlers_added_in_the_lifespan_need_a_new_middleware_stack(is_rebuilt, status):
    @asynccontextmanager
    async def lifespan(application):
        add_error_handlers(application)
        if is_rebuilt:
            application.middleware_stack = None
        yield

    application = FastAPI(lifespan=lifespan)

    @application.get("/")
    def fail():
        raise UnknownImageError("x")

    with TestClient(application, raise_server_exceptions=False) as client:
        assert client.get("/").status_code == status


def test_sessions_are_kept_in_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_SESSION_PATH", "")
    assert Path(Sessions(host_settings.MONAI_LABEL_SESSION_PATH).store_path).is_relative_to(Path.home())  # the host
    keep_sessions_in(tmp_path)
    assert str(tmp_path / "sessions") == host_settings.MONAI_LABEL_SESSION_PATH
    keep_sessions_in(tmp_path / "other")
    assert str(tmp_path / "sessions") == host_settings.MONAI_LABEL_SESSION_PATH


def _find_image(image_id):
    if image_id == "a":
        return "/studies/a.png"
    if image_id == "b":
        raise UnknownImageError("no image b")
    raise RequestError(f"{image_id} is not an image id")


def _confined(echo_task, image, sessions_dir=None):
    request = {"model": "echo", "image": image}
    return confined_infer({"echo": echo_task}, request, find_image=_find_image, sessions_dir=sessions_dir)


def _application_that_runs(tasks):
    application = FastAPI()

    @application.get("/")
    async def run():
        await tasks()

    return application
