"""What every stage works on: the store, the protocol, the settings and the models, opened once."""

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop.sam_models import configured_model
from samcorrect.lib.loop.scratch import Scratch
from samcorrect.lib.loop.warmer import Warmer
from samcorrect.lib.networks.clicks import MarkedMemory
from samcorrect.lib.networks.embedding_cache import EmbeddingCache
from samcorrect.lib.networks.registry import CATALOGUE, DEFAULT_MODEL, SamEntry, load_model
from samcorrect.lib.networks.sam import SamModel
from samcorrect.lib.networks.student import Student, load_student
from samcorrect.lib.protocol import Protocol, load_protocol
from samcorrect.lib.settings import Settings, load_settings
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.schema import ModelRow
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.studies import LocalStudies, Studies
from samcorrect.lib.store.volume_cache import VolumeCache

PROTOCOL_NAME = "protocol.yaml"

logger = logging.getLogger(__name__)

N_PROGRESS_LINES = 20
# glibc's malloc.h; larger than any tensor of a training step or of a few prompts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 128 * 2**20

# (stage, done, total)
Progress = Callable[[str, int, int], None]


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """A progress that tells nobody."""


def log_progress(stage: str, done: int, total: int) -> None:
    """A progress that logs every twentieth part; the host shows clients the log of its background processes."""
    if done == total or (done * N_PROGRESS_LINES) // total > ((done - 1) * N_PROGRESS_LINES) // total:
        logger.info("%s: %d of %d", stage, done, total)


class Models:
    """The settings and the lazily loaded models: what it takes to prompt an image that has been read.

    Attributes:
        protocol: What to segment; None where none was given.
        settings: The settings.
        cache_dir: What can be made anew: SAM's embeddings and candidate masks.
        embeddings: SAM's encodings on disk.
        marked: The last results of clicks, in memory.
    """

    def __init__(
        self,
        protocol: Protocol | None,
        settings: Settings,
        cache_dir: Path,
        *,
        sam_entry: SamEntry | None = None,
        student_path: Path | None = None,
    ):
        """Load nothing yet; `sam_entry` is the model to prompt (by default the packaged one), `student_path` the
        promoted student's file."""
        self.protocol = protocol
        self.settings = settings
        self.cache_dir = cache_dir
        self.embeddings = EmbeddingCache(self.cache_dir / "embeddings", max_bytes=settings.embedding_cache_mb * 1024**2)
        self._sam_entry = sam_entry
        self._student_path = student_path
        self._students: dict[Path, Student] = {}

    def require_protocol(self) -> Protocol:
        """The protocol. Raises ProtocolError where there is none."""
        if self.protocol is None:
            raise ProtocolError("no protocol: give --protocol FILE or --conf protocol FILE")
        return self.protocol

    @cached_property
    def sam(self) -> SamModel:
        """The promptable model, loaded at its first use."""
        entry = self.sam_entry() or CATALOGUE[DEFAULT_MODEL]
        return load_model(entry, runtime=self.settings.sam_runtime, export_dir=self.cache_dir / "encoders")

    def sam_entry(self) -> SamEntry | None:
        """The promptable model; None for the packaged one, wherever the package lies on a machine."""
        return self._sam_entry

    def student(self) -> Student | None:
        """The promoted student, or None before the first promotion."""
        path = self.student_path()
        return None if path is None else self._load_student(path)

    def student_path(self) -> Path | None:
        """The file of the promoted student, or None before the first promotion."""
        return self._student_path

    def _load_student(self, path: Path) -> Student:
        if path not in self._students:
            self._students = {path: load_student(path)}
        return self._students[path]


class Workspace(Models):
    """Store, protocol, settings and lazily loaded models.

    Attributes:
        store: Images and labels.
        scratch: For arrays that may be larger than memory.
        volumes: Images in memory.
        warmer: Works ahead while nobody is served.
    """

    def __init__(
        self, store: LabelStore, protocol: Protocol | None, settings: Settings, *, cache_dir: Path | None = None
    ):
        """Work on `store`; `cache_dir` is below its state folder by default."""
        super().__init__(protocol, settings, cache_dir or store.state_dir / "cache")
        self.store = store
        self.scratch = Scratch(store.state_dir)
        self.volumes = VolumeCache(settings.volume_cache_mb * 2**20)
        self.warmer = Warmer(lambda: self.sam.start_threads())
        self.marked = MarkedMemory()

    def require_protocol(self) -> Protocol:
        """The protocol. Raises ProtocolError, saying where to put one, where there is none."""
        if self.protocol is None:
            raise ProtocolError(
                "no protocol: give --protocol FILE, --conf protocol FILE, "
                f"or put a {PROTOCOL_NAME} into {self.store.studies.location}"
            )
        return self.protocol

    def sam_entry(self) -> SamEntry | None:
        """The model of the settings `sam_model` and `sam_weights`. Raises UnknownModelError."""
        entry = configured_model(self.settings, self.store.state_dir)
        return None if entry == CATALOGUE[DEFAULT_MODEL] else entry

    def with_settings(self, **changes: object) -> "Workspace":
        """The same store, protocol and caches under other settings."""
        settings = load_settings({**self.settings.model_dump(), **changes}, environment={})
        return Workspace(self.store, self.protocol, settings, cache_dir=self.cache_dir)

    def student_path(self) -> Path | None:
        """The file of the promoted student, or None before the first promotion."""
        row = self.store.ledger.promoted_model()
        return None if row is None else self.store.state_dir / row.path

    def load_student(self, row: ModelRow) -> Student:
        """A student of the ledger; the last one used stays loaded."""
        return self._load_student(self.store.state_dir / row.path)


def count_cores() -> int:
    """Cores that this process may use; only Linux can tell them from those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_threads(settings: Settings) -> int:
    """CPU threads to work with: those that are set, by default one per core."""
    return settings.threads or count_cores()


def prepare_cpu(n_threads: int) -> None:
    """Give torch its threads, and let glibc keep what is freed for the next tensor of that size.

    By default it returns every large tensor to the kernel, which then maps and clears each page anew: a tenth of the
    time of a training step or of SAM's decoder.
    """
    torch.set_num_threads(n_threads)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):  # other C libraries have none
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, KEPT_BYTES)


def open_workspace(studies: str | Path, settings: Settings, *, cache_dir: Path | None = None) -> Workspace:
    """Open the workspace of some studies.

    Args:
        studies: Folder of the images.
        settings: `protocol` and `state` in it override the files and folders below `studies`.
        cache_dir: Shared by workspaces over the same images; default below the state folder.

    Raises:
        StoreError: The studies or the state folder cannot be used.
        ProtocolError: The protocol is faulty, was given and does not exist, or contradicts labels that people approved.
    """
    prepare_cpu(count_threads(settings))
    source, state_dir = open_studies(studies, settings.state)
    path = protocol_path(source, settings)
    protocol = load_protocol(path) if path else None
    store = LabelStore(source, state_dir, settings.ledger_url)
    if protocol is not None:
        store.require_protocol_fits(protocol)
    return Workspace(store, protocol, settings, cache_dir=cache_dir)


def protocol_path(studies: Studies, settings: Settings) -> Path | None:
    """The protocol file: the one given, else the one in the studies folder, else None."""
    if settings.protocol is not None or not isinstance(studies, LocalStudies):
        return settings.protocol
    default = studies.folder / PROTOCOL_NAME
    return default if default.is_file() else None
