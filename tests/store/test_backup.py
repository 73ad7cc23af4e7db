"""Backups: whole, made beside writers, moved between databases, and refused where something would be overwritten."""

import io
import resource
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from samcorrect.lib.errors import StoreError
from samcorrect.lib.store.backup import MANIFEST_NAME, restore_backup, write_backup
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.schema import Base, QualityRow
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

SHAPE = (16, 12, 1)


def label_of(value: int) -> np.ndarray:
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[: value + 1, 2:6] = 1
    return label_map


@pytest.fixture
def studies(make_studies) -> Path:
    return make_studies("a.png", "ward/b.png")


@pytest.fixture
def store(studies, tmp_path, ledger_url):
    """Three versions of a label, a person's among them, a score, models' files, a cache and half-written files."""
    source, state_dir = open_studies(studies, tmp_path / "state")
    store = LabelStore(source, state_dir, ledger_url)
    first = store.save_label_map("a", label_of(1), tag="original", maker="sam:test", affine=LPS_TO_RAS)
    store.save_label_map("a", label_of(2), tag="corrected", maker="c", affine=LPS_TO_RAS, parent_id=first.id)
    write_label_map(tmp_path / "hers.nrrd", label_of(3), LPS_TO_RAS)
    store.submit_label("ward/b", tmp_path / "hers.nrrd", tag="final", user="anna")
    store.ledger.set_quality(
        first.id, [QualityRow(label_version_id=first.id, structure_index=0, score=0.25, created_at=1.0)]
    )
    for name in (
        "models/student.pt",
        "sam/ours.pth",
        "sam/vit_h.pth.part",
        "cache/big.npy",
        "logs/app.log",
        "labels/a/.half.tmp",
    ):
        (state_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (state_dir / name).write_bytes(name.encode())
    yield store
    store.ledger.close()


def rows_of(store: LabelStore) -> dict:
    with store.ledger.session() as session:
        return {
            table.name: [tuple(row) for row in session.execute(table.select().order_by(*table.primary_key.columns))]
            for table in Base.metadata.sorted_tables
        }


def open_again(studies: Path, state_dir: Path, url: str | None = None) -> LabelStore:
    source, state_dir = open_studies(studies, state_dir)
    return LabelStore(source, state_dir, url)


def test_a_backup_brings_back_every_row_and_file_but_caches(store, studies, tmp_path):
    told = write_backup(store, tmp_path / "b.tar")
    assert told == {"n_labels": 3, "n_files": 5, "damaged": []}
    assert restore_backup(tmp_path / "b.tar", tmp_path / "new") == {"n_labels": 3, "damaged": []}
    files = sorted(path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*.*"))
    labels = [row.path for image_id in ("a", "ward/b") for row in store.ledger.versions(image_id)]
    assert files == sorted([*labels, LEDGER_NAME, "models/student.pt", "sam/ours.pth"])
    assert (tmp_path / "new" / "sam" / "ours.pth").read_bytes() == b"sam/ours.pth"
    again = open_again(studies, tmp_path / "new")
    assert rows_of(again) == rows_of(store)
    hers = again.label("ward/b", "final")
    assert again.label_path(hers).read_bytes() == (tmp_path / "hers.nrrd").read_bytes()
    assert hers.maker == "user:anna"
    # New rows are numbered after those that came back.
    newest = again.save_label_map("a", label_of(4), tag="original", maker="sam:test", affine=LPS_TO_RAS)
    assert newest.id == 4


@pytest.mark.postgres
def test_a_backup_moves_a_store_from_one_kind_of_database_to_another(store, studies, tmp_path, new_postgres_database):
    write_backup(store, tmp_path / "b.tar")
    url = new_postgres_database()
    restore_backup(tmp_path / "b.tar", tmp_path / "new", url)
    assert not list((tmp_path / "new").glob(f"{LEDGER_NAME}*"))
    again = open_again(studies, tmp_path / "new", url)
    assert rows_of(again) == rows_of(store)
    assert again.save_label_map("a", label_of(4), tag="original", maker="x", affine=LPS_TO_RAS).id == 4
    with pytest.raises(StoreError, match="holds a ledger already; give an empty one"):
        restore_backup(tmp_path / "b.tar", tmp_path / "third", url)
    assert not (tmp_path / "third").exists()
    again.ledger.close()


def test_a_backup_made_while_others_write_holds_a_file_for_every_row(store, tmp_path, studies):
    stop = threading.Event()

    def write_on() -> None:
        number = 0
        while not stop.is_set():
            label = label_of(number % 10)
            label[15, 11] = number % 200
            store.save_label_map("a", label, tag="original", maker="sam:test", affine=LPS_TO_RAS)
            number += 1

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for number in range(5):
            write_backup(store, tmp_path / f"{number}.tar")
    finally:
        stop.set()
        writer.join(timeout=60)
    counts = []
    for number in range(5):
        restore_backup(tmp_path / f"{number}.tar", tmp_path / f"new{number}")  # checks every file against its row
        again = open_again(studies, tmp_path / f"new{number}")
        counts.append(len(again.ledger.versions("a")))
        again.ledger.close()
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_what_was_damaged_on_the_disk_is_told_and_the_rest_is_backed_up(store, tmp_path):
    gone, changed = (store.label_path(row) for row in store.ledger.versions("a"))
    gone.unlink()
    changed.write_bytes(b"changed")
    told = write_backup(store, tmp_path / "b.tar")
    damaged = [path.relative_to(store.state_dir).as_posix() for path in (gone, changed)]
    assert sorted(told["damaged"]) == sorted(damaged)
    assert sorted(restore_backup(tmp_path / "b.tar", tmp_path / "new")["damaged"]) == sorted(damaged)


def test_nothing_is_overwritten(store, tmp_path):
    (tmp_path / "b.tar").write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"b\.tar exists already, and a backup is never overwritten"):
        write_backup(store, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == b"mine"
    write_backup(store, tmp_path / "c.tar")
    with pytest.raises(StoreError, match="is not empty, and nothing is overwritten"):
        restore_backup(tmp_path / "c.tar", store.state_dir)


def _change(file: Path, out: Path, change) -> Path:
    """The same archive with its members, (name, content), changed."""
    with tarfile.open(file) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(out, "w") as archive:
        for name, content in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out


def test_a_file_that_is_no_whole_backup_is_refused_and_leaves_nothing(store, tmp_path):
    whole = tmp_path / "b.tar"
    write_backup(store, whole)
    (tmp_path / "text.tar").write_text("no backup")
    (tmp_path / "half.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    label = store.ledger.versions("a")[0].path
    bad = {
        tmp_path / "gone.tar": "cannot|no whole backup",
        tmp_path / "text.tar": "no whole backup",
        store.state_dir: "no whole backup of samcorrect: .*Is a directory",
        tmp_path / "half.tar": "no whole backup",
        _change(whole, tmp_path / "m.tar", lambda m: [x for x in m if x[0] != MANIFEST_NAME]): "no whole backup",
        _change(whole, tmp_path / "e.tar", lambda m: [*m, ("../evil", b"x")]): "it holds '../evil'",
        _change(whole, tmp_path / "f.tar", lambda m: [*m, ("labels/../../evil", b"x")]): "no whole backup",
        _change(whole, tmp_path / "g.tar", lambda m: [*m, ("/etc/evil", b"x")]): "it holds '/etc/evil'",
        _change(whole, tmp_path / "h.tar", lambda m: [(n, b"y" if n == label else c) for n, c in m]): label,
        _change(whole, tmp_path / "i.tar", lambda m: [x for x in m if x[0] != label]): label,
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for file, message in bad.items():
        with pytest.raises(StoreError, match=message):
            restore_backup(file, tmp_path / "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_backup_that_the_disk_does_not_hold_is_refused_and_leaves_nothing(store, tmp_path):
    write_backup(store, tmp_path / "b.tar")
    before = sorted(path.name for path in tmp_path.iterdir())
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, most))  # a write beyond fails as on a full disk
    try:
        with pytest.raises(StoreError, match=f"cannot restore .*b.tar to {tmp_path / 'new'}: File too large"):
            restore_backup(tmp_path / "b.tar", tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"cannot restore .*b.tar to {tmp_path / 'file'}: Not a directory"):
        restore_backup(tmp_path / "b.tar", tmp_path / "file")
    (tmp_path / "file").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_studies_that_were_moved_still_open_with_all_their_labels(store, studies, tmp_path, ledger_url):
    moved, moved_state = tmp_path / "elsewhere" / "studies", tmp_path / "elsewhere" / "state"
    store.ledger.close()
    shutil.move(studies, moved)
    shutil.move(store.state_dir, moved_state)
    again = open_again(moved, moved_state, ledger_url)
    assert [row.id for row in again.require_images()] == ["a", "ward/b"]
    assert again.read_image("ward/b").array.shape == SHAPE
    assert np.array_equal(again.read_label(again.ledger.best_label("a")), label_of(2))
    with again.ledger.session() as session:
        rows = [row for table in Base.metadata.sorted_tables for row in session.execute(table.select())]
    assert str(studies) not in str(rows)
    again.ledger.close()
