"""A disk that is full in the middle of a write: a clear refusal, nothing torn, and all as before once there is room."""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from samcorrect.lib.errors import StoreError
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import load_settings
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow
from samcorrect.lib.store.studies import ImageFile
from samcorrect.lib.store.volumes import LPS_TO_RAS

DISK_BYTES = 8 * 2**20
PAGE_BYTES = 4096
# Voxels of the phantom pictures.
SHAPE = (96, 80, 1)
# What the endpoints for saving and for reading call one and the same.
CASE = {"image": "case0", "label": "case0", "tag": "final"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command here")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, room_bytes: int) -> Path:
    """Fill a disk up to some room; returns the file that does, so that it can be deleted."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(PAGE_BYTES)):
                pass
        except OSError:
            stream.truncate(max(0, stream.tell() - room_bytes))
    return filler


def put_label(url: str, path: Path) -> requests.Response:
    form = {"params": json.dumps({"client_id": "ann"})}
    with path.open("rb") as stream:
        files = {"label": (path.name, stream)}
        return requests.put(f"{url}/datastore/label", params=CASE, data=form, files=files, timeout=60)


def get_label(url: str) -> bytes:
    reply = requests.get(f"{url}/datastore/label", params=CASE, timeout=60)
    reply.raise_for_status()
    return reply.content


def draw_label(path: Path, seed: int) -> Path:
    """A label of 8 KB: raw, so that its size is known, and three pages of a disk."""
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).choice([0, 2, 5], SHAPE).astype(np.uint8), LPS_TO_RAS), path)
    return path


def require_whole(ledger: Path) -> None:
    with sqlite3.connect(ledger) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
def test_a_label_that_does_not_fit_is_refused_and_the_one_before_stays(disk, own_server, tmp_path):
    old, new = draw_label(tmp_path / "old.nii", 1), draw_label(tmp_path / "new.nii", 2)
    state = disk / "state"
    with own_server(tmp_path, SAMCORRECT_STATE=str(state)) as (url, server):
        assert put_label(url, old).status_code == 200
        # No room at all, room for half of the label, and for the label but not for its row in the ledger.
        for room_bytes in (0, PAGE_BYTES, 4 * PAGE_BYTES):
            filler = fill(disk, room_bytes=room_bytes)
            reply = put_label(url, new)
            assert reply.status_code in (503, 507), reply.text
            assert reply.json()["error"] == "StoreError"
            assert str(disk) in reply.json()["detail"]
            assert "No space left on device" in reply.json()["detail"] or "disk is full" in reply.json()["detail"]
            # Nothing of what failed stays, and what was there is served as it was.
            assert [p for p in (state / "labels").rglob("*") if p.name.startswith(".")] == []
            assert get_label(url) == old.read_bytes()
            info = requests.get(f"{url}/datastore/label/info", params=CASE, timeout=60)
            assert info.json()["maker"] == "user:ann"
            assert requests.get(f"{url}/info/", timeout=60).status_code == 200
            filler.unlink()
            require_whole(state / LEDGER_NAME)
        assert put_label(url, new).status_code == 200
        assert get_label(url) == new.read_bytes()
        assert server.poll() is None
    ledger = Ledger(state)
    assert [row.maker for row in ledger.versions("case0")] == ["user:ann"] * 2
    ledger.close()


def test_scores_that_do_not_fit_leave_the_scores_before(disk):
    def scores(label: LabelVersionRow, score: float) -> list[QualityRow]:
        rows = [QualityRow(label_version_id=label.id, structure_index=index, score=score) for index in range(20)]
        for row in rows:
            row.created_at, row.reasons = 0.0, ["the boundary differs from its peers " * 10]
        return rows

    ledger = Ledger(disk / "state")
    ledger.sync_images([ImageFile("a", "a.png", "a")])
    row = LabelVersionRow(image_id="a", tag="original", maker="sam", path="x", content_sha256="0" * 64, created_at=0)
    label = ledger.add_label(row)
    ledger.set_quality(label.id, scores(label, 0.25))
    filler = fill(disk, room_bytes=PAGE_BYTES)

    def write_until_full() -> None:
        for number in range(100):  # the database's log may have room of its own left
            ledger.set_quality(label.id, scores(label, (0.75, 0.25)[number % 2]))

    with pytest.raises(StoreError, match=rf"the ledger in {disk}/state cannot be used: .*disk is full"):
        write_until_full()
    kept = {quality.score for quality in ledger.quality(label.id).values()}
    assert kept in ({0.25}, {0.75})
    assert len(ledger.quality(label.id)) == 20
    assert {ledger.image("a").queue_score} == kept
    require_whole(disk / "state" / LEDGER_NAME)
    filler.unlink()
    ledger.set_quality(label.id, scores(label, 0.5))
    assert ledger.image("a").queue_score == 0.5
    ledger.close()


@pytest.mark.slow
def test_caches_that_cannot_be_written_stop_no_work(disk, phantoms, tmp_path, caplog):
    shutil.copytree(phantoms, tmp_path / "studies", ignore=shutil.ignore_patterns("case[1-9].png", "oblique*", ".*"))
    settings = load_settings({"state": tmp_path / "state", "n_candidates": 2, "threads": 1}, environment={})
    workspace = open_workspace(tmp_path / "studies", settings, cache_dir=disk / "cache")
    fill(disk, room_bytes=PAGE_BYTES)
    assert pseudo_label_store(workspace) == {"n_labelled": 1, "n_kept": 0, "n_quarantined": 0}
    assert workspace.store.ledger.best_label("case0").tag == "original"
    assert "No space left on device" in caplog.text
    # Candidates are small enough for the room that is left; nothing half written is.
    assert {path.suffix for path in (disk / "cache").rglob("*") if path.is_file()} <= {".npz"}
    workspace.store.ledger.close()
