"""Faults of MONAI Label 0.8.5 in what it does with a request: first that the host has it, then that the mend holds."""

import io
import logging
import tarfile
import tempfile
from pathlib import Path

import pytest
from fastapi import FastAPI, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from monailabel.app import app as host_application
from monailabel.config import settings as host_settings
from monailabel.endpoints import activelearning, datastore, ohif
from monailabel.endpoints import infer as infer_endpoint
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils import app as host_apps
from monailabel.utils.async_tasks import utils as async_tasks
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.sessions import Sessions

from samcorrect.lib.compat.body_limit import MAX_JSON_BYTES, limit_bodies
from samcorrect.lib.compat.cross_origin import forbid_other_origins
from samcorrect.lib.compat.json_objects import parse_json_object
from samcorrect.lib.compat.quiet_logs import silence_host_logs
from samcorrect.lib.compat.task_params import check_task_params
from samcorrect.lib.compat.viewer_files import viewer_file
from samcorrect.lib.errors import LabelError, RequestError
from samcorrect.lib.server.uploads import private_upload


@pytest.fixture
def served_host_app(host_app, monkeypatch):
    """The host's own app, as its endpoints find it."""
    monkeypatch.setattr(host_app, "info", dict)  # its tasks are no whole tasks
    monkeypatch.setattr(host_settings, "MONAI_LABEL_APP_DIR", host_app.app_dir)
    monkeypatch.setattr(host_settings, "MONAI_LABEL_STUDIES", host_app.studies)
    monkeypatch.setattr(host_apps, "apps", {f"{host_app.app_dir}{host_app.studies}": host_app})
    return host_app


def test_an_info_that_is_no_object_is_a_crash(served_host_app):
    with pytest.raises(TypeError):
        datastore.update_image_info("a", "[]", "user")  # the host
    with pytest.raises(RequestError, match="JSON object"):
        parse_json_object("[]", "info")


def test_an_info_that_no_reply_can_hold_is_kept(served_host_app):
    text = '{"score": NaN}'
    datastore.update_image_info("a", text, None)
    with pytest.raises(ValueError, match="not JSON compliant"):
        JSONResponse(datastore.get_image_info("a"))  # the host: from now on
    with pytest.raises(RequestError, match="number nan"):
        parse_json_object(text, "info")


def test_a_note_replaces_the_id_of_the_next_sample(served_host_app):
    datastore.update_image_info("a", '{"id": "../x"}', None)
    assert activelearning.sample("random")["id"] == "../x"  # the host; ours: test_task_routes.py


def test_a_body_may_have_any_size():
    def post(application):
        @application.post("/")
        def take(params: dict) -> int:
            return len(params)

        return TestClient(application).post("/", json={"a": "x" * MAX_JSON_BYTES}).status_code

    assert host_application.user_middleware[0].cls.__name__ == "CORSMiddleware"  # the host: nothing else
    assert len(host_application.user_middleware) == 1
    assert post(FastAPI()) == 200
    limited = FastAPI()
    limit_bodies(limited, 1)
    assert post(limited) == 413


def test_a_page_of_another_origin_may_start_things(served_host_app):
    evil = {"Origin": "http://evil.example"}
    assert TestClient(host_application).post("/reload", headers=evil).status_code == 200  # the host
    closed = FastAPI()
    forbid_other_origins(closed, [])
    assert TestClient(closed).post("/reload", headers=evil).status_code == 403


def test_requests_are_logged_with_the_names_of_patients(served_host_app, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("monailabel"), "level", logging.NOTSET)
    caplog.set_level(logging.INFO)
    datastore.update_image_info("a", "{}", "ann")
    assert "Update Image Info: a by ann" in caplog.text  # the host

    caplog.clear()
    silence_host_logs()
    datastore.update_image_info("a", "{}", "ann")
    assert caplog.text == ""


def test_a_level_that_was_set_for_the_host_stays(monkeypatch):
    monkeypatch.setattr(logging.getLogger("monailabel"), "level", logging.DEBUG)
    silence_host_logs()
    assert logging.getLogger("monailabel").level == logging.DEBUG


def test_params_name_another_method_than_the_path(served_host_app):
    with pytest.raises(MONAILabelException) as caught:
        AsyncTask.run("scoring", request={"method": "slow"}, params={"method": "other"}, force_sync=True)
    assert "'other'" in caught.value.msg  # the host
    with pytest.raises(RequestError, match="`method`"):
        check_task_params({"method": "other"}, reserved=("method",))


def test_params_put_code_into_the_background_process(monkeypatch, tmp_path):
    environments = []

    def popen(_command, env, **_options):
        environments.append(env)
        raise OSError("enough")

    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(async_tasks.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="enough"):
        async_tasks.run_background_task({"bundle_path": str(tmp_path)}, "contract_bundle", debug=True)
    assert environments[0]["PYTHONPATH"].endswith(str(tmp_path))  # the host
    with pytest.raises(RequestError, match="`bundle_path`"):
        check_task_params({"bundle_path": str(tmp_path)})


def test_the_viewer_does_not_find_its_files_and_serves_a_folder():
    nested = next(path for path in (Path(ohif.__file__).parent / "static" / "ohif").glob("*/*") if path.is_file())
    asked = f"{nested.parent.name}/{nested.name}"
    assert Path(ohif.get_ohif(asked).path).name == "index.html"  # the host
    assert Path(ohif.get_ohif("..").path).is_dir()
    assert viewer_file(asked) == nested
    with pytest.raises(RequestError, match="leaves"):
        viewer_file("..")


def test_refused_upload_stays_in_the_temporary_folder(served_host_app, tmp_path, monkeypatch):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(uploads))
    upload = UploadFile(io.BytesIO(b"label"), filename="label.nii.gz")
    with pytest.raises(MONAILabelException):
        datastore.save_label(BackgroundTasks(), "nope", "{}", "final", upload)
    (left,) = uploads.iterdir()  # the host
    left.unlink()

    with pytest.raises(LabelError), private_upload(upload):
        raise LabelError("refused")
    assert list(uploads.iterdir()) == []


def test_mask_as_dicom_seg_is_made_and_then_forgotten(served_host_app, tmp_path, monkeypatch):
    masks = tmp_path / "masks"
    masks.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(masks))
    with pytest.raises(infer_endpoint.HTTPException) as caught:
        infer_endpoint.run_inference(BackgroundTasks(), "echo", "a", "", "{}", None, None, "dicom_seg")
    assert caught.value.status_code == 500  # the host; ours: test_task_routes.py
    assert len(list(masks.iterdir())) == 1


def test_an_archive_of_a_session_is_unpacked_outside_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("../../evil.txt")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    Sessions(str(tmp_path / "sessions")).add_session(str(tmp_path / "a.tar"), uncompress=True)
    assert (tmp_path / "evil.txt").read_bytes() == b"evil"  # the host; ours: test_session_routes.py


def test_a_dangling_session_of_any_name_is_deleted(tmp_path):
    sessions = Sessions(str(tmp_path / "state" / "sessions"))
    (tmp_path / "state" / "sessions").mkdir(parents=True)
    (tmp_path / "state" / "meta.info").write_text('{"image": "/gone"}', encoding="utf-8")
    sessions.get_session("..")
    assert list((tmp_path / "state").iterdir()) == []  # the host; ours: test_session_routes.py
