import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from monailabel.config import settings as host_settings

from samcorrect.lib.compat.viewer_files import VIEWER_DIR


@pytest.fixture
def pacs(monkeypatch):
    """A server that notes the paths it is asked for, in place of the DICOMweb server that the studies are on."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
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
    server.shutdown()
    server.server_close()


def test_without_a_pacs_nothing_is_handed_on(client):
    for method in ("GET", "POST"):
        reply = client.request(method, "/proxy/dicom/qido/studies")
        assert (reply.status_code, reply.json()["error"]) == (400, "RequestError")


@pytest.mark.parametrize(
    ("path", "asked"), [("qido/studies", "/dicom-web/studies"), ("studies/1.2.3", "/dicom-web/studies/1.2.3")]
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
