import json

import pytest
from fastapi import FastAPI, UploadFile
from fastapi.testclient import TestClient

from samcorrect.lib.compat.body_limit import MAX_JSON_BYTES, limit_bodies
from samcorrect.lib.server.errors import add_error_handlers

LIMIT = 4096


@pytest.fixture
def client():
    app = FastAPI()
    limit_bodies(app, LIMIT)
    add_error_handlers(app)

    @app.put("/upload")
    def upload(file: UploadFile) -> int:
        return file.size

    @app.post("/json")
    def take(params: dict) -> int:
        return len(params["a"])

    return TestClient(app)


def test_an_upload_below_the_limit_passes(client):
    assert client.put("/upload", files={"file": b"x" * 3000}).json() == 3000


def test_a_claim_over_the_limit_is_413(client):
    reply = client.put("/upload", files={"file": b"x" * 5000})
    assert reply.status_code == 413
    assert "an upload has at most 4096 bytes" in reply.json()["detail"]
    assert "max_upload_mb" in reply.json()["detail"]


def test_a_body_without_a_claim_is_413_as_soon_as_it_is_over(client):
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

    def chunks():
        yield start
        for _ in range(100):
            yield b"x" * 1000

    reply = client.put("/upload", content=chunks(), headers=head)
    assert reply.status_code == 413


@pytest.mark.parametrize(("n_chars", "status"), [(MAX_JSON_BYTES - 20, 200), (MAX_JSON_BYTES, 413)])
def test_json_has_a_limit_of_its_own(client, n_chars, status):
    reply = client.post("/json", content=json.dumps({"a": "x" * n_chars}), headers={"Content-Type": "application/json"})
    assert reply.status_code == status


def test_params_that_claim_to_be_an_upload_have_the_limit_of_params(client):
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/json", content=b"x" * (MAX_JSON_BYTES + 1), headers=head).status_code == 413
