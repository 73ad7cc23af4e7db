"""Engines: the order of their results, what is in flight, and what happens when a worker dies.

The work is `eval`, which every worker can import.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import psutil
import pytest

from samcorrect.lib.errors import StoreError, WorkerDiedError
from samcorrect.lib.loop.engines import ProcessEngine, RayEngine, SerialEngine

PID = "__import__('os').getpid()"
KILLED = f"__import__('os').kill({PID}, 9)"
RAISES = "(_ for _ in ()).throw(__import__('samcorrect.lib.errors').lib.errors.ImageError('torn'))"


def dies_once(marker) -> str:
    """Work that leaves a file and is killed, and that gives 7 where the file is there."""
    return f"7 if __import__('os').path.exists({str(marker)!r}) else (open({str(marker)!r}, 'w').close(), {KILLED})"


@pytest.fixture
def processes() -> Iterator[ProcessEngine]:
    with ProcessEngine(2) as engine:
        yield engine
    assert multiprocessing.active_children() == []


def test_results_come_in_the_order_of_the_items_whatever_takes_longer(processes):
    items = ["__import__('time').sleep(0.3) or 0", "1", "2", "3", "4", "5"]
    assert list(SerialEngine().map(eval, items)) == [(item, n) for n, item in enumerate(items)]
    assert list(processes.map(eval, items)) == [(item, n) for n, item in enumerate(items)]
    pids = {pid for _, pid in processes.map(eval, [PID] * 8)}
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_no_more_items_are_drawn_than_are_in_flight(processes):
    drawn = []

    def items() -> Iterator[str]:
        for number in range(20):
            drawn.append(number)
            yield str(number)

    results = processes.map(eval, items())
    assert next(results) == ("0", 0)
    assert len(drawn) == 4  # two a worker
    next(results)
    assert len(drawn) == 5


@pytest.mark.parametrize("engine", [SerialEngine(), ProcessEngine(1)], ids=["serial", "processes"])
def test_a_fault_that_is_explained_is_a_result_and_a_bug_ends_all(engine):
    with engine:
        (_, fault), (_, result) = engine.map(eval, [RAISES, "5"])
        assert repr(fault) == "ImageError('torn')"
        assert result == 5
        with pytest.raises(ZeroDivisionError):
            list(engine.map(eval, ["1/0"]))


def test_a_worker_that_dies_costs_an_item_only_if_that_kills_the_next_too(processes, tmp_path):
    once = dies_once(tmp_path / "marker")
    assert list(processes.map(eval, ["0", once, "2"])) == [("0", 0), (once, 7), ("2", 2)]
    results = dict(processes.map(eval, ["0", KILLED, "2", "3", "4", "5", "6", "7"]))
    died = results.pop(KILLED)
    assert isinstance(died, WorkerDiedError)
    assert "worker died" in str(died)
    assert list(results.values()) == [0, 2, 3, 4, 5, 6, 7]


FINISHES = """
from samcorrect.lib.loop.engines import ProcessEngine
if __name__ == "__main__":
    with ProcessEngine(2) as engine:
        # As tqdm does, which the models import: a lock that its process has to clear away.
        work = "exec('import multiprocessing as m; m.kept = m.RLock()')"
        print(len(list(engine.map(eval, [work] * 4))))
"""


def test_workers_without_work_clear_away_what_they_hold(tmp_path):
    script = tmp_path / "finishes.py"
    script.write_text(FINISHES)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("4\n", "")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_process_that_started_it(ending):
    program = (
        "import signal\n"
        "from samcorrect.lib.loop.engines import ProcessEngine\n"
        # A test that runs in the background of a shell inherits that Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n"
        f"    items = [{PID!r}] * 4 + [\"__import__('time').sleep(60)\"] * 4\n"
        "    with ProcessEngine(2) as engine:\n"
        "        for _, pid in engine.map(eval, items):\n"
        "            print(pid, flush=True)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as parent:
        workers = {psutil.Process(int(parent.stdout.readline())) for _ in range(4)}
        parent.send_signal(ending)
        parent.wait(20)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same(ray_address, tmp_path):
    once = dies_once(tmp_path / "marker")
    with RayEngine(ray_address, 0) as engine:
        assert engine.n_workers == 2
        results = dict(engine.map(eval, ["0", RAISES, KILLED, once, "4", "5"]))
    assert [results[item] for item in ("0", once, "4", "5")] == [0, 7, 4, 5]
    assert repr(results[RAISES]) == "ImageError('torn')"
    assert isinstance(results[KILLED], WorkerDiedError)


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra ray)")
def test_no_cluster_is_a_fault_that_says_how_to_start_one():
    with pytest.raises(StoreError, match=r"no Ray cluster at '127\.0\.0\.1:1': .*refused.*ray start --head"):
        RayEngine("127.0.0.1:1", 0)
