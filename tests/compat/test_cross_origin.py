import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from samcorrect.lib.compat.cross_origin import forbid_other_origins

ALLOWED = "http://viewer.example"


@pytest.fixture
def client():
    app = FastAPI()
    forbid_other_origins(app, [f"{ALLOWED}/"])

    @app.api_route("/", methods=["GET", "POST"])
    def answer() -> str:
        return "done"

    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": ALLOWED, "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_programs_and_our_own_pages_may_write(client, headers):
    assert client.post("/", headers=headers).json() == "done"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8001"},
        {"Origin": "null"},
        {"Origin": "http://[evil"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_pages_may_only_read(client, headers):
    reply = client.post("/", headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (403, "Forbidden")
    assert client.get("/", headers=headers).json() == "done"


def test_the_application_is_told_of_what_it_did_not_see(client):
    told = []
    client.app.state.on_refusal = lambda *refusal: told.append(refusal)
    client.post("/?image=Jane", headers={"Origin": "http://evil.example"})
    client.get("/", headers={"Origin": "http://evil.example"})
    assert told == [("POST", "unknown route", 403, "Forbidden", "testclient", None)]
