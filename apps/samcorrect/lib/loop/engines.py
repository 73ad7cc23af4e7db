"""Where work on many images runs: in this process, in processes of this machine, or on a Ray cluster.

An engine maps a function over items with as many in flight as its workers need, so that memory does not grow with the
number of items. It starts no service: Ray has to run already. The work gets one CPU thread a worker, since SAM gains
more from images side by side than from threads within one.
"""

import multiprocessing
import os
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from samcorrect.lib.errors import DependencyError, SamCorrectError, StoreError, WorkerDiedError

# A second item a worker waits, so that none is idle while this process writes results.
ITEMS_PER_WORKER = 2
CONNECT_TIMEOUT_S = 10.0
# Ray's name for "use the loopback address"; without it the daemons of a cluster listen on every address of the machine.
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
REASON_DIED = "worker died: the process that worked on it was ended twice, the second time alone (out of memory?)"


class Engine(ABC):
    """Maps functions over items; a context that ends its workers.

    Attributes:
        n_workers: How many items are worked on at once.
    """

    def __init__(self, n_workers: int):
        """Work on `n_workers` items at once."""
        self.n_workers = n_workers

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each item with what `function` makes of it, in the order of the items.

        A `SamCorrectError` of the function is its result. Where a worker dies, the items in flight are tried again one
        at a time, and the result of one whose worker dies then too is a `WorkerDiedError`; the others go on.

        Args:
            function: Of a module that workers can import, or a `partial` of one, whose arguments can be pickled.
            items: Drawn as workers become free.

        Raises:
            Exception: Whatever else the function raises.
        """
        flying: deque[tuple[Any, Any]] = deque()
        for item in items:
            flying.append((item, self._submit(function, item)))
            if len(flying) >= ITEMS_PER_WORKER * self.n_workers:
                yield from self._land(function, flying)
        while flying:
            yield from self._land(function, flying)

    @abstractmethod
    def close(self) -> None:
        """End the workers, in the middle of their work too."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if error_type is None:
            self.finish()
        self.close()

    def finish(self) -> None:  # noqa: B027
        """Let workers without work end by themselves, so that they clear away what they hold."""

    @abstractmethod
    def _submit(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Begin; returns what `_result` takes."""

    @abstractmethod
    def _result(self, handle: Any) -> Any:
        """Wait for the end. Raises WorkerDiedError."""

    def _land(self, function: Callable[[Any], Any], flying: deque[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """The first of the items in flight; where its worker died, all of them, each alone, before others begin."""
        item, handle = flying.popleft()
        try:
            result = self._result(handle)
        except WorkerDiedError:
            landed = [(item, self._try_alone(function, item))]
            while flying:
                item, handle = flying.popleft()
                try:
                    landed.append((item, self._result(handle)))
                except WorkerDiedError:
                    landed.append((item, self._try_alone(function, item)))
            yield from landed
        else:
            yield item, result

    def _try_alone(self, function: Callable[[Any], Any], item: Any) -> Any:
        try:
            return self._result(self._submit(function, item))
        except WorkerDiedError:
            return WorkerDiedError(REASON_DIED)


class SerialEngine(Engine):
    """Works in this process; nothing has to be pickled."""

    def __init__(self) -> None:
        """One worker."""
        super().__init__(n_workers=1)

    def close(self) -> None:
        """Nothing has to end."""

    def _submit(self, function: Callable[[Any], Any], item: Any) -> Callable[[], Any]:
        return lambda: _call(function, item)

    def _result(self, handle: Callable[[], Any]) -> Any:
        return handle()


class ProcessEngine(Engine):
    """Processes of this machine. They end with this one, however that ends."""

    def __init__(self, n_workers: int):
        """Start `n_workers` processes as work comes."""
        super().__init__(n_workers)
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def finish(self) -> None:
        """End the processes after what they are working on."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End the processes at once; what they write is written in one step or not at all."""
        if self._pool is not None:
            self._lifeline.close()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _submit(self, function: Callable[[Any], Any], item: Any) -> Future:
        if self._pool is not None:
            try:
                return self._pool.submit(_call, function, item)
            except BrokenProcessPool:
                self.close()
        # Not forked: a process with threads of torch cannot be.
        context = multiprocessing.get_context("spawn")
        ending, self._lifeline = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(self.n_workers, context, _begin_worker, (ending,))
        return self._pool.submit(_call, function, item)

    def _result(self, handle: Future) -> Any:
        try:
            return handle.result()
        except BrokenProcessPool as error:
            raise WorkerDiedError(REASON_DIED) from error


class RayEngine(Engine):
    """Tasks on a Ray cluster that runs already."""

    def __init__(self, address: str, n_workers: int):
        """Connect.

        Args:
            address: HOST:PORT or ray://HOST:PORT.
            n_workers: 0 takes one per CPU of the cluster.

        Raises:
            DependencyError: Ray is not installed.
            StoreError: No cluster answers there.
        """
        # Ray reports its use over the network otherwise.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host == "localhost" or host.startswith("127."):
            # Else Ray takes another address of this machine in its place, where a cluster for it alone does not listen.
            os.environ[LOOPBACK_VARIABLE] = "0"
        try:
            import ray
        except ImportError as error:
            raise DependencyError("the engine ray needs Ray: pip install 'samcorrect[ray]'") from error
        self._ray = ray
        try:
            # Ray itself tries for minutes.
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"no Ray cluster at {address!r}: {str(error).splitlines()[0]:.200}. Start one (for this machine alone: "
                f"`{LOOPBACK_VARIABLE}=0 ray start --head --node-ip-address 127.0.0.1 --port 6379 "
                "--disable-usage-stats`) and give its address (then 127.0.0.1:6379)"
            ) from error
        super().__init__(n_workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
        self._task = ray.remote(num_cpus=1, max_retries=0)(_call)

    def close(self) -> None:
        """Leave the cluster, which ends the tasks of this process."""
        self._ray.shutdown()

    def _submit(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self._task.remote(function, item)

    def _result(self, handle: Any) -> Any:
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            raise WorkerDiedError(REASON_DIED) from error


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except SamCorrectError as error:
        return error


def _begin_worker(ending: Connection) -> None:
    # Ctrl-C reaches every process of a terminal; the first one alone says what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(ending,), daemon=True).start()


def _end_with(ending: Connection) -> None:
    """End this process when the other end of a pipe, on which nothing is ever sent, is closed or its process ended."""
    with suppress(EOFError, OSError):
        ending.recv()
    os._exit(0)
