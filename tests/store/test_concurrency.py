"""Several processes at once on one store: nothing is lost, and a killed writer hinders nobody."""

import hashlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

# A writer waits until another's transaction of a few milliseconds is over; far below the 30 s after which it gives up.
WORST_WAIT_S = 5
N_SUBMITS, N_KILLS = 20, 5

IMPORTS = """
import sys, time
from pathlib import Path
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import ImageRow
"""
SUBMIT = """
store = LabelStore(LocalStudies(Path(sys.argv[1])), Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for path in sys.argv[4:]:
    store.submit_label("a", Path(path), tag="final", user=sys.argv[3])
"""
HOLD = """
ledger = Ledger(Path(sys.argv[1]))
with ledger.session(writes=True) as session:
    session.get_one(ImageRow, "a").info = {"torn": True}
    session.flush()
    print("inside", flush=True)
    time.sleep(60)
"""
COUNT = """
ledger = Ledger(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    with ledger.session(writes=True) as session:
        session.get_one(ImageRow, "a").info = {"number": number}
        session.get_one(ImageRow, "b").info = {"number": number}
    print(number, flush=True)
"""


@pytest.fixture
def studies(make_studies) -> Path:
    return make_studies("a.png", "b.png")


@pytest.fixture
def store(studies, tmp_path):
    store = LabelStore(LocalStudies(studies), tmp_path / "state")
    yield store
    store.ledger.close()


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A process of its own that runs `code`."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", IMPORTS + code, *map(str, arguments)], **pipes)


def require_whole(state: Path) -> None:
    """What SQLite itself finds wrong with the file, and rows whose partner is missing: nothing."""
    with sqlite3.connect(state / LEDGER_NAME) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("pragma foreign_key_check").fetchall() == []


def draw_label(path: Path, value: int) -> Path:
    label_map = np.zeros((16, 12, 1), np.uint8)
    label_map.flat[: value + 1] = 1
    write_label_map(path, label_map, LPS_TO_RAS)
    return path


def test_labels_submitted_at_once_all_become_versions(store, studies, tmp_path):
    own = {
        user: [draw_label(tmp_path / user / f"{n}.nii.gz", 2 * n + (user == "bob")) for n in range(N_SUBMITS)]
        for user in ("ann", "bob")
    }
    same = draw_label(tmp_path / "same.nii.gz", 150)
    # Every second submit of either is of one content, so that both write one file at the same time.
    submits = {user: [path for file in files for path in (file, same)] for user, files in own.items()}
    processes = [start(SUBMIT, studies, store.state_dir, user, *paths) for user, paths in submits.items()]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(120) for process in processes] == [0, 0]

    with store.ledger.session() as session:
        rows = (
            session.connection()
            .exec_driver_sql("select id, maker, parent_id, path, content_sha256 from label_version order by id")
            .fetchall()
        )
    expected = Counter((f"user:{user}", file_sha256(path)) for user, paths in submits.items() for path in paths)
    assert Counter((row.maker, row.content_sha256) for row in rows) == expected
    assert all(file_sha256(store.state_dir / row.path) == row.content_sha256 for row in rows)
    assert all(row.parent_id is None or row.parent_id < row.id for row in rows)
    assert sum(row.parent_id is None for row in rows) <= 2
    n_files = sum(path.is_file() for path in (store.state_dir / "labels").rglob("*"))
    assert n_files == 2 * N_SUBMITS + 1
    assert store.ledger.best_label("a").id == rows[-1].id
    assert [row.id for row in store.ledger.images() if row.is_approved] == ["a"]
    require_whole(store.state_dir)


def test_a_process_killed_inside_a_transaction_leaves_nothing_and_lets_the_next_one_in(store):
    holder = start(HOLD, store.state_dir)
    assert holder.stdout.readline() == "inside\n"
    assert store.ledger.image("a").info == {}  # readers neither wait for a writer nor see its unfinished work
    finished = []

    def write() -> None:
        store.ledger.quarantine("b", "waited")
        finished.append(time.monotonic())

    waiting = threading.Thread(target=write)
    waiting.start()
    time.sleep(0.5)
    assert not finished, "the holder did not hold the lock"
    holder.kill()
    killed_at = time.monotonic()
    holder.communicate()
    waiting.join(30)
    assert finished
    assert finished[0] - killed_at < WORST_WAIT_S
    assert store.ledger.image("a").info == {}
    assert store.ledger.quarantined() == [("b", "waited")]
    require_whole(store.state_dir)


def test_what_a_killed_process_has_committed_stays_and_a_transaction_is_whole(store):
    last = 0
    for pause_s in np.random.default_rng(0).uniform(0, 0.3, N_KILLS):
        process = start(COUNT, store.state_dir, last + 1)
        told = process.stdout.readline()
        time.sleep(pause_s)
        process.kill()
        told += process.communicate()[0]
        seen = {image_id: store.ledger.image(image_id).info["number"] for image_id in ("a", "b")}
        assert seen["a"] == seen["b"]
        # The last line may have been cut off by the kill, or not have been written after its transaction.
        last_told = int(told[: told.rindex("\n")].rpartition("\n")[2])
        assert last < last_told <= seen["a"] <= last_told + 1
        last = seen["a"]
        require_whole(store.state_dir)


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
