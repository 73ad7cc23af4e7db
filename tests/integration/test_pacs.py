"""Live servers whose studies are a real PACS: what OHIF asks for, what a person submits, and a PACS that is down."""

import gzip
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import highdicom
import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient

pytestmark = pytest.mark.slow

PROTOCOL = """
structures:
  - {name: disc, index: 1, prompt: {source: box, xyz: [[0.10, 0.58], [0.15, 0.80], [0, 1]]}}
  - {name: bar, index: 2, prompt: {source: box, xyz: [[0.66, 0.92], [0.10, 0.90], [0, 1]]}}
"""
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}


def draw(seed: int) -> np.ndarray:
    """Three slices (slice, row, column) of 80 x 96 with a disc at column 33, row 38 and a bar at column 76."""
    y, x = np.mgrid[:80, :96]
    picture = 50 + 110 * ((x - 33) ** 2 + (y - 38) ** 2 < 361) + 140 * ((abs(x - 76) < 8) & (abs(y - 40) < 26))
    noise = np.random.default_rng(seed).normal(0, 6, (3, 80, 96))
    return (picture + noise).clip(0, 255).astype(np.uint16)


def nrrd_of(reply: requests.Response) -> tuple[np.ndarray, dict]:
    stream = BytesIO(reply.content)
    header = nrrd.read_header(stream)
    return nrrd.read_data(header, stream), header


def stow(url: str, instances: list[pydicom.Dataset]) -> str:
    DICOMwebClient(url).store_instances(instances)
    return instances[0].SeriesInstanceUID


def segs_of(url: str) -> list[pydicom.Dataset]:
    """All SEG instances of a PACS."""
    client = DICOMwebClient(url)
    series = client.search_for_series(search_filters={"Modality": "SEG"})
    uids = [(entry["0020000D"]["Value"][0], entry["0020000E"]["Value"][0]) for entry in series]
    return [instance for study, uid in uids for instance in client.retrieve_series(study, uid)]


def infer(server: str, uid: str) -> requests.Response:
    """What OHIF asks for: a mask of the series that it shows, by its UID."""
    url = f"{server}/infer/sam?image={uid}&output=image"
    return requests.post(url, data={"params": json.dumps(OHIF)}, timeout=300)


def listed(server: str) -> set[str]:
    return set(requests.get(f"{server}/datastore/?output=all", timeout=60).json()["objects"])


