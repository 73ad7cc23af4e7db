"""Images that were read lately, kept in memory: to read 200 slices takes a second, to segment one a tenth of that."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from samcorrect.lib.store.volumes import Volume, read_image


@dataclass(frozen=True)
class _Kept:
    state: tuple[int, int, int]
    volume: Volume


class VolumeCache:
    """The images used last, up to a number of bytes; safe for threads, and for files that change.

    Arrays are read-only: all users of an image get the same one.
    """

    def __init__(self, max_bytes: int):
        """Keep up to `max_bytes` of voxels; 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._turns: dict[Path, list[threading.Lock]] = {}

    def read(self, path: Path, *, may_evict: bool = True) -> Volume:
        """An image, from memory unless its file has changed; of several threads that ask for one, the first reads it.

        Args:
            path: Of the image.
            may_evict: False keeps the image only where nothing else has to go for it.

        Raises:
            ImageError: As `read_image`.
        """
        kept = self._find(path)
        if kept is not None:
            return kept
        with self._lock:
            # One entry for each thread that waits, so that the last one to leave can take the turn away.
            turns = self._turns.setdefault(path, [])
            turns.append(turns[0] if turns else threading.Lock())
        try:
            with turns[0]:
                return self._find(path) or self._load(path, may_evict=may_evict)
        finally:
            with self._lock:
                turns.pop()
                if not turns:
                    del self._turns[path]

    def _find(self, path: Path) -> Volume | None:
        state = _file_state(path)
        with self._lock:
            kept = self._kept.get(path)
            if kept is None or kept.state != state:
                return None
            self._kept.move_to_end(path)
            return kept.volume

    def _load(self, path: Path, *, may_evict: bool) -> Volume:
        # Asked for before the file is opened: one that changes while it is read is read again at the next use.
        state = _file_state(path)
        volume = read_image(path)
        volume.array.setflags(write=False)
        n_bytes = volume.array.nbytes
        with self._lock:
            self._drop(path)
            if state is None or n_bytes > self._max_bytes - (0 if may_evict else self._n_bytes):
                return volume
            while self._n_bytes + n_bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))
            self._kept[path] = _Kept(state, volume)
            self._n_bytes += n_bytes
        return volume

    def _drop(self, path: Path) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            self._n_bytes -= kept.volume.array.nbytes


def _file_state(path: Path) -> tuple[int, int, int] | None:
    """Size, time of change and number of a file, which tell it from what it was before; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
