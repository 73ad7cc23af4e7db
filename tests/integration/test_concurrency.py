"""Thousands of notes from four processes while a server writes too: none is lost, and nobody waits long."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import requests

from samcorrect.lib.store.datastore import LedgerDatastore
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

N_PROCESSES = 4
IMAGES = tuple(f"case{number}" for number in range(10))
# Transactions of a millisecond each; after 30 s a writer would give up with "database is locked".
WORST_WAIT_S = 10
WRITER = """
import json, sys, time
from pathlib import Path
from samcorrect.lib.store.datastore import LedgerDatastore
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.studies import LocalStudies

datastore = LedgerDatastore(LabelStore(LocalStudies(Path(sys.argv[1])), Path(sys.argv[2])), None)
writer, n_updates, images = sys.argv[3], int(sys.argv[4]), sys.argv[5:]
print("ready", flush=True)
sys.stdin.readline()
seconds = []
for number in range(n_updates):
    started = time.perf_counter()
    image_id, note = images[number // 2 % len(images)], {f"{writer}-{number}": number}
    if number % 2:
        datastore.update_image_info(image_id, note)
    else:
        datastore.update_label_info(image_id, "final", note)
    seconds.append(time.perf_counter() - started)
print(json.dumps({"worst_s": max(seconds), "total_s": sum(seconds)}))
"""


@pytest.fixture
def store(make_studies, tmp_path):
    """A store of ten images, each with a final label."""
    store = LabelStore(LocalStudies(make_studies(*(f"{image_id}.png" for image_id in IMAGES))), tmp_path / "state")
    write_label_map(tmp_path / "label.nii.gz", np.ones((16, 12, 1), np.uint8), LPS_TO_RAS)
    for image_id in IMAGES:
        store.submit_label(image_id, tmp_path / "label.nii.gz", tag="final", user="ann")
    yield store
    store.ledger.close()


class ServerWriter(threading.Thread):
    """Writes notes through a server until it is told to stop.

    Attributes:
        answered: Number of every note that the server said it took.
        refused: Status and text of every other answer.
        worst_s: The longest wait for an answer.
    """

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url = url
        self.answered: list[int] = []
        self.refused: list[str] = []
        self.worst_s = 0.0
        self.is_stopped = threading.Event()

    def run(self) -> None:
        for number in range(10**6):
            if self.is_stopped.is_set():
                return
            what, place = _target(number)
            params = {what: IMAGES[place], "tag": "final"}
            note = {"info": json.dumps({f"server-{number}": number})}
            started = time.perf_counter()
            reply = requests.put(f"{self.url}/datastore/{what}/info", params=params, data=note, timeout=60)
            self.worst_s = max(self.worst_s, time.perf_counter() - started)
            if reply.ok:
                self.answered.append(number)
            else:
                self.refused.append(f"{reply.status_code} {reply.text[:200]}")


@pytest.mark.parametrize(
    "n_updates", [pytest.param(250, marks=pytest.mark.slow), pytest.param(2500, marks=pytest.mark.long)]
)
def test_of_many_updates_from_four_processes_and_a_server_none_is_lost(
    store, own_server, tmp_path, record_property, n_updates
):
    with own_server(tmp_path, store.studies.folder, SAMCORRECT_STATE=str(store.state_dir)) as (url, _):
        command = [sys.executable, "-c", WRITER, store.studies.location, str(store.state_dir)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen([*command, f"writer{n}", str(n_updates), *IMAGES], **pipes) for n in range(N_PROCESSES)
        ]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * N_PROCESSES
        server = ServerWriter(url)
        server.start()
        started = time.perf_counter()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(process.communicate(timeout=900)[0]) for process in processes]
        seconds = time.perf_counter() - started
        server.is_stopped.set()
        server.join(60)
    record_property("updates_per_s", round(N_PROCESSES * n_updates / seconds))
    record_property("server_updates", len(server.answered))
    record_property("worst_wait_s", round(max(server.worst_s, *(t["worst_s"] for t in told)), 3))

    assert server.refused == []
    assert len(server.answered) > 10, "the server hardly wrote"
    assert_all_there(store, n_updates, server.answered)
    assert max(t["worst_s"] for t in told) < WORST_WAIT_S
    assert server.worst_s < WORST_WAIT_S


def assert_all_there(store: LabelStore, n_updates: int, by_server: list[int]) -> None:
    """Every image and label has the notes that were written to it, key by key, and no others."""
    datastore = LedgerDatastore(store, None)
    written = {f"writer{w}": list(range(n_updates)) for w in range(N_PROCESSES)} | {"server": by_server}
    for place, image_id in enumerate(IMAGES):
        on_label, on_image = (
            {f"{writer}-{n}": n for writer, numbers in written.items() for n in numbers if _target(n) == (what, place)}
            for what in ("label", "image")
        )
        assert _numbered(datastore.get_label_info(image_id, "final")["viewer"]) == on_label
        assert _numbered(datastore.get_image_info(image_id)) == on_image


def _numbered(notes: dict[str, object]) -> dict[str, object]:
    """Notes without what the server adds of who wrote them."""
    return {key: value for key, value in notes.items() if "-" in key}


def _target(number: int) -> tuple[str, int]:
    """What the note of a number is written to: images and labels in turn, one image after the other."""
    return ("label", "image")[number % 2], number // 2 % len(IMAGES)
