"""Backups: the ledger, every label version and the models in one tar file, made while the server runs.

The ledger goes in as SQLite whatever it is kept in, so a backup also moves a store from SQLite to PostgreSQL and back.
Images are not in it: they are the hospital's own, and a label names its image by an id relative to the studies.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection, func, insert, select

from samcorrect import __version__
from samcorrect.lib.errors import StoreError
from samcorrect.lib.store.dicomweb import CASE_KEY_NAME
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.files import write_atomically
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import REVISION, Base, LabelVersionRow

MANIFEST_NAME = "manifest.json"
# What a state folder holds that cannot be made anew; caches and logs stay out.
KEPT = ("labels", "models", "sam", "cohort.json", "sam_models.json", CASE_KEY_NAME)
ROWS_AT_ONCE = 1000

# (done, total)
Told = Callable[[int, int], None]


def write_backup(store: LabelStore, file: Path, *, progress: Told = lambda _done, _total: None) -> dict[str, Any]:
    """Write a backup of a store; others may work on it in the meantime.

    The ledger is copied first, in one snapshot. A label's file is on the disk before the ledger knows it and is never
    changed, so every file that the copy names is there.

    Args:
        store: The store.
        file: A new file.
        progress: Told about every file.

    Returns:
        `n_labels`, `n_files` and `damaged`: label files that are gone or were changed on the disk.

    Raises:
        StoreError: `file` exists, or cannot be written.
    """
    if file.exists():
        raise StoreError(f"{file} exists already, and a backup is never overwritten; give another name")
    told: dict[str, Any] = {}

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=f".{file.name[:40]}.") as folder:
            copy = Ledger(Path(folder))
            _copy_tables(store.ledger, copy)
            copy.close()
            told.update(_write_tar(temporary, Path(folder) / LEDGER_NAME, store.state_dir, progress))

    write_atomically(file, write)
    return told


def restore_backup(
    file: Path, state_dir: Path, ledger_url: str | None = None, *, progress: Told = lambda _done, _total: None
) -> dict[str, Any]:
    """Make a state folder from a backup.

    Args:
        file: The backup.
        state_dir: Must be missing or empty.
        ledger_url: Of an empty PostgreSQL database; None keeps the ledger in the state folder.
        progress: Told about every label file that is checked.

    Returns:
        `n_labels`, and `damaged`: label files that were damaged before the backup was made.

    Raises:
        StoreError: The file is no backup, or is damaged; the state folder or the database is in use already; or the
            disk is full or may not be written.
    """
    state_dir = state_dir.absolute()
    try:
        manifest = _restore(file, state_dir, ledger_url, progress)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot restore {file} to {state_dir}: {error.strerror or error}") from error
    return {"n_labels": manifest["n_labels"], "damaged": manifest["damaged"]}


def _restore(file: Path, state_dir: Path, ledger_url: str | None, progress: Told) -> dict[str, Any]:
    if state_dir.exists() and any(state_dir.iterdir()):
        raise StoreError(f"the state folder {state_dir} is not empty, and nothing is overwritten: give another --state")
    state_dir.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=state_dir.parent, prefix=".samcorrect-restore."))
    try:
        manifest = _unpack(file, folder)
        ledger = Ledger(folder)
        _check_labels(ledger, folder, set(manifest["damaged"]), progress)
        if ledger_url is not None:
            target = Ledger(folder, ledger_url)
            if target.image_ids() or target.quarantined():
                raise StoreError(f"the database {ledger_url} holds a ledger already; give an empty one")
            _copy_tables(ledger, target)
            target.close()
        ledger.close()
        for leftover in folder.glob(f"{LEDGER_NAME}*" if ledger_url is not None else f"{LEDGER_NAME}-*"):
            leftover.unlink()
        os.replace(folder, state_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _copy_tables(source: Ledger, target: Ledger) -> None:
    """Copy every row, as one snapshot, into a ledger that holds none."""
    with source.snapshot() as reading, target.session(writes=True) as writing:
        for table in Base.metadata.sorted_tables:
            result = reading.connection().execute(select(table).order_by(*table.primary_key.columns))
            for part in result.mappings().partitions(ROWS_AT_ONCE):
                writing.execute(insert(table), [dict(row) for row in part])
        if target.url is not None:
            _advance_sequences(writing.connection())


def _advance_sequences(connection: Connection) -> None:
    """Let PostgreSQL number new rows after those that were copied with their numbers."""
    for table in Base.metadata.sorted_tables:
        column = table.autoincrement_column
        if column is not None and (newest := connection.scalar(select(func.max(column)))) is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(select(func.setval(sequence, newest)))


def _write_tar(path: Path, ledger_file: Path, state_dir: Path, progress: Told) -> dict[str, Any]:
    copy = Ledger(ledger_file.parent)
    wanted = _label_files(copy)
    copy.close()
    files = list(_kept_files(state_dir))
    damaged = sorted(wanted.keys() - {name for name, _ in files})
    with tarfile.open(path, "w") as archive:
        archive.add(ledger_file, LEDGER_NAME)
        for done, (name, file) in enumerate(files):
            if name in wanted and hashlib.sha256(file.read_bytes()).hexdigest() != wanted[name]:
                damaged.append(name)
            with file.open("rb") as content:
                _add(archive, name, content)
            progress(done + 1, len(files))
        manifest = {"samcorrect": __version__, "revision": REVISION, "n_labels": len(wanted), "damaged": damaged}
        _add(archive, MANIFEST_NAME, io.BytesIO(json.dumps(manifest, indent=1).encode()))
    return {"n_labels": len(wanted), "n_files": len(files), "damaged": damaged}


def _add(archive: tarfile.TarFile, name: str, content: BinaryIO) -> None:
    """Add a file in parts: the weights of a SAM may be larger than the memory."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = content.seek(0, os.SEEK_END), 0o600
    content.seek(0)
    archive.addfile(member, content)


def _kept_files(state_dir: Path) -> Iterator[tuple[str, Path]]:
    for kept in KEPT:
        path = state_dir / kept
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            # Files under a hidden name are being written, and `.part` is what a download has brought of one.
            if file.is_file() and not file.name.startswith(".") and file.suffix != ".part":
                yield file.relative_to(state_dir).as_posix(), file


def _label_files(ledger: Ledger) -> dict[str, str]:
    """Path below the state folder to SHA-256 of every label file that a ledger names."""
    with ledger.session() as session:
        columns = select(LabelVersionRow.path, LabelVersionRow.content_sha256).distinct()
        return dict(session.execute(columns).tuples().all())


def _unpack(file: Path, folder: Path) -> dict[str, Any]:
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                is_known = member.name in (LEDGER_NAME, MANIFEST_NAME) or member.name.split("/")[0] in KEPT
                if not (member.isfile() and is_known):
                    raise StoreError(f"{file} is no backup of samcorrect: it holds {member.name!r:.80}")
                archive.extract(member, folder, filter="data")
        manifest_file = folder / MANIFEST_NAME
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        manifest_file.unlink()
    except (tarfile.TarError, FileNotFoundError, IsADirectoryError, ValueError, EOFError) as error:
        raise StoreError(f"{file} is no whole backup of samcorrect: {error}") from error
    return manifest


def _check_labels(ledger: Ledger, folder: Path, known_damaged: set[str], progress: Told) -> None:
    wanted = _label_files(ledger)
    for done, (name, sha256) in enumerate(wanted.items()):
        path = folder / name
        is_whole = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        if not is_whole and name not in known_damaged:
            raise StoreError(f"the backup is damaged: the label file {name} is missing or not the one it was")
        progress(done + 1, len(wanted))
