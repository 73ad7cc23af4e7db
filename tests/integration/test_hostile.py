"""Everything a client can send, against live servers: refused with 4xx and a reason, and nothing else happens.

The attacks are in attacks.py. A request passes if the reply is 4xx with a JSON body that names what is wrong, no file
in the world around the server has changed or was left behind, the decoys' content is not in the reply, and the server
still answers.
"""

import hashlib
import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from attacks import (
    BODY_ID_ROUTES,
    ID_ROUTES,
    IDS,
    IMAGE,
    JSON_ROUTES,
    JSON_TEXTS,
    LABEL,
    MAX_UPLOAD_MB,
    REQUESTS,
    SUBMIT,
    TAG_ROUTES,
    TAGS,
    TASK_PARAMS,
    USERS,
    Body,
    form,
    jsons,
    label_map,
    parts,
    picture,
)

pytestmark = pytest.mark.slow

SECRET = b"Doe^Jane 1970-01-01 MRN 555-0100"
# Headers that a browser adds for a page of another origin, on requests that would pass without them.
FOREIGN_PAGES = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://[evil"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"},
]


@dataclass(frozen=True)
class World:
    """A server and the folders around it, with decoys that nobody may read or change."""

    url: str
    root: Path
    temporary: Path

    @property
    def studies(self) -> Path:
        """The studies folder."""
        return self.root / "studies"

    def snapshot(self) -> dict[str, tuple[int, int, str]]:
        """Path to size, time of change and SHA-256 of all files but ledger and logs, which every request uses."""
        files = {}
        for path in [*self.root.rglob("*"), *self.temporary.rglob("*")]:
            if path.name.startswith("ledger.sqlite") or path.parent.name == "logs":
                continue
            state = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            files[str(path)] = (state.st_size * path.is_file(), state.st_mtime_ns * path.is_file(), content)
        return files

    def send(
        self, method: str, target: str, body: Body | None = None, headers: dict[str, str] | None = None
    ) -> "Reply":
        """Send one request as it is: nothing is normalised on the way."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        kind, content = body or ({}, None)
        connection.request(method, target, body=content, headers={**kind, **(headers or {})})
        response = connection.getresponse()
        reply = Reply(response.status, response.read())
        connection.close()
        return reply


@dataclass(frozen=True)
class Reply:
    """A status and a body."""

    status: int
    content: bytes


@pytest.fixture(scope="module", params=["samcorrect serve", "monailabel start_server"])
def world(request, phantoms, own_server, host_server, tmp_path_factory) -> Iterator[World]:
    """A server whose state lies in the studies, with decoys beside them and links to these among them."""
    root, cwd = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("hostile_served")
    studies, decoy = root / "studies", root / "decoy"
    shutil.copytree(phantoms, studies)
    decoy.mkdir()
    (decoy / "secret.txt").write_bytes(SECRET)
    (decoy / "secret.png").write_bytes(picture() + SECRET)
    (studies / "leak.png").symlink_to(decoy / "secret.png")
    (studies / "leak.txt").symlink_to(decoy / "secret.txt")
    (studies / "linked").symlink_to(decoy)
    (studies / "dangling.png").symlink_to(decoy / "nowhere.png")
    (studies / "circle").symlink_to(studies / "circle")
    settings = {"SAMCORRECT_MAX_UPLOAD_MB": str(MAX_UPLOAD_MB)}
    if request.param == "samcorrect serve":
        started = own_server(cwd, studies, SAMCORRECT_STATE=str(studies / "state"), **settings)
    else:
        started = host_server(cwd, studies, state=studies / "state", **settings)
    with started as (url, _):
        yield World(url, root, cwd / "tmp")


def assert_refused(reply: Reply, what: Any) -> None:
    told = f"{str(what)[:300]}: {reply.status} {reply.content[:300]!r}"
    assert 400 <= reply.status < 500, told
    assert SECRET not in reply.content, told
    body = json.loads(reply.content)
    assert set(body) == {"error", "detail"}, told
    assert body["error"], told
    assert body["detail"], told


def assert_alive(world: World) -> None:
    assert world.send("GET", "/info/").status == 200


@pytest.mark.parametrize(
    ("method", "target", "body"), ID_ROUTES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_ids(world, method, target, body):
    before = world.snapshot()
    for hostile in IDS:
        assert_refused(world.send(method, target.format(quote(hostile, safe="")), body), hostile)
    assert world.snapshot() == before
    assert_alive(world)


@pytest.mark.parametrize(("target", "key", "more"), BODY_ID_ROUTES)
def test_ids_in_bodies(world, target, key, more):
    before = world.snapshot()
    for hostile in IDS:
        assert_refused(world.send("POST", target, jsons(json.dumps({key: hostile, **more}))), hostile)
    assert world.snapshot() == before
    assert_alive(world)


@pytest.mark.parametrize(
    ("method", "target", "body"), TAG_ROUTES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_tags(world, method, target, body):
    before = world.snapshot()
    for hostile in TAGS:
        assert_refused(world.send(method, target.format(quote(hostile, safe="")), body), hostile)
    assert world.snapshot() == before
    assert_alive(world)


@pytest.mark.parametrize(("method", "target", "body_with"), JSON_ROUTES)
def test_json(world, method, target, body_with):
    before = world.snapshot()
    takes_user = not target.startswith(("/scoring", "/train", "/batch"))
    for hostile in JSON_TEXTS + (USERS if takes_user else TASK_PARAMS):
        assert_refused(world.send(method, target, body_with(hostile)), hostile)
    assert world.snapshot() == before
    assert_alive(world)


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(world, name):
    before = world.snapshot()
    assert_refused(world.send(*REQUESTS[name]), name)
    assert world.snapshot() == before
    assert_alive(world)


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
@pytest.mark.parametrize(
    ("method", "target", "body"),
    [("PUT", SUBMIT, LABEL), ("POST", "/train/student", None), ("POST", "/infer/best_label?image=case0", None)],
)
def test_pages_of_other_origins(world, headers, method, target, body):
    before = world.snapshot()
    reply = world.send(method, target, body, headers)
    assert_refused(reply, headers)
    assert reply.status == 403
    assert world.snapshot() == before


@pytest.mark.parametrize("image", ["..", "a?check_sum=x", "case0&check_sum=../x", "case0&check_sum=MD4:00", "nobody"])
def test_heads_have_a_status_alone(world, image):
    reply = world.send("HEAD", f"/datastore/image?image={image}")
    assert (400 <= reply.status < 500, reply.content) == (True, b"")


@pytest.mark.parametrize("root", ["/ohif/", "/static/", "/datastore/image?image=", "/logs/?logfile=", "/docs?x="])
def test_no_read_shows_a_secret(world, root):
    decoys = [world.root / "decoy" / "secret.txt", world.studies / "leak.txt", world.studies / "linked" / "secret.txt"]
    for hostile in [*IDS, *map(str, decoys), *(f"{'../' * 12}{decoy}" for decoy in decoys)]:
        for target in (root + quote(hostile, safe=""), root + quote(hostile)):
            reply = world.send("GET", target)
            assert reply.status < 500, target
            assert SECRET not in reply.content, target


def test_an_image_that_becomes_a_link_is_no_longer_read(world):
    image, kept = world.studies / "case8.png", world.root / "kept.png"
    image.rename(kept)
    image.symlink_to(world.root / "decoy" / "secret.png")
    try:
        for method, target in [("GET", "/datastore/image?image=case8"), ("POST", "/infer/sam?image=case8")]:
            assert_refused(world.send(method, target), target)
    finally:
        image.unlink()
        kept.rename(image)
    assert world.send("GET", "/datastore/image?image=case8").content == image.read_bytes()


def test_a_body_that_grows_over_the_limit_is_cut_off(world):
    before = world.snapshot()
    host, port = urlsplit(world.url).netloc.split(":")
    head, start = LABEL[0]["Content-Type"], LABEL[1][:90]
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            f"PUT {SUBMIT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: {head}\r\n\r\n".encode()
        )
        connection.sendall(b"%x\r\n%s\r\n" % (len(start), start))
        try:
            for _ in range(MAX_UPLOAD_MB * 4):
                connection.sendall(b"%x\r\n%s\r\n" % (2**19, bytes(2**19)))
        except OSError:
            pass  # the server has answered and hung up
        assert connection.recv(2**16).startswith(b"HTTP/1.1 413 ")
    assert world.snapshot() == before
    assert_alive(world)


@pytest.mark.parametrize(
    "lines",
    [
        b"PUT /datastore/label?image=case0 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"PUT /datastore/label?image=case0 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"PUT /datastore/label?image=case0 HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"PUT /datastore/label?image=case0 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n",
        b"PUT /datastore/label?image=case0 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2**20 + b"\r\n\r\n",
        b"GET /datastore/image?image=\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 2**18 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda lines: repr(lines[:90]),
)
def test_what_is_not_http(world, lines):
    before = world.snapshot()
    host, port = urlsplit(world.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(lines)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(2**16)
        except OSError:  # the server has hung up
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
    assert world.snapshot() == before
    assert_alive(world)


def test_a_label_that_lies_about_its_length_is_not_taken(world):
    before = world.snapshot()
    host, port = urlsplit(world.url).netloc.split(":")
    head = f"PUT {SUBMIT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LABEL[1]) + 9}\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}Content-Type: {LABEL[0]['Content-Type']}\r\n\r\n".encode() + LABEL[1])
    assert_alive(world)
    assert world.snapshot() == before


def test_a_name_that_climbs_is_not_used(world):
    """Slicer names uploads by their whole path on the annotator's machine, so such a name is no reason to refuse."""
    before = world.snapshot()
    body = parts(("label", "/tmp/../../decoy/secret.nii", label_map()), params='{"client_id": "ann"}')
    assert world.send("PUT", SUBMIT + "&tag=draft", body).status == 200
    changed = {Path(path) for path, _ in world.snapshot().items() ^ before.items()}
    state = world.studies / "state"
    # The first label that is ever written makes the folder in which files wait until they are whole.
    assert changed - {state, state / "scratch"}
    assert all(path.is_relative_to(state / "labels") for path in changed - {state, state / "scratch"})
    info = json.loads(world.send("GET", "/datastore/label/info?label=case0&tag=draft").content)
    assert info["maker"] == "user:ann"


def test_logs_name_nobody(world):
    world.send("PUT", "/datastore/image?image=case0", IMAGE)
    world.send("PUT", "/datastore/image/info?image=case0", form(info='{"client_id": "ann", "name": "Doe^Jane"}'))
    log = b"".join(
        path.read_bytes() for path in [*world.temporary.parent.rglob("*.log"), *world.studies.rglob("*.log")]
    )
    assert b"PUT /datastore/image: 400 RequestError" in log
    for name in (b"case0", b"Doe^Jane", b"nobody", b"secret"):
        assert name not in log.replace(str(world.root).encode(), b""), name
