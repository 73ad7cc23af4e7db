import io
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from monailabel.config import settings as host_settings
from monailabel.endpoints.user.auth import User, get_current_user

from samcorrect.lib.compat.viewer_files import VIEWER_DIR
from samcorrect.lib.server import other_routes


class Asked(list):
    def __init__(self):
        super().__init__()
        self.hurries = threading.Event()


@pytest.fixture
def pacs(monkeypatch):
    """A server that notes the paths it is asked for, in place of the DICOMweb server that the studies are on.

    It answers `slow` once its attribute `hurries` is set.
    """
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if "slow" in self.path:
                asked.hurries.wait(10)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(host_settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{server.server_port}/dicom-web")
    yield asked
    asked.hurries.set()
    server.shutdown()
    server.server_close()


def test_without_a_pacs_nothing_is_handed_on(client):
    for method in ("GET", "POST"):
        reply = client.request(method, "/proxy/dicom/qido/studies")
        assert (reply.status_code, reply.json()["error"]) == (400, "RequestError")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("qido/studies", "/dicom-web/studies"),
        ("studies/1.2.3", "/dicom-web/studies/1.2.3"),
        ("qido/studies?PatientName=O%27Neil%20*&a=b&a=c,d", "/dicom-web/studies?PatientName=O%27Neil%20*&a=b&a=c,d"),
    ],
)
def test_paths_of_dicomweb_reach_the_pacs(client, pacs, path, asked):
    assert client.get(f"/proxy/dicom/{path}").json() == []
    assert pacs == [asked]


@pytest.mark.parametrize(
    "path", ["%2e%2e/system", "studies/%2e%2e/%2e%2e/system", "http://x@y/", "a%3Fb", "a%0d%0ab", "a%00"]
)
def test_other_paths_do_not(client, pacs, path):
    assert client.get(f"/proxy/dicom/{path}").status_code in (400, 404)
    assert pacs == []


def test_whoever_may_not_submit_labels_does_not_store_in_the_pacs_either(client, pacs, monkeypatch):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    user = User(username="eve", roles=[host_settings.MONAI_LABEL_AUTH_ROLE_USER])
    monkeypatch.setitem(client.app.dependency_overrides, get_current_user, lambda: user)
    assert client.get("/proxy/dicom/qido/studies").status_code == 200
    assert client.post("/proxy/dicom/stow/studies", content=b"").status_code == 403
    assert pacs == ["/dicom-web/studies"]


def test_a_viewer_reads_and_writes_a_pacs_that_wants_a_login_by_the_servers(
    orthanc, open_app, client_of, make_series, monkeypatch
):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_DATASTORE_USERNAME", "sam")
    monkeypatch.setattr(host_settings, "MONAI_LABEL_DATASTORE_PASSWORD", "s3cret")
    with orthanc(users={"sam": "s3cret"}) as url:
        client = client_of(open_app(url))
        series = [make_series(np.zeros((1, 10, 12), np.uint16), PatientID=patient) for patient in ("P-1", "P-2")]
        for (instance,) in series:
            stored = client.post("/proxy/dicom/stow/studies", **stow_request(instance))
            assert (stored.status_code, stored.headers["Content-Type"]) == (200, "application/dicom+json")
        found = client.get("/proxy/dicom/qido/series?PatientID=P-1&includefield=00100020&limit=5")
        assert found.headers["Content-Type"] == "application/dicom+json"
        (entry,) = found.json()
        (wanted,) = series[0]
        assert entry["0020000E"]["Value"] == [wanted.SeriesInstanceUID]
        path = f"/proxy/dicom/wado/studies/{wanted.StudyInstanceUID}"
        part = client.get(path, headers={"Accept": 'multipart/related; type="application/dicom"'})
        assert part.headers["Content-Type"].startswith("multipart/related")
        assert b"DICM" in part.content
        assert client.get("/proxy/dicom/studies/1.2.3").status_code == 404

        monkeypatch.setattr(host_settings, "MONAI_LABEL_DATASTORE_PASSWORD", "wr0ng")
        refused = client.get("/proxy/dicom/qido/studies")
        assert (refused.status_code, "WWW-Authenticate" in refused.headers) == (502, False)
        assert "set MONAI_LABEL_DATASTORE_USERNAME" in refused.json()["detail"]
        assert "wr0ng" not in refused.text
    down = client.get("/proxy/dicom/qido/studies")
    assert down.status_code == 502
    assert down.json()["detail"].startswith(f"cannot reach the PACS at {url}")


def stow_request(instance):
    file = io.BytesIO()
    instance.save_as(file, write_like_original=False)
    content = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n--x--"
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    return {"content": content, "headers": {"Content-Type": kind, "Accept": "application/dicom+json"}}


def test_a_slow_pacs_holds_up_nobody_else_and_not_for_ever(client, pacs, monkeypatch):
    with client, ThreadPoolExecutor(1) as pool:  # one event loop for all requests, as in a server
        slow = pool.submit(client.get, "/proxy/dicom/qido/slow")
        while not pacs:
            time.sleep(0.01)
        assert client.post("/reload").status_code == 400
        assert not slow.done()
        pacs.hurries.set()
        assert slow.result().status_code == 200
    pacs.hurries.clear()
    monkeypatch.setattr(other_routes, "STREAM_TIMEOUT_S", 0.2)
    late = client.get("/proxy/dicom/qido/slow")
    assert (late.status_code, late.json()["detail"].endswith("does not answer in time")) == (504, True)


def test_the_end_of_the_log_is_read(client, tmp_path):
    logs = tmp_path / "state" / "logs"
    logs.mkdir()
    (logs / "app.log").write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert client.get("/logs/", params={"lines": 2, "logfile": "/etc/passwd"}).text == "two\nthree\n"


@pytest.mark.parametrize("lines", ["0", "-1", "10001", "9" * 40, "all"])
def test_a_log_has_an_end(client, lines):
    assert client.get("/logs/", params={"lines": lines}).status_code == 422


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="shows what happens without a GPU")
def test_a_server_without_a_gpu_says_so(client):
    reply = client.get("/logs/gpu")
    assert (reply.status_code, reply.json()["error"]) == (501, "DependencyError")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/model/sam"), ("DELETE", "/model/sam"), ("POST", "/reload")])
def test_what_only_an_administrator_at_the_machine_does_is_refused(client, method, path):
    reply = client.request(method, path)
    assert (reply.status_code, reply.json()["error"]) == (400, "RequestError")


def test_a_viewer_finds_its_files(client):
    nested = next(path for path in VIEWER_DIR.glob("*/*") if path.is_file())
    assert client.get(f"/ohif/{nested.relative_to(VIEWER_DIR).as_posix()}").content == nested.read_bytes()
    assert client.get("/ohif/viewer?x=1").content == (VIEWER_DIR / "index.html").read_bytes()
    assert client.get("/ohif/%2e%2e/%2e%2e/ohif.py").status_code == 400
