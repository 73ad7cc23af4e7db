"""SAM embeddings on disk, so that a slice is encoded once however often it is prompted."""

import hashlib
import io
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from samcorrect.lib.networks.sam import SamModel

logger = logging.getLogger(__name__)

# 2 MB a slice; the oldest used go first.
DEFAULT_MAX_BYTES = 4 * 1024**3


class EmbeddingCache:
    """A folder of float16 arrays named by image content, weights and runtime."""

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES):
        self._folder = folder
        self._max_bytes = max_bytes
        self._size_bytes: int | None = None
        self._has_warned = False

    def embedding(self, sam: SamModel, frame: torch.Tensor) -> torch.Tensor:
        """The embedding of a slice, from the cache or computed and kept.

        Args:
            sam: The model.
            frame: (side, side) float in [0, 1].

        Returns:
            As `SamModel.encode`. A torn file is computed anew, and where the folder cannot be written (a full disk), so
            is every slice: a cache saves time and stops no work.
        """
        key = hashlib.sha256(frame.numpy().tobytes() + f"{sam.digest} {sam.runtime}".encode()).hexdigest()
        path = self._folder / key[:2] / f"{key}.npy"
        try:
            array = np.load(path, allow_pickle=False)
            os.utime(path)
            return torch.from_numpy(array)
        except (OSError, ValueError, EOFError):
            embedding = sam.encode(frame)
        self._evict(self._keep(path, embedding.numpy()))
        return embedding

    def _keep(self, path: Path, array: np.ndarray) -> int:
        """Write a file in one step and return its bytes; 0 where the folder cannot be written."""
        # The threads of a server may encode one slice at once.
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
        buffer = io.BytesIO()
        np.save(buffer, array)
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
        if self._size_bytes is None:
            self._size_bytes = sum(size for _, size, _ in self._files())
        else:
            self._size_bytes += added_bytes
        if self._size_bytes <= self._max_bytes:
            return
        for _, size, path in sorted(self._files()):
            self._size_bytes -= size
            path.unlink(missing_ok=True)
            if self._size_bytes <= 0.9 * self._max_bytes:
                return

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file that another process has not just dropped."""
        files = []
        for path in self._folder.rglob("*.npy"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        return files
