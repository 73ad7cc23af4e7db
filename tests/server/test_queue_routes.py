"""The queue over HTTP, on two images without labels."""

import time

import pytest
from monailabel.config import settings as host_settings
from monailabel.endpoints.user import auth


@pytest.fixture(autouse=True)
def _worst_first(samcorrect_app):
    samcorrect_app.workspace.settings = samcorrect_app.workspace.settings.model_copy(update={"audit_share": 0})


def next_of(client, **body):
    return client.post("/samcorrect/next", json=body)


def test_the_next_image_is_reserved_until_its_time_is_over(client):
    before = time.time()
    told = next_of(client, client_id="ann").json()
    assert (told["image"], told["holder"], told["why"]) == ("a", "ann", "not scored yet")
    assert before + 1800 <= told["expires_at"] <= time.time() + 1800
    assert (told["score"], told["expected_dice"], told["expected_dice_is_prior"]) == (None, None, None)
    assert next_of(client, client_id="bob", strategy="random").json()["image"] == "ward/b"
    assert next_of(client, client_id="carl").json() == {}


def test_the_queue_says_who_has_what(client):
    next_of(client, client_id="ann")
    first, second = client.get("/samcorrect/queue").json()["images"]
    assert (first["image"], first["holder"], first["state"]) == ("a", "ann", "in review")
    assert (second["image"], second["holder"], second["expires_at"]) == ("ward/b", None, None)
    assert second["state"] == "unlabelled"
    assert [row["image"] for row in client.get("/samcorrect/queue?limit=1").json()["images"]] == ["a"]


def test_what_is_given_back_is_the_next_ones(client):
    next_of(client, client_id="ann")
    assert client.post("/samcorrect/release", json={"client_id": "bob"}).json() == {"holder": "bob", "released": []}
    given = {"client_id": "ann", "image": "ward/b"}
    assert client.post("/samcorrect/release", json=given).json()["released"] == []
    assert client.post("/samcorrect/release", json={**given, "image": "a"}).json()["released"] == ["a"]
    assert next_of(client, client_id="bob").json()["image"] == "a"
    # Without a login anybody may give back for somebody who is gone.
    told = client.post("/samcorrect/release", json={"client_id": "ann", "holder": "bob"}).json()
    assert told == {"holder": "bob", "released": ["a"]}


def test_behind_a_login_only_an_administrator_gives_back_for_others(client, monkeypatch):
    next_of(client, client_id="bob")
    monkeypatch.setattr(host_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    user = auth.User(username="ann", roles=[host_settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR])
    client.app.dependency_overrides[auth.get_current_user] = lambda: user
    refused = client.post("/samcorrect/release", json={"holder": "bob"})
    assert refused.status_code == 400
    assert refused.json()["detail"] == "only an administrator gives back what 'bob' holds; you are 'ann'"
    user.roles.append(host_settings.MONAI_LABEL_AUTH_ROLE_ADMIN)
    assert client.post("/samcorrect/release", json={"holder": "bob"}).json()["released"] == ["a"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("next", {"strategy": "best"}, 400, "no strategy 'best'"),
        ("next", {"strategie": "random"}, 400, "may hold user, client_id, strategy"),
        ("next", {"client_id": 5}, 400, "`client_id`: Input should be a valid string"),
        ("release", {"image": "nobody"}, 404, "no image 'nobody'"),
        ("release", {"image": "../a"}, 400, "../a"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(client, path, body, status, says):
    reply = client.post(f"/samcorrect/{path}", json=body)
    assert reply.status_code == status
    assert says in reply.json()["detail"]


@pytest.mark.parametrize("limit", ["0", "201", "x"])
def test_a_limit_out_of_range_is_refused(client, limit):
    assert client.get(f"/samcorrect/queue?limit={limit}").status_code == 422
