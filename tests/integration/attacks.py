"""What test_hostile.py sends: hostile ids, tags, JSON and whole requests, and the routes that they are tried on.

To add an attack, add a line to a table: ids and tags are tried on every route that takes one, JSON on every route that
takes some, and REQUESTS holds whole requests.
"""

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from urllib.parse import quote

import nibabel as nib
import numpy as np
from PIL import Image

MAX_UPLOAD_MB = 4
DISC = 5
BOUNDARY = "frontier"
# Headers, and what they announce.
Body = tuple[dict[str, str], bytes]


def form(**fields: str) -> Body:
    """A form as a browser sends it."""
    text = "&".join(f"{name}={quote(value, errors='surrogatepass')}" for name, value in fields.items())
    return {"Content-Type": "application/x-www-form-urlencoded"}, text.encode()


def jsons(text: str | bytes) -> Body:
    """A JSON body."""
    return {"Content-Type": "application/json"}, text if isinstance(text, bytes) else text.encode()


def parts(*files: tuple[str, str, bytes], **fields: str) -> Body:
    """A body of several parts: files as (field, file name, content), and fields."""
    lines = [f'form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    lines += [f'form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data for field, name, data in files]
    body = b"".join(f"--{BOUNDARY}\r\nContent-Disposition: ".encode() + line + b"\r\n" for line in lines)
    return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, body + f"--{BOUNDARY}--\r\n".encode()


def picture(side: int = 96) -> bytes:
    """A PNG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (80, side), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def label_map(shape: tuple[int, ...] = (96, 80, 1), value: int = DISC) -> bytes:
    """A label as NIfTI, by default on the grid of case0."""
    return nib.Nifti1Image(np.full(shape, value, np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes()


def huge_png() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def huge_nifti() -> bytes:
    """A NIfTI whose header claims 30,000 voxels on each side."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["dim"][1:4] = 30_000
    return image.header.binaryblock + bytes(16)


