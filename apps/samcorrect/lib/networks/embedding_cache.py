"""SAM embeddings on disk, so that a slice is encoded once however often it is prompted."""

import hashlib
import io
import logging
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from samcorrect.lib.networks.sam import SamModel

logger = logging.getLogger(__name__)

# 2 MB a slice; the longest unused go first.
DEFAULT_MAX_BYTES = 4 * 1024**3
# The folder is walked after this share of the cap was written by one process, and not at every slice. So P processes
# exceed the cap by P times this at most, and none relies on a count that another one could spoil.
SCAN_SHARE = 0.05
# Down to which share of the cap files are dropped.
KEPT_SHARE = 0.9
# Threads that want one slice take turns; more locks, fewer that wait for another slice.
N_LOCKS = 64
# CRC-32: it tells damage, not malice, and takes less than a millisecond a slice.
CHECKSUM_BYTES = 4


class EmbeddingCache:
    """A folder of float16 arrays named by image content, weights, preprocessing and runtime, each with a checksum.

    Threads and processes may share it: files appear and vanish in one step, and what vanished is encoded anew.
    """

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES):
        self._folder = folder
        self._max_bytes = max_bytes
        self._locks = [threading.Lock() for _ in range(N_LOCKS)]
        self._size_lock = threading.Lock()
        # Written by this process since it last walked the folder; None before it did.
        self._unscanned_bytes: int | None = None
        self._has_warned = False

    def embedding(self, sam: SamModel, frame: torch.Tensor) -> torch.Tensor:
        """The embedding of a slice, from the cache or computed and kept; threads that ask for one slice encode it once.

        Args:
            sam: The model.
            frame: (side, side) float in [0, 1].

        Returns:
            As `SamModel.encode`. A torn file is computed anew, and where the folder cannot be written (a full disk), so
            is every slice: a cache saves time and stops no work.
        """
        digest = hashlib.sha256(frame.numpy().tobytes() + sam.embedding_identity.encode())
        path = self._folder / digest.hexdigest()[:2] / f"{digest.hexdigest()}.npy"
        # The next slice of the caller may have the same lock, so none is held while waiting for another.
        with self._locks[digest.digest()[-1] % N_LOCKS]:
            array = _read(path)
            if array is not None:
                with suppress(OSError):  # dropped meanwhile, or on a disk that is only read
                    os.utime(path)
                return torch.from_numpy(array)
            embedding = sam.encode(frame)
            added_bytes = self._keep(path, embedding.numpy())
        with self._size_lock:
            self._evict(added_bytes)
        return embedding

    def _keep(self, path: Path, array: np.ndarray) -> int:
        """Write a file in one step and return its bytes; 0 where the folder cannot be written."""
        # Another process may encode the same slice.
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        buffer = io.BytesIO()
        np.save(buffer, array)
        buffer.write(_checksum(buffer.getbuffer()))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(buffer.getbuffer())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._has_warned:
                logger.warning("embeddings are not kept in %s: %s", self._folder, error.strerror or error)
            self._has_warned = True
            return 0
        return buffer.tell()

    def _evict(self, added_bytes: int) -> None:
        if self._unscanned_bytes is not None:
            self._unscanned_bytes += added_bytes
            if self._unscanned_bytes <= SCAN_SHARE * self._max_bytes:
                return
        self._unscanned_bytes = 0
        files = sorted(self._files())
        size_bytes = sum(size for _, size, _ in files)
        if size_bytes <= self._max_bytes:
            return
        for _, size, path in files:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                size_bytes -= size
            if size_bytes <= KEPT_SHARE * self._max_bytes:
                return

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file that another process has not just dropped.

        What a killed process left half written is among them, and goes as the longest unused.
        """
        files = []
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        return files


def _read(path: Path) -> np.ndarray | None:
    """The array of a file; None where there is none, or it is not what was written (a power cut leaves zeros)."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    array, checksum = memoryview(content)[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    return np.load(io.BytesIO(array), allow_pickle=False) if _checksum(array) == checksum else None


def _checksum(content: memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")
