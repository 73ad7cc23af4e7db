"""Writing files so that a killed process, a full disk or a power cut leaves the old one or the new one, whole, and
telling whether a file is the one of before.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from samcorrect.lib.errors import ImageError, StoreError

N_HASHES = 100_000
BLOCK_BYTES = 2**20


def write_atomically(
    path: Path, write: Callable[[Path], object], *, suffix: str = ".tmp", scratch_dir: Path | None = None
) -> None:
    """Let `write` fill a temporary file, flush it to the disk and move it to `path` in one step.

    The temporary file lies in `scratch_dir`, a folder of the same file system, or beside `path`.

    Raises:
        StoreError: The folder cannot be written (a full disk, a missing right); nothing is left behind.
    """
    handle, temporary = -1, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=suffix, dir=scratch_dir or path.parent)
        temporary = Path(name)
        write(temporary)
        os.fsync(handle)
        os.close(handle)  # Windows moves no open file
        handle = -1
        os.replace(temporary, path)
        temporary = None
        _flush_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path.name} in {path.parent}: {error.strerror or error}") from error
    finally:
        if handle >= 0:
            os.close(handle)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Let a power cut not take away the name of a file that is on the disk; Windows cannot open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step. Raises StoreError as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def image_sha256(path: Path) -> str:
    """SHA-256 of an image's file, read again only where its size or time of change are others.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        state = path.stat()
        return _sha256(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=N_HASHES)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
