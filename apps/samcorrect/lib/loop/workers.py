"""Work on the images of a store by workers, which have no ledger: they read images and share the cache on the disk."""

import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import psutil

from samcorrect import __version__
from samcorrect.lib.errors import ProtocolError, SamCorrectError, SettingsError, StoreError
from samcorrect.lib.loop.engines import Engine, ProcessEngine, RayEngine, SerialEngine
from samcorrect.lib.loop.workspace import Models, Workspace, count_threads, prepare_cpu, protocol_path
from samcorrect.lib.networks.registry import SamEntry
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.files import write_bytes_atomically

# A worker takes some seconds to start, as long as SAM needs for a few images.
MIN_IMAGES_PER_WORKER = 10
# A worker that encodes takes up to this many times the memory of a process that has only loaded the model.
WORKING_MEMORY_FACTOR = 2.5
SHARED = "all machines of the cluster have to see studies and state folder (--state) under the same paths"


@dataclass(frozen=True)
class ImageTask:
    """One image for a worker.

    Attributes:
        image_id: Its id.
        name: Its path below the studies, as a boxes file has it.
        file: The file to read.
    """

    image_id: str
    name: str
    file: Path


# `function(models, task)`
ImageFunction = Callable[[Models, ImageTask], Any]
MapImages = Callable[[ImageFunction, Iterable[ImageTask]], Iterator[tuple[ImageTask, Any]]]


@dataclass(frozen=True)
class Job:
    """What a worker opens once and keeps: where things lie and what they have to be.

    Attributes:
        settings: Of the run.
        protocol_path, protocol_digest: The protocol file and what it held.
        sam: Name, digest and runtime of the promptable model.
        sam_entry: The model, as `Models` takes it.
        cache_dir: Shared by all workers.
        student_path: The promoted student's file, where there is one.
        beacon: A file that only a worker with the same state folder sees; None where it is on the same machine.
        version: Of samcorrect.
    """

    settings: Settings
    protocol_path: Path
    protocol_digest: str
    sam: tuple[str, str, str]
    sam_entry: SamEntry | None
    cache_dir: Path
    student_path: Path | None
    beacon: Path | None
    version: str = __version__


@contextmanager
def open_workers(workspace: Workspace, n_images: int) -> Iterator[MapImages]:
    """Workers as the settings ask for, until the context ends.

    Args:
        workspace: With a protocol.
        n_images: How many images there are to work on.

    Yields:
        `map_images(function, tasks)`, which is `Engine.map` of `function(models, task)`.

    Raises:
        StoreError: No Ray cluster answers, or the state folder cannot be written.
        DependencyError: Ray is asked for and not installed.
    """
    with _open_engine(workspace.settings, n_images) as engine:
        if isinstance(engine, SerialEngine):
            yield lambda function, tasks: engine.map(partial(function, workspace), tasks)
            return
        beacon = (
            workspace.store.state_dir / f"workers-{secrets.token_hex(8)}" if isinstance(engine, RayEngine) else None
        )
        if beacon is not None:
            write_bytes_atomically(beacon, b"")
        try:
            job = _job(workspace, beacon)
            yield lambda function, tasks: engine.map(partial(_work, job, function), tasks)
        finally:
            if beacon is not None:
                beacon.unlink(missing_ok=True)


def count_workers(settings: Settings, n_images: int) -> int:
    """Worker processes on this machine: those asked for, else one per CPU thread.

    Not more than there are images; where nobody asked, not so many either that starting them takes longer than they
    save, or that memory runs out.
    """
    if settings.workers:
        return max(1, min(settings.workers, n_images))
    need_bytes = WORKING_MEMORY_FACTOR * psutil.Process().memory_info().rss
    fitting = int(psutil.virtual_memory().available / need_bytes)
    return max(1, min(count_threads(settings), n_images // MIN_IMAGES_PER_WORKER, fitting))


def _open_engine(settings: Settings, n_images: int) -> Engine:
    if settings.engine == "ray":
        if settings.ray_address is None:
            raise SettingsError("the engine ray needs the address of a cluster: --address HOST:PORT or ray://HOST:PORT")
        return RayEngine(settings.ray_address, settings.workers)
    n_workers = count_workers(settings, n_images)
    return ProcessEngine(n_workers) if n_workers > 1 else SerialEngine()


def _job(workspace: Workspace, beacon: Path | None) -> Job:
    settings, sam, entry = workspace.settings, workspace.sam, workspace.sam_entry()
    return Job(
        settings,
        protocol_path(workspace.store.studies, settings).absolute(),
        workspace.require_protocol().digest,
        (sam.name, sam.digest, sam.runtime),
        entry and replace(entry, weights=entry.weights.absolute()),
        workspace.cache_dir.absolute(),
        workspace.student_path(),
        beacon,
    )


def _work(job: Job, function: ImageFunction, task: ImageTask) -> Any:
    try:
        models = _open_models(job)
    except SamCorrectError as error:
        # Of the worker and not of the image, whatever it is.
        raise StoreError(f"a worker on {socket.gethostname()} cannot begin: {error}") from error
    if job.beacon is not None and not task.file.is_file():
        raise StoreError(f"the worker on {socket.gethostname()} does not see {task.file}; {SHARED}")
    return function(models, task)


@lru_cache(maxsize=1)
def _open_models(job: Job) -> Models:
    """The models of a worker process.

    Raises:
        StoreError: The worker does not see the files of the one that gave it work, or runs another model or version.
        ProtocolError: The protocol is gone or was changed meanwhile.
    """
    if job.version != __version__:
        raise StoreError(f"samcorrect is {__version__} there and {job.version} here; install the same")
    if job.beacon is not None and not job.beacon.is_file():
        raise StoreError(f"it does not see {job.beacon.parent}; {SHARED}")
    prepare_cpu(1)
    protocol = load_protocol(job.protocol_path)
    if protocol.digest != job.protocol_digest:
        raise ProtocolError(f"{job.protocol_path} was changed meanwhile; start again")
    models = Models(protocol, job.settings, job.cache_dir, sam_entry=job.sam_entry, student_path=job.student_path)
    sam = (models.sam.name, models.sam.digest, models.sam.runtime)
    if sam != job.sam:
        raise StoreError(
            f"it runs {sam[0]} {sam[1][:12]} as {sam[2]} and this process {job.sam[0]} {job.sam[1][:12]} as "
            f"{job.sam[2]}, so that labels would depend on the machine; use machines of one kind"
        )
    return models
