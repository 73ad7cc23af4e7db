"""Host fault: the server's end leaves background processes running (SIGTERM), or waits until they are over (Ctrl-C).

The worker threads of `monailabel/utils/async_tasks/utils.py` read from the processes, and Python joins them at its end.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from monailabel.utils.async_tasks.utils import background_executors


@contextmanager
def background_processes_end_with_the_server() -> Iterator[None]:
    """Drop waiting tasks and kill running ones when the block ends; what they finished is in the store.

    uvicorn raises SIGTERM again after its own shutdown, which by default ends the process at once.
    """
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(0))
    try:
        yield
    finally:
        for executor in background_executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
