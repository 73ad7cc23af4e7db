"""One background thread that works ahead, a step at a time, and gives way to whoever waits for an answer."""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

logger = logging.getLogger(__name__)

# What is dropped is work that nobody has asked for yet.
MAX_JOBS = 8
# Next to a thread of the usual priority this one gets a quarter of a core. Less would be a click's loss: one that needs
# what is being made waits for it, however busy the machine is.
NICE = 5
STOP_TIMEOUT_S = 10


class Warmer:
    """Jobs that are done in a thread of lower priority, one step at a time, while nobody is served.

    The thread starts with the first job and ends with the process.
    """

    def __init__(self, prepare: Callable[[], None] = lambda: None) -> None:
        """`prepare` is called before the first job, in a thread of the usual priority: the threads that a runtime
        starts once for all who ask inherit that of whoever asks first.
        """
        self._prepare = prepare
        self._changed = threading.Condition()
        self._jobs: dict[Hashable, Iterator[None]] = {}
        self._n_served = 0
        self._is_working = False
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def add(self, key: Hashable, steps: Iterable[None], *, is_urgent: bool) -> None:
        """Take up a job, unless it waits already.

        Args:
            key: What tells it from others.
            steps: The work; between two of its items the thread gives way. What it raises ends the job alone.
            is_urgent: Goes before all that waits, and even before what has begun.
        """
        with self._changed:
            job = self._jobs.pop(key, None) or iter(steps)
            self._jobs = {key: job, **self._jobs} if is_urgent else {**self._jobs, key: job}
            while len(self._jobs) > MAX_JOBS:
                self._jobs.popitem()
            if self._thread is None and not self._is_stopped:
                self._thread = threading.Thread(target=self._work, name="warmer", daemon=True)
                self._thread.start()
                atexit.register(self.stop)
            self._changed.notify_all()

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Begin no step while the block runs; one that has begun goes on beside it."""
        with self._changed:
            self._n_served += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_served -= 1
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; False where something still is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._is_working, timeout_s)

    def stop(self) -> None:
        """End the thread after the step that it is at."""
        with self._changed:
            self._is_stopped = True
            self._jobs.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(STOP_TIMEOUT_S)

    def _work(self) -> None:
        if self._next_job() is None:
            return
        first = threading.Thread(target=_attempt, args=(self._prepare,), name="warmer's start", daemon=True)
        first.start()
        first.join()
        # On Linux a priority is a thread's own, and those that it starts to multiply with inherit it.
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while (job := self._next_job()) is not None:
            key, steps = job
            if not _attempt(partial(next, steps)):
                with self._changed:
                    if self._jobs.get(key) is steps:
                        del self._jobs[key]

    def _next_job(self) -> tuple[Hashable, Iterator[None]] | None:
        """Wait until there is one and nobody is served; None where the thread was stopped instead."""
        with self._changed:
            self._is_working = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_stopped or (self._jobs and not self._n_served))
            if self._is_stopped:
                return None
            self._is_working = True
            return next(iter(self._jobs.items()))


def _attempt(step: Callable[[], None]) -> bool:
    """Do one step; False where it was the end or failed."""
    try:
        step()
    except StopIteration:
        return False
    except Exception as error:  # the thread's end would be the end of all later work
        # Only its type: a message can name a file, and a file a patient. Whoever asks for the image is told.
        logger.warning("what was to be ready ahead is not: %s", type(error).__name__)
        return False
    return True
