import pytest


def test_a_note_does_not_replace_what_the_strategy_says(client, samcorrect_app):
    note = {"path": "/etc/passwd", "id": "b", "strategy": 5, "colour": "red"}
    for image_id in ("a", "ward/b"):
        samcorrect_app.datastore().update_image_info(image_id, note)
    sample = client.post("/activelearning/random", json={"client_id": "ann", "strategy": ["x"]}).json()
    assert sample["id"] in ("a", "ward/b")
    assert sample["path"] == samcorrect_app.datastore().get_image_uri(sample["id"])
    assert sample["colour"] == "red"


def test_two_clients_get_two_images_and_a_third_none(client):
    got = [client.post("/activelearning/random", json={"client_id": name}).json() for name in ("ann", "bob", "carl")]
    assert {got[0]["id"], got[1]["id"]} == {"a", "ward/b"}
    assert got[2] == {}


@pytest.mark.parametrize(
    ("target", "params", "status", "says"),
    [
        ("/scoring/label_quality", {"method": "self_correction"}, 400, "`method` does not belong"),
        ("/scoring/", {"label_quality": {"bundle_path": "/x"}}, 400, "`bundle_path` does not belong"),
        ("/scoring/", {"label_quality": 5}, 400, "JSON object"),
        ("/scoring/label_quality", {"full": "yes"}, 400, "`full` is true or false"),
        ("/scoring/", {"label_quality": {"full": 1}}, 400, "`full` is true or false"),
        ("/scoring/nope", None, 404, "no scoring method 'nope'"),
        ("/train/student", {"steps": "9" * 5000}, 400, "`steps` is a number"),
        ("/train/", {"student": {"steps": 0}}, 400, "`steps` is a number"),
        ("/train/student", {"model": "x"}, 400, "`model` does not belong"),
        ("/batch/infer/sam", {"images": ["a", "../x"]}, 400, "not an image id"),
        ("/batch/infer/sam", {"images": ["nobody"]}, 404, "nobody"),
        ("/batch/infer/sam", {"images": "every"}, 400, "one of all, labeled, unlabeled"),
        ("/batch/infer/sam", [1], 422, "valid dictionary"),
        ("/activelearning/nope", None, 404, "nope"),
        ("/activelearning/random", {"client_id": "a\nb"}, 400, "printable"),
    ],
)
def test_nothing_starts_on_a_bad_request(client, target, params, status, says):
    reply = client.post(target, json=params)
    assert (reply.status_code, set(reply.json())) == (status, {"error", "detail"})
    assert says in reply.json()["detail"]


@pytest.mark.parametrize(
    ("query", "sent", "says"),
    [
        ({}, {}, "name an image"),
        ({"image": "a", "output": "dicom_seg"}, {}, "DICOM SEG"),
        ({"image": "a"}, {"files": {"file": ("a.png", b"x")}}, "PUT /datastore/image"),
        ({"image": "a"}, {"files": {"label": ("a.png", b"x")}}, "prompts"),
        ({"image": "a"}, {"data": {"params": '{"image": "/etc/passwd"}'}}, "'/etc/passwd'"),
        ({"session_id": "../x"}, {}, "not the id of a session"),
    ],
)
def test_infer_takes_an_image_of_the_store_or_a_session(client, query, sent, says):
    reply = client.post("/infer/best_label", params=query, **sent)
    assert (reply.status_code, reply.json()["error"]) == (400, "RequestError")
    assert says in reply.json()["detail"]


@pytest.mark.parametrize("target", ["/infer/wsi/x", "/infer/wsi_v2/x"])
def test_slides_are_refused(client, target):
    assert client.post(target, params={"image": "/etc/passwd"}).status_code == 400
