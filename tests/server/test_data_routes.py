import gzip
import hashlib
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import nibabel as nib
import numpy as np
import pytest
from monailabel.config import settings as host_settings
from monailabel.endpoints.user.auth import User, get_current_user
from PIL import Image

from samcorrect.lib.store.volumes import write_label_map

LABEL = nib.Nifti1Image(np.ones((16, 12, 1), np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes()


def picture(value=0):
    file = io.BytesIO()
    Image.fromarray(np.full((12, 16), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def submit(client, params="{}", **query):
    files = {"label": ("/tmp/of/slicer/label.nii", LABEL)}
    return client.put("/datastore/label", params={"image": "a", **query}, files=files, data={"params": params})


def test_the_user_of_a_submit_is_in_the_ledger(client, samcorrect_app):
    assert submit(client, '{"user": "bob", "client_id": "slicer-7"}').json() == {"image": "a", "label": "a"}
    assert samcorrect_app.workspace.store.label("a", "final").maker == "user:bob"
    submit(client, tag="draft")
    assert samcorrect_app.workspace.store.label("a", "draft").maker == "user:unknown"


def test_a_login_beats_what_the_params_say(client, samcorrect_app, monkeypatch):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    roles = [host_settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR]
    client.app.dependency_overrides[get_current_user] = lambda: User(username="ann", roles=roles)
    assert submit(client, '{"user": "bob", "client_id": "carl"}').status_code == 200
    assert samcorrect_app.workspace.store.label("a", "final").maker == "user:ann"
    noted = client.put("/datastore/image/info", params={"image": "a"}, data={"info": '{"user": "bob", "x": 1}'})
    assert noted.status_code == 200
    assert samcorrect_app.datastore().get_image_info("a") == {"user": "ann", "client_id": "ann", "x": 1}


def test_a_login_without_the_role_may_not_submit(client, samcorrect_app, monkeypatch):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    client.app.dependency_overrides[get_current_user] = lambda: User(username="eve", roles=["other"])
    reply = submit(client)
    assert (reply.status_code, reply.json()["error"]) == (403, "Forbidden")
    assert samcorrect_app.workspace.store.ledger.latest_label("a", "final") is None


@pytest.mark.parametrize("path", ["/datastore/image", "/datastore/"])
def test_an_image_is_added_under_its_id_or_its_name(client, samcorrect_app, path):
    files = {"file": ("x.png", picture())}
    assert client.put(path, params={"image": "ward/new"}, files=files).json() == {"image": "ward/new"}
    assert client.put(path, files=files).json() == {"image": "x"}
    assert samcorrect_app.datastore().list_images() == ["a", "ward/b", "ward/new", "x"]


def test_of_many_uploads_of_one_id_one_is_taken(client, samcorrect_app):
    pictures = [picture(value) for value in range(8)]

    def add(content):
        return client.put("/datastore/image", params={"image": "n"}, files={"file": ("n.png", content)}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(add, pictures))
    assert sorted(statuses) == [200] + [400] * 7
    stored = (samcorrect_app.workspace.store.studies.folder / "n.png").read_bytes()
    assert stored == pictures[statuses.index(200)]


def test_an_image_that_is_fetched_from_the_pacs_holds_up_nobody_else(pacs_client, pacs_app, series, monkeypatch):
    """Neither does a label that is numbered anew, for which its image is needed."""
    store, began, goes_on = pacs_app.workspace.store, Event(), Event()
    image = store.read_image(series)
    write_label_map(store.state_dir / "label.nii.gz", np.ones(image.array.shape, np.uint8), image.affine)
    info = {"label_info": [{"name": "cyst", "idx": 1}]}
    pacs_app.datastore().save_label(series, str(store.state_dir / "label.nii.gz"), "final", info)
    file = store.studies.file

    def fetch_slowly(path):
        began.set()
        goes_on.wait(10)
        store.studies.cache_dir.joinpath(path).unlink(missing_ok=True)
        return file(path)

    monkeypatch.setattr(store.studies, "file", fetch_slowly)
    with pacs_client, ThreadPoolExecutor(1) as pool:  # one event loop for all requests, as in a server
        original = f"label?image={series}&label={series}&tag=original"
        for method, path in (("GET", f"image?image={series}"), ("HEAD", original), ("GET", original)):
            began.clear()
            goes_on.clear()
            shutil.rmtree(store.state_dir / "cache" / "canonical", ignore_errors=True)
            slow = pool.submit(pacs_client.request, method, f"/datastore/{path}")
            assert began.wait(30)
            assert pacs_client.get("/datastore/").json()["total"] == 1
            assert not slow.done()
            goes_on.set()
            assert slow.result().status_code == 200
            if method == "GET":
                assert nib.Nifti1Image.from_bytes(gzip.decompress(slow.result().content)).shape == (12, 10, 3)


@pytest.mark.parametrize("path", ["image/info?image=", "label/info?tag=final&label="])
def test_an_id_that_the_pacs_is_asked_about_holds_up_nobody_else(pacs_client, pacs_app, series, monkeypatch, path):
    began, goes_on, find = Event(), Event(), pacs_app.workspace.store.studies.find

    def ask_slowly(image_id):
        began.set()
        goes_on.wait(10)
        return find(image_id)

    with pacs_client, ThreadPoolExecutor(1) as pool:  # one event loop for all requests, as in a server
        monkeypatch.setattr(pacs_app.workspace.store.studies, "find", ask_slowly)
        slow = pool.submit(pacs_client.get, f"/datastore/{path}1.2.3")
        assert began.wait(30)
        assert pacs_client.get("/datastore/").json()["total"] == 1
        assert not slow.done()
        goes_on.set()
        assert slow.result().status_code == 404
    assert pacs_client.get(f"/datastore/image/info?image={series}").json() == {}


@pytest.mark.parametrize(("algorithm", "prefix"), [("sha256", "SHA256:"), ("sha256", ""), ("md5", "MD5:")])
def test_a_checksum_is_compared(client, samcorrect_app, algorithm, prefix):
    with open(samcorrect_app.datastore().get_image_uri("a"), "rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
    asked = {"image": "a", "check_sum": prefix + digest}
    assert client.head("/datastore/image", params=asked).status_code == 200
    changed = {**asked, "check_sum": prefix + "0" * len(digest)}
    assert client.head("/datastore/image", params=changed).status_code == 404
    assert client.head("/datastore/image", params={**asked, "check_sum": "CRC:1"}).status_code == 400


@pytest.mark.parametrize(("path", "field"), [("label/info", "info"), ("updatelabelinfo", "params")])
def test_a_note_about_a_label_keeps_its_provenance(client, samcorrect_app, path, field):
    submit(client, '{"user": "bob"}')
    noted = client.put(
        f"/datastore/{path}", params={"label": "a", "tag": "final"}, data={field: '{"maker": "sam", "user": "eve"}'}
    )
    assert noted.status_code == 200
    info = samcorrect_app.datastore().get_label_info("a", "final")
    assert info["maker"] == "user:bob"
    assert info["viewer"] == {"maker": "sam", "user": "eve", "client_id": "eve"}


def test_a_refused_write_is_in_the_audit_log_without_what_was_sent_and_a_refused_read_is_not(client, samcorrect_app):
    ledger = samcorrect_app.workspace.store.ledger
    before = len(list(ledger.audit_rows()))
    assert client.put("/datastore/image/info?image=Jane%20Doe", data={"info": "{}"}).status_code == 404
    assert client.put("/datastore/image/info?image=a", data={"info": "[]"}).status_code == 400
    assert client.head("/datastore/image?image=nobody").status_code == 404
    unknown, known = list(ledger.audit_rows())[before:]
    assert (unknown.event, unknown.image_id, known.image_id) == ("request refused", None, "a")
    assert json.loads(known.details)["route"] == "/datastore/image/info"
    assert "Jane" not in unknown.details + unknown.actor
