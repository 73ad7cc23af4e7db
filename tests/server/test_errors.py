import logging

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from samcorrect.lib.errors import RequestError
from samcorrect.lib.server.errors import add_error_handlers


@pytest.fixture
def client():
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/take/{name}")
    def take(name: str, params: dict[str, int]) -> None:
        raise RequestError(f"not {name}")

    @app.put("/full")
    def fail() -> None:
        raise HTTPException(400, "There was an error parsing the body") from OSError(28, "No space left on device")

    return TestClient(app)


def test_logs_name_the_route_and_never_what_was_sent(client, caplog):
    caplog.set_level(logging.WARNING)
    assert client.post("/take/Doe%0AJane?id=Jane", json={}).json()["detail"] == "not Doe\nJane"
    client.get("/Jane%0Aforged")
    lines = [record.getMessage() for record in caplog.records if record.name == "samcorrect.lib.server.errors"]
    assert lines == ["POST /take/{name}: 400 RequestError", "GET unknown route: 404 Not Found"]


def test_a_body_that_finds_no_space_is_the_servers_fault(client):
    reply = client.put("/full")
    assert (reply.status_code, reply.json()["error"]) == (503, "StoreError")
    assert "No space left on device" in reply.json()["detail"]