def climbing_tar() -> bytes:
    """An archive that would write beside the folder it is unpacked in."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("../../../evil.txt")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return file.getvalue()


GOOD_IMAGE, GOOD_LABEL = ("file", "new.png", picture()), ("label", "label.nii", label_map())

# In no id, name of a model, session or strategy, nor a path.
IDS = [
    "../x",
    "../../decoy/secret",
    "../decoy/secret.png",
    "..",
    ".",
    "/etc/passwd",
    "//etc/passwd",
    "a/../../decoy/secret",
    "a/./b",
    "a//b",
    "..\\..\\decoy\\secret",
    "C:\\Windows\\win.ini",
    "%2e%2e/decoy/secret",
    "..%2fdecoy%2fsecret",
    "~/.ssh/id_rsa",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "x\0",
    "x\0.png",
    "x\n",
    "x\r\nSet-Cookie: a=b",
    "\x1b[31mred",
    "a" * 300,
    "a/" * 150 + "a",
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/decoy/secret",
    "\N{FULLWIDTH LATIN SMALL LETTER A}",
    "case0\N{RIGHT-TO-LEFT OVERRIDE}gnp",
    "case0\N{COMBINING ACUTE ACCENT}",
    "case0\N{ZERO WIDTH SPACE}",
    "case0 ",
    "case0.",
    ".samcorrect/ledger",
    ".hidden",
    "$(id)",
    "`id`",
    "a?b",
    "a:b",
    "a<script>alert(1)</script>",
    "' OR 1=1 --",
    "{{7*7}}",
]
INFO, IMAGE, LABEL = form(info="{}"), parts(GOOD_IMAGE), parts(GOOD_LABEL)
# Where an id goes: {} holds it, quoted.
ID_ROUTES: list[tuple[str, str, Body | None]] = [
    ("PUT", "/datastore/image?image={}", IMAGE),
    ("PUT", "/datastore/?image={}", IMAGE),
    ("PUT", "/datastore/label?image={}", LABEL),
    ("PUT", "/datastore/image/info?image={}", INFO),
    ("PUT", "/datastore/label/info?tag=final&label={}", INFO),
    ("PUT", "/datastore/updatelabelinfo?tag=final&label={}", form(params="{}")),
    ("DELETE", "/datastore/image?id={}", None),
    ("DELETE", "/datastore/?id={}", None),
    ("DELETE", "/datastore/label?tag=final&id={}", None),
    ("POST", "/infer/best_label?image={}", None),
    ("POST", "/infer/{}?image=case0", None),
    ("POST", "/infer/sam_prompt?session_id={}", None),
    ("POST", "/infer/wsi/sam?image={}", None),
    ("POST", "/infer/wsi_v2/sam?image={}", parts(GOOD_IMAGE)),
    ("POST", "/batch/infer/{}", None),
    ("POST", "/scoring/{}", None),
    ("POST", "/train/{}", None),
    ("POST", "/activelearning/{}", None),
    ("GET", "/session/{}", None),
    ("GET", "/session/{}?image=true", None),
    ("DELETE", "/session/{}", None),
    ("GET", "/model/{}", None),
    ("GET", "/model/info/{}", None),
    ("PUT", "/model/{}", parts(("file", "model.pt", b"x"))),
    ("DELETE", "/model/{}", None),
    ("GET", "/proxy/dicom/{}", None),
    ("POST", "/proxy/dicom/wado/{}", None),
    ("GET", "/datastore/image?image={}", None),
    ("GET", "/datastore/image/info?image={}", None),
    ("GET", "/datastore/label?tag=original&label={}", None),
    ("GET", "/datastore/label/info?tag=original&label={}", None),
    ("GET", "/static/{}", None),
    ("GET", "/samcorrect/history?image={}", None),
]
# Where an id goes among JSON: the key, and what else the body holds.
BODY_ID_ROUTES: list[tuple[str, str, dict[str, object]]] = [
    ("/samcorrect/next", "strategy", {}),
    ("/samcorrect/release", "image", {"client_id": "ann"}),
    ("/samcorrect/approve", "image", {"client_id": "ann"}),
    ("/samcorrect/reject", "image", {"client_id": "ann", "reason": "wrong side"}),
    ("/samcorrect/comment", "image", {"client_id": "ann", "text": "look at the apex"}),
    ("/samcorrect/loop", "preset", {}),
]
TAGS = [
    "../../evil",
    "..",
    "final/../x",
    "/etc/passwd",
    "FINAL",
    "Final",
    " final",
    "final ",
    "final\n",
    "fi\0nal",
    "\N{LATIN SMALL LIGATURE FI}nal",
    "a" * 33,
    "1st",
    "-x",
    "final.json",
    "%2e%2e",
    "a,b",
]
TAG_ROUTES: list[tuple[str, str, Body | None]] = [
    ("PUT", "/datastore/label?image=case0&tag={}", LABEL),
    ("PUT", "/datastore/label/info?label=case0&tag={}", INFO),
    ("PUT", "/datastore/updatelabelinfo?label=case0&tag={}", form(params="{}")),
    ("DELETE", "/datastore/label?id=case0&tag={}", None),
    ("GET", "/datastore/label?label=case0&tag={}", None),
    ("GET", "/datastore/label/info?label=case0&tag={}", None),
]
# In no text that should be a JSON object.
JSON_TEXTS = [
    "[]",
    "[1]",
    "1",
    "true",
    '"x"',
    "{",
    "}",
    "{'a': 1}",
    '{"a": NaN}',
    '{"a": [Infinity]}',
    '{"a": -1e999}',
    '{"a": 1' + "0" * 30 + "}",
    '{"a": 1' + "0" * 5000 + "}",
    "[" * 50_000,
    '{"a":' * 50_000,
    '{"a":' * 40 + "1" + "}" * 40,
    '{"a": "\\ud800"}',
    '{"\\udfff": 1}',
    '{"a": "\\u0000"}',
    '{"a\\u0007": 1}',
]
USERS = ['{"user": {"a": 1}}', '{"user": "a\\nb"}', '{"client_id": 5}', '{"client_id": " "}']
USERS += ['{"user": "\\u202eeod"}', json.dumps({"client_id": "x" * 201})]
# What puts a text into a request that takes JSON.
JSON_ROUTES: list[tuple[str, str, Callable[[str], Body]]] = [
    ("PUT", "/datastore/image?image=new", lambda text: parts(GOOD_IMAGE, params=text)),
    ("PUT", "/datastore/?image=new", lambda text: parts(GOOD_IMAGE, params=text)),
    ("PUT", "/datastore/label?image=case0", lambda text: parts(GOOD_LABEL, params=text)),
    ("PUT", "/datastore/image/info?image=case0", lambda text: form(info=text)),
    ("PUT", "/datastore/label/info?label=case0&tag=final", lambda text: form(info=text)),
    ("PUT", "/datastore/updatelabelinfo?label=case0&tag=final", lambda text: form(params=text)),
    ("POST", "/infer/sam_prompt?image=case0", lambda text: form(params=text)),
    ("POST", "/activelearning/random", jsons),
    ("POST", "/scoring/label_quality", jsons),
    ("POST", "/scoring/", jsons),
    ("POST", "/train/student", jsons),
    ("POST", "/train/", jsons),
    ("POST", "/batch/infer/sam", jsons),
    ("POST", "/samcorrect/next", jsons),
    ("POST", "/samcorrect/release", jsons),
    ("POST", "/samcorrect/approve", jsons),
    ("POST", "/samcorrect/reject", jsons),
    ("POST", "/samcorrect/comment", jsons),
    ("POST", "/samcorrect/loop", jsons),
]
TASK_PARAMS = [
    '{"bundle_path": "/decoy"}',
    '{"gpus": ["a"]}',
    '{"gpus": "0; id"}',
    '{"model": "x", "method": "x"}',
    json.dumps({"a": "x" * 100_000}),
]
INFER = "/infer/sam_prompt?image=case0"
REJECT, APPROVE, LOOP = "/samcorrect/reject", "/samcorrect/approve", "/samcorrect/loop"
SUBMIT = "/datastore/label?image=case0"
# Whole requests: a name, a method, a target and a body.
REQUESTS: dict[str, tuple[str, str, Body | None]] = {
    "train with steps that are no number": ("POST", "/train/student", jsons('{"steps": "../../x"}')),
    "train with steps out of range": ("POST", "/train/", jsons('{"student": {"steps": 0}}')),
    "train with steps beyond what Python reads": ("POST", "/train/student", jsons('{"steps": "%s"}' % ("9" * 5000))),
    "train with params that are no objects": ("POST", "/train/", jsons('{"student": [1]}')),
    "score with params that are no objects": ("POST", "/scoring/", jsons('{"label_quality": "x"}')),
    "batch over no list": ("POST", "/batch/infer/sam", jsons('{"images": "../x"}')),
    "batch over numbers": ("POST", "/batch/infer/sam", jsons('{"images": [1]}')),
    "batch over a path": ("POST", "/batch/infer/sam", jsons('{"images": ["case0", "../decoy/secret"]}')),
    "batch over a stranger": ("POST", "/batch/infer/sam", jsons('{"images": ["nobody"]}')),
    "batch that writes final": ("POST", "/batch/infer/sam", jsons('{"label_tag": "final"}')),
    "batch over what is no choice": ("POST", "/batch/infer/sam?images=../x", None),
    "infer a path among the params": ("POST", INFER, form(params='{"image": "/etc/passwd"}')),
    "infer a session's file among the params": ("POST", INFER, form(params='{"image": "/state/sessions/a/b.png"}')),
    "infer another model among the params": ("POST", INFER, form(params='{"model": "sam"}')),
    "infer a made-up session among the params": ("POST", INFER, form(params='{"session": {"image": "/etc/passwd"}}')),
    "infer that writes final": (
        "POST",
        "/infer/sam?image=case0",
        form(params='{"save_label": 1, "label_tag": "final"}'),
    ),
    "infer to another suffix": ("POST", INFER, form(params='{"result_extension": "/../../x.nii"}')),
    "infer with a list for a choice": ("POST", INFER, form(params='{"save_label": [1]}')),
    "infer far outside the image": ("POST", INFER, form(params='{"foreground": [[1e300, 0, 0]]}')),
    "infer in a far slice": (
        "POST",
        "/infer/sam_prompt?image=oblique3d",
        form(params='{"foreground": [[1, 1, 9999]]}'),
    ),
    "infer with half a box": ("POST", INFER, form(params='{"roi": [1, 2, 3]}')),
    "infer with points in words": ("POST", INFER, form(params='{"foreground": "here"}')),
    "infer with a long name": ("POST", INFER, form(params=json.dumps({"label": "x" * 65, "foreground": [[1, 1, 0]]}))),
    "infer an uploaded file": ("POST", "/infer/sam_prompt", parts(GOOD_IMAGE)),
    "infer with a label": ("POST", INFER, parts(("label", "x.bin", b"scribble"))),
    "infer nothing": ("POST", "/infer/sam", None),
    "infer to DICOM SEG": ("POST", "/infer/best_label?image=case0&output=dicom_seg", None),
    "infer to what is no choice": ("POST", f"{INFER}&output=../x", None),
    "infer a slide that is no JSON": ("POST", "/infer/wsi_v2/sam?image=case0", form(wsi="{")),
    "submit no file": ("PUT", SUBMIT, parts(params="{}")),
    "submit text in place of a file": ("PUT", SUBMIT, parts(label="x")),
    "submit two files": ("PUT", SUBMIT, parts(GOOD_LABEL, ("label", "b.nii", label_map()))),
    "submit an empty name": ("PUT", SUBMIT, parts(("label", "", label_map()))),
    "submit a program": ("PUT", SUBMIT, parts(("label", "label.nii.exe", label_map()))),
    "submit a name that climbs": ("PUT", SUBMIT, parts(("label", "../../../evil.sh", label_map()))),
    "submit a long name": ("PUT", SUBMIT, parts(("label", "a" * 5000, label_map()))),
    "submit an empty file": ("PUT", SUBMIT, parts(("label", "label.nii", b""))),
    "submit text": ("PUT", SUBMIT, parts(("label", "label.nii.gz", b"not a label"))),
    "submit a header that claims much": ("PUT", SUBMIT, parts(("label", "label.nii", huge_nifti()))),
    "submit zeros without end": ("PUT", SUBMIT, parts(("label", "label.nii.gz", gzip.compress(bytes(2**26))))),
    "submit pickled objects": (
        "PUT",
        SUBMIT,
        parts(("label", "label.nrrd", b"NRRD0004\ntype: block\nblocksize: 9\n\n")),
    ),
    "submit a detached header": (
        "PUT",
        SUBMIT,
        parts(
            (
                "label",
                "label.nrrd",
                b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 4\nencoding: raw\ndata file: /etc/passwd\n\n",
            )
        ),
    ),
    "submit another grid": ("PUT", SUBMIT, parts(("label", "label.nii", label_map((9, 9, 1))))),
    "submit four dimensions": ("PUT", SUBMIT, parts(("label", "label.nii", label_map((96, 80, 1, 3))))),
    "submit an unknown value": ("PUT", SUBMIT, parts(("label", "label.nii", label_map(value=9)))),
    "submit names that are no list": ("PUT", SUBMIT, parts(GOOD_LABEL, params='{"label_info": [["disc", 5]]}')),
    "submit names of no structure": (
        "PUT",
        SUBMIT,
        parts(GOOD_LABEL, params='{"label_info": [{"name": "<script>", "idx": 5}]}'),
    ),
    "submit params of 2 MiB": ("PUT", SUBMIT, parts(GOOD_LABEL, params='{"a": "%s"}' % ("x" * 2**21))),
    "add an image that is a folder": ("PUT", "/datastore/image?image=a/", IMAGE),
    "add an image over another": ("PUT", "/datastore/image?image=case0", IMAGE),
    "add an image of a name that is taken": ("PUT", "/datastore/image", parts(("file", "case0.png", picture()))),
    "add an image by a name that climbs": ("PUT", "/datastore/image", parts(("file", "../../evil.png", picture()))),
    "add an image by a Windows path": ("PUT", "/datastore/image", parts(("file", "a\\..\\evil.png", picture()))),
    "add an image by a hidden name": ("PUT", "/datastore/", parts(("file", ".evil.png", picture()))),
    "add an image without a name": ("PUT", "/datastore/image", parts(("file", ".png", picture()))),
    "add an image into a linked folder": ("PUT", "/datastore/image?image=linked/new", IMAGE),
    "add an image below a linked folder": ("PUT", "/datastore/image?image=linked/deep/new", IMAGE),
    "add an image into a circle of links": ("PUT", "/datastore/image?image=circle/new", IMAGE),
    "add an image over a link": ("PUT", "/datastore/image?image=leak", IMAGE),
    "add an image over a dangling link": ("PUT", "/datastore/image?image=dangling", IMAGE),
    "add an image below a file": ("PUT", "/datastore/image?image=case0.png/new", IMAGE),
    "add an image to the host's labels": ("PUT", "/datastore/image?image=labels/final/case0", IMAGE),
    "add an image to the host's labels, in capitals": ("PUT", "/datastore/image?image=LABELS/final/case0", IMAGE),
    "add an image to the state": ("PUT", "/datastore/image?image=state/labels/case0/new", IMAGE),
    "add an image of a long name": ("PUT", f"/datastore/image?image={'a' * 255}", IMAGE),
    "add a file that is no image": ("PUT", "/datastore/image?image=new", parts(("file", "a.png", b"MZ"))),
    "add an image that claims much": ("PUT", "/datastore/image?image=new", parts(("file", "a.png", huge_png()))),
    "add an image of another type": ("PUT", "/datastore/image?image=new", parts(("file", "a.svg", b"<svg/>"))),
    "add two images": ("PUT", "/datastore/image?image=new", parts(GOOD_IMAGE, GOOD_IMAGE)),
    "add no image": ("PUT", "/datastore/image?image=new", parts(params="{}")),
    "open a session with a climbing archive": (
        "PUT",
        "/session/?uncompress=true",
        parts(("files", "a.tar", climbing_tar())),
    ),
    "open a session with an archive": ("PUT", "/session/", parts(("files", "a.tar", climbing_tar()))),
    "open a session with two files": (
        "PUT",
        "/session/",
        parts(("files", "a.png", picture()), ("files", "a.png", picture())),
    ),
    "open a session with no image": ("PUT", "/session/", parts(("files", "a.png", b"MZ"))),
    "open a session with a name that climbs": ("PUT", "/session/", parts(("files", "../../meta.info", picture()))),
    "open a session without a file": ("PUT", "/session/", None),
    "open a session for ever": ("PUT", "/session/?expiry=ever", parts(("files", "a.png", picture()))),
    "ask for a session that is none": ("GET", "/session/00000000-0000-0000-0000-000000000000", None),
    "close a session that is none": ("DELETE", "/session/00000000-0000-0000-0000-000000000000", None),
    "start over": ("POST", "/reload", None),
    "read a link": ("GET", "/datastore/image?image=leak", None),
    "read a link by its file name": ("GET", "/datastore/image?image=leak.png", None),
    "read through a linked folder": ("GET", "/datastore/image?image=linked/secret", None),
    "read another case": ("GET", "/datastore/image?image=CASE0", None),
    "read the protocol as an image": ("GET", "/datastore/image?image=protocol", None),
    "read the protocol as a file": ("GET", "/datastore/image?image=protocol.yaml", None),
    "reject without a reason": ("POST", REJECT, jsons('{"image": "case0", "user": "ann"}')),
    "reject with a blank reason": ("POST", REJECT, jsons('{"image": "case0", "reason": " \\n"}')),
    "reject with a long reason": ("POST", REJECT, jsons(json.dumps({"image": "case0", "reason": "x" * 2001}))),
    "reject with a reason that is a list": ("POST", REJECT, jsons('{"image": "case0", "reason": ["x"]}')),
    "reject by a name of two lines": ("POST", REJECT, jsons('{"image": "case0", "reason": "x", "user": "a\\nb"}')),
    "reject a version that is none": ("POST", REJECT, jsons('{"image": "case0", "reason": "x", "version": 99999}')),
    "reject a version below all": ("POST", REJECT, jsons('{"image": "case0", "reason": "x", "version": -1}')),
    "reject a version that is a half": ("POST", REJECT, jsons('{"image": "case0", "reason": "x", "version": 0.5}')),
    "reject a list": ("POST", REJECT, jsons("[]")),
    "reject nothing": ("POST", REJECT, None),
    "approve without an image": ("POST", APPROVE, jsons('{"user": "ann"}')),
    "approve a stranger": ("POST", APPROVE, jsons('{"image": "nobody"}')),
    "approve a label that is not there": ("POST", APPROVE, jsons('{"image": "case0", "version": 99999}')),
    "approve with a word for yes": ("POST", APPROVE, jsons('{"image": "case0", "even_rejected": "yes"}')),
    "approve by a form": ("POST", APPROVE, form(image="case0")),
    "approve with more than there is": ("POST", APPROVE, jsons('{"image": "case0", "path": "/etc/passwd"}')),
    "comment in control characters": (
        "POST",
        "/samcorrect/comment",
        jsons('{"image": "case0", "text": "\\u001b[31mred"}'),
    ),
    "comment at length": ("POST", "/samcorrect/comment", jsons(json.dumps({"image": "case0", "text": "x" * 2001}))),
    "release what is a list": ("POST", "/samcorrect/release", jsons('{"image": ["case0"]}')),
    "queue without end": ("GET", f"/samcorrect/queue?limit={'9' * 40}", None),
    "queue from the end": ("GET", "/samcorrect/queue?limit=-1", None),
    "loop with another setting": ("POST", LOOP, jsons('{"state": "/decoy"}')),
    "loop with a program for weights": ("POST", LOOP, jsons('{"sam_weights": "/decoy/secret.png"}')),
    "loop with rounds without end": ("POST", LOOP, jsons('{"rounds": 1000000}')),
    "loop with steps that are text": ("POST", LOOP, jsons('{"steps": "1; id"}')),
    "loop with a seed below all": ("POST", LOOP, jsons('{"seed": -1}')),
    "loop with a preset that is none": ("POST", LOOP, jsons('{"preset": "../x"}')),
    "end a loop that is none": ("DELETE", LOOP, None),
    "read logs from the end": ("GET", "/logs/?lines=-1", None),
    "read logs without end": ("GET", f"/logs/?lines={'9' * 40}", None),
    "read the viewer's parent": ("GET", "/ohif/../../../config.py", None),
    "read the viewer's parent, quoted": ("GET", "/ohif/%2e%2e/%2e%2e/%2e%2e/config.py", None),
    "read the root through the viewer": ("GET", "/ohif//etc/passwd", None),
    "read a viewer's file with NUL": ("GET", "/ohif/a%00b", None),
    "read the host's source": ("GET", "/static/..%2f..%2fconfig.py", None),
    "list what is no choice": ("GET", "/datastore/?output=../x", None),
    "pack all data": ("GET", "/datastore/dataset?limit_cases=-1", None),
    "a form that is JSON": ("PUT", "/datastore/image/info?image=case0", jsons('{"info": []}')),
    "JSON that is a form": ("POST", "/train/student", form(params="{}")),
    "JSON that is text": ("POST", "/scoring/label_quality", ({"Content-Type": "text/plain"}, b"{}x")),
    "JSON that is packed": (
        "POST",
        "/train/student",
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, gzip.compress(b"{}")),
    ),
    "JSON in a strange encoding": ("POST", "/train/student", jsons("{}".encode("utf-16") + b"\xff")),
    "JSON of 2 MiB": ("POST", "/activelearning/random", jsons('{"a": "%s"}' % ("x" * 2**21))),
    "JSON of 2 MiB that claims to be parts": ("POST", "/train/student", (IMAGE[0], b" " * 2**21)),
    "a form of 2 MiB": ("PUT", "/datastore/image/info?image=case0", form(info="x" * 2**21)),
    "parts without a boundary": ("PUT", SUBMIT, ({"Content-Type": "multipart/form-data"}, LABEL[1])),
    "parts of another boundary": ("PUT", SUBMIT, ({"Content-Type": "multipart/form-data; boundary=x"}, LABEL[1])),
    "parts in a strange encoding": (
        "PUT",
        SUBMIT,
        ({"Content-Type": f"multipart/form-data; charset=punycode; boundary={BOUNDARY}"}, LABEL[1]),
    ),
    "parts that are cut off": ("PUT", SUBMIT, (LABEL[0], LABEL[1][:200])),
    "parts of a wrong type": ("PUT", SUBMIT, ({"Content-Type": "image/png"}, LABEL[1])),
    "parts by the thousand": ("PUT", SUBMIT, parts(*[("x", "x", b"")] * 1001)),
    "an upload over the limit": ("PUT", SUBMIT, parts(("label", "a.nii", bytes((MAX_UPLOAD_MB << 20) + 1)))),
    "the wrong method for a label": ("PATCH", SUBMIT, LABEL),
    "the wrong method for an image": ("POST", "/datastore/image?image=new", IMAGE),
    "the wrong method for a model": ("DELETE", "/infer/sam", None),
    "the wrong method for info": ("PUT", "/info/", None),
    "a method that there is not": ("EXPLODE", "/datastore/", None),
    "a request to be traced": ("TRACE", "/datastore/", None),
    "a file that is nowhere": ("GET", "/../../../../etc/passwd", None),
}
