"""Arrays with something of every slice of a store: in files that the system takes out of memory when it needs room.

A file has no name (on Windows one that goes with its process), so that nothing is left of it, however a process ends.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from samcorrect.lib.errors import StoreError


class Scratch:
    """Makes such arrays in one folder."""

    def __init__(self, folder: Path):
        """In `folder`, which is on the disk and not in memory, as a temporary folder may be."""
        self.folder = folder

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A tensor of zeros. Raises StoreError where the disk has no room for it."""
        n_bytes = math.prod(shape) * dtype.itemsize
        with self.room(n_bytes), self.open_file() as file:
            # Room that is promised and not there would end the process at the first use of a page.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
            return _mapped(file, n_bytes, dtype).reshape(shape)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values in a tensor of its own. Raises StoreError as `zeros` does."""
        return self.zeros(*tensor.shape, dtype=tensor.dtype).copy_(tensor)

    def growing(self) -> "GrowingTensor":
        """A tensor whose length is not known yet."""
        return GrowingTensor(self)

    def open_file(self) -> BinaryIO:
        """A file without a name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(prefix=".scratch.", dir=self.folder)

    @contextmanager
    def room(self, n_bytes: int) -> Iterator[None]:
        """Turns what the disk says to so many bytes into a StoreError."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"no room for {n_bytes / 2**30:.2f} GiB of intermediate results in {self.folder} "
                f"({error.strerror or error}); free some space, or give a state folder on a larger disk with --state"
            ) from error


class GrowingTensor:
    """Rows are added one by one and become one tensor at the end."""

    def __init__(self, scratch: Scratch):
        """In a file of `scratch`, made for the first of them."""
        self._scratch = scratch
        self._file: BinaryIO | None = None
        self._shape, self._dtype, self._n_bytes = torch.Size(), torch.float32, 0

    def append(self, rows: torch.Tensor) -> None:
        """Add (M, ...) rows of one shape and type. Raises StoreError where the disk is full."""
        content = rows.contiguous().numpy().data
        self._n_bytes += content.nbytes
        with self._scratch.room(self._n_bytes):
            if self._file is None:
                self._file = self._scratch.open_file()
                self._shape, self._dtype = rows.shape[1:], rows.dtype
            self._file.write(content)

    def finish(self) -> torch.Tensor:
        """(N, ...) of all rows. Raises ValueError where there are none, StoreError where the disk is full."""
        if self._file is None:
            raise ValueError("no row was added")
        with self._scratch.room(self._n_bytes), self._file as file:
            file.flush()
            return _mapped(file, self._n_bytes, self._dtype).reshape(-1, *self._shape)


def _mapped(file: BinaryIO, n_bytes: int, dtype: torch.dtype) -> torch.Tensor:
    """The content of a file as a tensor, which keeps it as long as it is used."""
    return torch.frombuffer(mmap.mmap(file.fileno(), n_bytes), dtype=dtype)
