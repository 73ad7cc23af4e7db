"""Trainings beside each other, each on its own share of the CPU's cores.

Two trainings of one thread each are faster than one after the other on two threads, and lose little where other work
has one of the cores: the threads of one training wait for each other hundreds of times a step, and in oneDNN busily
(benchmarks/README.md has the times).
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch

from samcorrect.lib.loop.workspace import Progress, count_cores, count_threads
from samcorrect.lib.settings import Settings

T = TypeVar("T")
_SETTING = threading.Lock()
# Of a training its number and what it told its progress; None where one has ended.
Told: TypeAlias = "queue.SimpleQueue[tuple[Any, ...] | None]"


class _StoppedError(Exception):
    """Ends a training whose neighbour failed, or whom nobody waits for any more."""


class _Joint:
    """Of some trainings with equally many steps: how many are done of all."""

    def __init__(self, name: str, n_jobs: int, progress: Progress):
        self._name, self._progress = name, progress
        self._done = [0] * n_jobs

    def note(self, number: int, _: str, done: int, total: int) -> None:
        """One of them has done so many."""
        self._done[number] = done
        self._progress(self._name, sum(self._done), total * len(self._done))


def threads_of_training(settings: Settings, n_beside: int = 1) -> int:
    """Threads of each of `n_beside` trainings, at least one: their share of those set, and of all cores but one, which
    is left to other work.
    """
    return max(1, min(count_threads(settings), count_cores() - 1) // n_beside)


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Give this thread's work in torch so many threads, then again as many as before; no other thread's."""
    with _SETTING:
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        # What a thread sets for itself, threads that begin later take over: what one more sets and ends with.
        restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
        restoring.start()
        restoring.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_side_by_side(
    settings: Settings, jobs: Sequence[Callable[..., T]], *, name: str, progress: Progress
) -> list[T]:
    """Run trainings at the same time, or one after the other where there is one thread.

    Args:
        settings: Its `threads` are shared out.
        jobs: Each is called once with `n_beside` and `progress`, as `train_on` takes them, and trains without dropout,
            whose random numbers are the whole process's.
        name: Shown in the progress.
        progress: Told, in this thread, how many steps of all are done. What it raises ends all of them.

    Returns:
        What each returned, in order.

    Raises:
        Exception: What one that failed raised; the others have ended.
    """
    joint = _Joint(name, len(jobs), progress)
    if count_threads(settings) == 1:
        return [job(n_beside=1, progress=partial(joint.note, number)) for number, job in enumerate(jobs)]
    told: Told = queue.SimpleQueue()
    is_stopped = threading.Event()

    def run(number: int) -> T:
        def tell(*message: Any) -> None:
            if is_stopped.is_set():
                raise _StoppedError
            told.put((number, *message))

        try:
            return jobs[number](n_beside=len(jobs), progress=tell)
        except BaseException:
            is_stopped.set()
            raise
        finally:
            told.put(None)

    with ThreadPoolExecutor(len(jobs), thread_name_prefix="training") as pool:
        try:
            futures = [pool.submit(run, number) for number in range(len(jobs))]
            n_running = len(jobs)
            while n_running:
                message = told.get()
                if message is None:
                    n_running -= 1
                else:
                    joint.note(*message)
        except BaseException:
            is_stopped.set()
            raise
    return _results(futures)


def _results(futures: Sequence[Future[T]]) -> list[T]:
    """What each returned; the error of those that failed by themselves comes before that of the stopped."""
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, _StoppedError):
            raise error
    return [future.result() for future in futures]