def submit(server: str, uid: str, label_map: np.ndarray, user: str) -> dict:
    """What a viewer does: a label on the grid of the image that the server hands out; the server's reply."""
    image = requests.get(f"{server}/datastore/image?image={uid}", timeout=60)
    affine = nib.Nifti1Image.from_bytes(gzip.decompress(image.content)).affine
    label = gzip.compress(nib.Nifti1Image(label_map, affine).to_bytes())
    params = {"label_info": [{"name": "disc", "idx": 1}, {"name": "bar", "idx": 2}], "user": user}
    reply = requests.put(
        f"{server}/datastore/label?image={uid}&tag=final",
        files={"label": ("label.nii.gz", label)},
        data={"params": json.dumps(params)},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


def doctor(studies: str, state: Path) -> str:
    command = [Path(sys.executable).parent / "samcorrect", "doctor", "--studies", studies, "--state", state]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def bar_alone() -> np.ndarray:
    """The bar, index 2, in the middle slice."""
    label_map = np.zeros((96, 80, 3), np.uint8)
    label_map[68:84, 14:66, 1] = 2
    return label_map


@pytest.fixture
def cwd(tmp_path):
    """Where a server runs; the state folder is `state` in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "protocol.yaml").write_text(PROTOCOL, encoding="utf-8")
    return folder


def test_a_pacs_is_listed_segmented_and_given_what_people_approve(pacs, own_server, make_series, oblique_affine, cwd):
    settings = {"SAMCORRECT_STATE": str(cwd / "state"), "SAMCORRECT_PROTOCOL": str(cwd / "protocol.yaml")}
    first = stow(pacs, make_series(draw(0), oblique_affine))
    with own_server(cwd, studies=pacs, **settings) as (server, _):
        reply = infer(server, first)
        assert reply.status_code == 200, reply.text
        mask, header = nrrd_of(reply)
        assert header["encoding"] == "raw"
        assert mask.shape == (96, 80, 3)
        assert mask[76, 40].tolist() == [2, 2, 2]
        assert segs_of(pacs) == []  # a machine's label never goes there

        # A series that comes while the server runs can be asked for at once, and is listed.
        second = stow(pacs, make_series(draw(1), oblique_affine))
        assert infer(server, second).status_code == 200
        assert listed(server) == {first, second}

        assert submit(server, first, bar_alone(), "Dr. Who")["pacs"] == {"state": "stored", "reason": ""}
        status = requests.get(f"{server}/info/", timeout=60).json()["datastore"]
        assert (status["total"], status["completed"]) == (2, 1)
        assert listed(server) == {first, second}  # the SEG is no image
    (seg,) = segs_of(pacs)
    assert str(seg.ContentCreatorName) == "Dr. Who^"
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first
    whole = highdicom.seg.Segmentation.from_dataset(seg)
    assert whole.get_segment_numbers(segment_label="bar") == [2]
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    assert frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2
    assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"MANUAL"}  # no label was there before
    log = (cwd / "server.log").read_text(encoding="utf-8")
    for identifier in ("P-4711", "Doe", first, second):
        assert identifier not in log


def test_what_is_submitted_while_the_pacs_is_down_goes_there_later(
    orthanc, own_server, make_series, oblique_affine, cwd
):
    settings = {"SAMCORRECT_STATE": str(cwd / "state"), "SAMCORRECT_PROTOCOL": str(cwd / "protocol.yaml")}
    running = ExitStack()
    with running:
        url = running.enter_context(orthanc())
        first, second = (stow(url, make_series(draw(seed), oblique_affine)) for seed in range(2))
        with own_server(cwd, studies=url, **settings) as (server, _):
            for uid in (first, second):  # the annotator has them open
                assert requests.get(f"{server}/datastore/image?image={uid}", timeout=60).status_code == 200
            running.close()
            told = submit(server, first, bar_alone(), "Dr. Who")["pacs"]
            assert told["state"] == "pending"
            assert told["reason"].startswith(f"cannot reach the PACS at {url}")
            assert listed(server) == {first, second}
            kept = requests.get(f"{server}/datastore/label?label={first}&tag=final", timeout=60)
            assert kept.status_code == 200

            running.enter_context(orthanc())
            assert "1 approved label(s) wait for the PACS" in doctor(url, cwd / "state")
            assert submit(server, second, bar_alone(), "Dr. Who")["pacs"]["state"] == "stored"
            assert "wait for the PACS" not in doctor(url, cwd / "state")
        described = {seg.ReferencedSeriesSequence[0].SeriesInstanceUID for seg in segs_of(url)}
        assert described == {first, second}


def test_the_standard_server_serves_a_pacs_too(pacs, host_server, make_series, oblique_affine, cwd):
    uid = stow(pacs, make_series(draw(0), oblique_affine))
    with host_server(cwd, pacs, SAMCORRECT_PROTOCOL=str(cwd / "protocol.yaml")) as (server, _):
        assert listed(server) == {uid}
        assert infer(server, uid).status_code == 200
        # In a process of its own, which gets the host's settings, {"Modality": "CT"} among them, by its environment.
        requests.post(f"{server}/batch/infer/sam", timeout=60).raise_for_status()
        deadline_s = time.monotonic() + 300
        while requests.get(f"{server}/batch/infer", timeout=60).json().get("status") != "DONE":
            assert time.monotonic() < deadline_s
            time.sleep(1)
        status = requests.get(f"{server}/info/", timeout=60).json()["datastore"]
        assert status == {"total": 1, "completed": 0, "label_tags": {"original": 1}}
        assert submit(server, uid, bar_alone(), "Dr. Who")["pacs"]["state"] == "stored"
    (seg,) = segs_of(pacs)
    assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"SEMIAUTOMATIC"}


def test_a_pacs_without_a_state_folder_is_refused(run, pacs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = run("serve", "--studies", pacs)
    assert code == 1
    assert "give --state DIR" in said
    assert list(tmp_path.iterdir()) == []
