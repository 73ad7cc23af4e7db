"""Encoders in the file formats of other runtimes, kept on disk and made anew where they are torn."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

SUMS_NAME = "sha256.json"
_BLOCK_BYTES = 2**20

Loaded = TypeVar("Loaded")


def load_exported(
    export_dir: Path | None, identity: str, *, write: Callable[[Path], None], load: Callable[[Path], Loaded]
) -> Loaded:
    """Load what was exported before, or export, keep and load it.

    Args:
        export_dir: Folder of all exports; None keeps none.
        identity: Names what is exported: the weights and the versions of what writes and reads it.
        write: Fills an empty folder.
        load: Reads such a folder.

    Returns:
        What `load` gives. Where the folder cannot be written the export serves this process alone: a cache saves time
        and stops no work.
    """
    kept = None if export_dir is None else export_dir / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if kept is not None and _is_whole(kept):
        return load(kept)
    if kept is not None:
        try:
            export_dir.mkdir(parents=True, exist_ok=True)
            return _export(export_dir, kept, write, load)
        except (OSError, RuntimeError) as error:  # OpenVINO meets a full disk with a RuntimeError
            logger.warning("encoders are not kept in %s: %s", export_dir, error)
    return _export(None, None, write, load)


def _export(
    export_dir: Path | None, kept: Path | None, write: Callable[[Path], None], load: Callable[[Path], Loaded]
) -> Loaded:
    with tempfile.TemporaryDirectory(prefix=".export.", dir=export_dir) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        write(made)
        (made / SUMS_NAME).write_text(json.dumps(_sums(made)), encoding="utf-8")
        loaded = load(made)
        # Another process that was faster may have put the same there, and others may be reading it.
        if kept is not None and not _is_whole(kept):
            shutil.rmtree(kept, ignore_errors=True)
            with suppress(OSError):
                os.replace(made, kept)
    return loaded


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks: the weights of SAM ViT-H have 2.5 GB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    try:
        wanted = json.loads((folder / SUMS_NAME).read_text(encoding="utf-8"))
        return _sums(folder) == wanted
    except (OSError, ValueError):
        return False


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != SUMS_NAME:
            sums[path.name] = file_sha256(path)
    return sums
