"""SAM embeddings on disk, so that a slice is encoded once however often it is prompted."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from samcorrect.lib.networks.sam import SamModel

# 2 MB a slice; the oldest used go first.
DEFAULT_MAX_BYTES = 4 * 1024**3


class EmbeddingCache:
    """A folder of float16 arrays named by image content, weights and runtime."""

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES):
        self._folder = folder
        self._max_bytes = max_bytes
        self._size_bytes: int | None = None

    def embedding(self, sam: SamModel, frame: torch.Tensor) -> torch.Tensor:
        """The embedding of a slice, from the cache or computed and kept.

        Args:
            sam: The model.
            frame: (side, side) float in [0, 1].

        Returns:
            As `SamModel.encode`. A torn file is computed anew.
        """
        key = hashlib.sha256(frame.numpy().tobytes() + f"{sam.digest} {sam.runtime}".encode()).hexdigest()
        path = self._folder / key[:2] / f"{key}.npy"
        try:
            array = np.load(path, allow_pickle=False)
            os.utime(path)
            return torch.from_numpy(array)
        except (OSError, ValueError, EOFError):
            embedding = sam.encode(frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as handle:
            np.save(handle, embedding.numpy())
        os.replace(temporary, path)
        self._evict(path.stat().st_size)
        return embedding

    def _evict(self, added_bytes: int) -> None:
        if self._size_bytes is None:
            self._size_bytes = sum(p.stat().st_size for p in self._folder.rglob("*.npy"))
        else:
            self._size_bytes += added_bytes
        if self._size_bytes <= self._max_bytes:
            return
        for path in sorted(self._folder.rglob("*.npy"), key=lambda p: p.stat().st_mtime):
            self._size_bytes -= path.stat().st_size
            path.unlink(missing_ok=True)
            if self._size_bytes <= 0.9 * self._max_bytes:
                return
