import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16)).save(file, "PNG")
    return file.getvalue()


def test_a_session_keeps_its_image_until_it_is_closed(client, tmp_path, picture):
    opened = client.put("/session/", files={"files": ("../../x.png", picture)}).json()
    assert re.fullmatch(r"[0-9a-f-]{36}", opened["session_id"])
    image = Path(opened["session_info"]["image"])
    assert image == tmp_path / "state" / "sessions" / opened["session_id"] / "upload.png"
    url = f"/session/{opened['session_id']}"
    assert client.get(url).json() == opened["session_info"]
    assert client.get(url, params={"image": True}).content == picture
    assert client.delete(url).json() == opened["session_info"]
    assert not image.parent.exists()
    assert client.get(url).status_code == 404


@pytest.mark.parametrize("session_id", ["..", ".", "a", "A0000000-0000-0000-0000-000000000000"])
def test_a_name_of_another_folder_is_no_session(client, tmp_path, session_id):
    neighbour = tmp_path / "state" / "sessions" / "a"
    neighbour.mkdir(parents=True)
    (neighbour / "meta.info").write_text(json.dumps({"image": str(tmp_path / "gone")}), encoding="utf-8")
    quoted = session_id.replace(".", "%2e")
    for reply in (client.get(f"/session/{quoted}"), client.delete(f"/session/{quoted}")):
        assert (reply.status_code, reply.json()["error"]) == (400, "RequestError")
    assert neighbour.is_dir()


def test_a_refused_image_leaves_nothing(client, tmp_path):
    reply = client.put("/session/", files={"files": ("x.png", b"no image")})
    assert (reply.status_code, reply.json()["error"]) == (422, "ImageError")
    assert not list(tmp_path.glob("state/sessions/*"))


def test_archives_are_not_unpacked(client, picture):
    reply = client.put("/session/", params={"uncompress": True}, files={"files": ("x.png", picture)})
    assert reply.status_code == 400
    assert "not unpacked" in reply.json()["detail"]


def test_a_server_can_keep_no_sessions(client, samcorrect_app, picture):
    samcorrect_app._sessions = None
    reply = client.put("/session/", files={"files": ("x.png", picture)})
    assert reply.status_code == 400
    assert "MONAI_LABEL_SESSIONS" in reply.json()["detail"]
