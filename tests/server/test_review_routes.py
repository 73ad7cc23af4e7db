"""Reviews over HTTP, on two images of which one has a label."""

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient

from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map


@pytest.fixture
def version(samcorrect_app) -> int:
    """A machine's label of image a."""
    label_map = np.zeros((16, 12, 1), np.uint8)
    label_map[2:6, 2:6] = 1
    store = samcorrect_app.workspace.store
    return store.save_label_map("a", label_map, tag="original", maker="sam:x", affine=LPS_TO_RAS).id


def test_an_approval_takes_the_image_out_of_the_queue(client, version):
    told = client.post("/samcorrect/approve", json={"image": "a", "user": "ann", "comment": "fine"}).json()
    assert (told["image"], told["tag"], told["is_rejected"]) == ("a", "final", False)
    assert told["version"] > version
    assert [row["image"] for row in client.get("/samcorrect/queue").json()["images"]] == ["ward/b"]
    history = client.get("/samcorrect/history?image=a").json()
    assert history["state"] == "approved"
    assert [row["tag"] for row in history["versions"]] == ["original", "final"]
    (review,) = history["reviews"]
    assert (review["decision"], review["reviewer"], review["reason"]) == ("approved", "ann", "fine")


def test_an_approval_goes_to_the_pacs(pacs_client, pacs_app, pacs, series):
    store = pacs_app.workspace.store
    image = store.read_image(series)
    label_map = np.ones(image.array.shape, np.uint8)
    store.save_label_map(series, label_map, tag="original", maker="sam:x", affine=image.affine)
    told = pacs_client.post("/samcorrect/approve", json={"image": series, "user": "ann"}).json()
    assert told["pacs"] == {"state": "stored", "reason": ""}
    assert len(DICOMwebClient(pacs).search_for_series(search_filters={"Modality": "SEG"})) == 1


def test_a_rejection_needs_a_reason_and_puts_the_image_back(client, version):
    assert client.post("/samcorrect/reject", json={"image": "a"}).status_code == 400
    assert client.post("/samcorrect/reject", json={"image": "a", "reason": " "}).status_code == 400
    told = client.post("/samcorrect/reject", json={"image": "a", "reason": "wrong side", "user": "ann"}).json()
    assert told == {"image": "a", "version": version, "tag": "original", "is_rejected": True}
    assert client.get("/samcorrect/history?image=a").json()["state"] == "rejected"
    assert (
        client.post("/samcorrect/reject", json={"image": "a", "reason": "again", "version": version}).status_code == 409
    )
    assert client.post("/samcorrect/reject", json={"image": "a", "reason": "again"}).status_code == 409


def test_a_comment_is_kept_with_the_label(client, version):
    given = {"image": "a", "version": version, "text": "look at the apex", "client_id": "ann"}
    assert client.post("/samcorrect/comment", json=given).json() == {"image": "a"}
    (review,) = client.get("/samcorrect/history?image=a").json()["reviews"]
    assert (review["decision"], review["label_version_id"], review["reason"]) == (
        "comment",
        version,
        "look at the apex",
    )


def test_the_reviewer_of_slicer_sees_who_decided_what(client, version):
    client.post("/samcorrect/approve", json={"image": "a", "user": "ann", "comment": "fine"})
    labels = client.get("/datastore/?output=all").json()["objects"]["a"]["labels"]
    assert labels["original"]["info"]["params"]["label_names"] == {"label 1": 1}
    info = labels["final"]["info"]
    assert info["client_id"] == "ann"
    assert {key: info["segmentationMeta"][key] for key in ("status", "approvedBy", "comment")} == {
        "status": "approved",
        "approvedBy": "ann",
        "comment": "fine",
    }


@pytest.mark.parametrize("route", ["approve", "reject", "comment"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"image": "nobody"}, 404),
        ({"image": "../a"}, 400),
        ({"image": "ward/b"}, 404),
        ({"image": "a", "version": 99}, 404),
        ({"image": "a", "version": "1"}, 400),
        ({"image": "a", "more": 1}, 400),
        ({"image": "ward/b", "version": 1}, 422),
    ],
)
def test_what_cannot_be_reviewed_is_refused(client, version, route, body, status):
    more = {"reject": {"reason": "x"}, "comment": {"text": "x"}, "approve": {}}[route]
    assert client.post(f"/samcorrect/{route}", json=body | more).status_code == status


@pytest.mark.parametrize(
    ("seen", "status", "says"),
    [
        (99, 404, "no label version 99"),
        (10**15, 404, "no label version 1000000000000000"),
        (10**30, 400, "number"),
        (-1, 404, "no label version -1"),
        ("1", 400, "expected_best"),
        (1.5, 400, "expected_best"),
    ],
)
def test_a_version_that_nobody_can_have_seen_approves_nothing(client, version, seen, status, says):
    refused = client.post("/samcorrect/approve", json={"image": "a", "user": "ann", "expected_best": seen})
    assert (refused.status_code, says in refused.text) == (status, True)
    versions = client.get("/samcorrect/history?image=a").json()["versions"]
    assert [row["version"] for row in versions] == [version]


def test_a_version_of_another_image_is_not_what_was_seen_of_this_one(client, version, samcorrect_app):
    store = samcorrect_app.workspace.store
    label_map = np.ones((16, 12, 1), np.uint8)
    other = store.save_label_map("ward/b", label_map, tag="original", maker="sam:x", affine=LPS_TO_RAS).id
    given = {"image": "a", "user": "ann", "expected_best": other}
    refused = client.post("/samcorrect/approve", json=given)
    assert (refused.status_code, f"version {other} is not of the image 'a'" in refused.text) == (422, True)
    assert client.post("/samcorrect/approve", json=given | {"expected_best": version}).status_code == 200


def test_what_is_approved_without_a_version_is_what_was_seen(client, version, samcorrect_app):
    store = samcorrect_app.workspace.store
    label_map = np.full((16, 12, 1), 7, np.uint8)
    newer = store.save_label_map("a", label_map, tag="corrected", maker="student:x", affine=LPS_TO_RAS)
    told = client.post("/samcorrect/approve", json={"image": "a", "user": "ann", "expected_best": version}).json()
    final = store.ledger.label_version(told["version"])
    assert (final.tag, final.parent_id) == ("final", version)
    assert final.content_sha256 != newer.content_sha256


def test_a_version_that_can_be_no_best_one_is_not_what_was_seen(client, version, samcorrect_app, tmp_path):
    store = samcorrect_app.workspace.store
    path = tmp_path / "draft.nii.gz"
    for tag, user, index in (("final", "bob", 3), ("draft", "ann", 7)):
        write_label_map(path, np.full((16, 12, 1), index, np.uint8), LPS_TO_RAS)
        newest = store.submit_label("a", path, tag=tag, user=user)
    given = {"image": "a", "user": "ann", "version": version, "expected_best": newest.id}
    refused = client.post("/samcorrect/approve", json=given)
    assert (refused.status_code, "the tag 'draft'" in refused.text) == (400, True)
    assert store.ledger.best_label("a").tag == "final"
    assert client.post("/samcorrect/approve", json=given | {"expected_best": version}).status_code == 409
