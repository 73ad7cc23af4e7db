"""A server that is told to stop stops, whatever runs in the background."""

import time
from pathlib import Path

import psutil
import pytest
import requests

import samcorrect

pytestmark = pytest.mark.slow

# The task itself takes a minute or more.
STOP_TIMEOUT_S = 20


def test_background_processes_end_with_the_server_and_the_package_stays_as_it_was(own_server, tmp_path):
    package = Path(samcorrect.__file__).parent
    before = sorted(package.iterdir())
    with own_server(tmp_path, SAMCORRECT_STATE=str(tmp_path / "state"), SAMCORRECT_N_CANDIDATES="64") as (url, server):
        requests.post(f"{url}/batch/infer/sam", timeout=60).raise_for_status()
        (task,) = _wait_for_children(server.pid)
        server.terminate()
        assert server.wait(STOP_TIMEOUT_S) == 0
        assert not task.is_running() or task.status() == psutil.STATUS_ZOMBIE
    assert (tmp_path / "state" / "logs" / "app.log").is_file()
    assert sorted(package.iterdir()) == before


def _wait_for_children(pid: int) -> list[psutil.Process]:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        if children := psutil.Process(pid).children():
            return children
        time.sleep(0.1)
    raise AssertionError("no background process")
