"""POST /samcorrect/loop against live servers: one run at a time, taken up after kill -9, and ended on request."""

import json
import shutil
import time
from pathlib import Path

import psutil
import pytest
import requests

pytestmark = pytest.mark.slow

RUN_TIMEOUT_S, END_TIMEOUT_S = 400, 20
N_IMAGES = 5


@pytest.fixture
def few_studies(phantoms, tmp_path) -> Path:
    """Five of the phantoms."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("protocol.yaml", *(f"case{number}.png" for number in range(N_IMAGES))):
        shutil.copy(phantoms / name, studies)
    return studies


def status(url: str) -> dict:
    reply = requests.get(f"{url}/samcorrect/loop", timeout=60)
    reply.raise_for_status()
    return reply.json()


def wait_until(url: str, is_so, what: str) -> dict:
    deadline_s = time.monotonic() + RUN_TIMEOUT_S
    while time.monotonic() < deadline_s:
        told = status(url)
        if is_so(told):
            return told
        time.sleep(0.2)
    raise AssertionError(f"not {what}: {told}")


def child_of(state: Path) -> psutil.Process:
    return psutil.Process(json.loads((state / "loop.json").read_text(encoding="utf-8"))["child"]["pid"])


def test_a_run_goes_on_after_its_server_was_killed_and_a_cancelled_one_does_not(own_server, few_studies, tmp_path):
    state = few_studies / ".samcorrect"
    servers = [tmp_path / f"server{number}" for number in range(3)]
    for folder in servers:
        folder.mkdir()
    with own_server(servers[0], few_studies) as (url, server):
        loop = f"{url}/samcorrect/loop"
        assert status(url) == {"status": "idle"}
        refused = requests.post(loop, json={"round": 1}, timeout=60)
        assert (refused.status_code, "may hold user, client_id, rounds, steps" in refused.text) == (400, True)
        started = requests.post(loop, json={"rounds": 1, "seed": 3, "user": "ann"}, timeout=60).json()
        assert (started["status"], started["settings"]["seed"], started["settings"]["student_steps"]) == (
            "running",
            3,
            4,
        )
        second = requests.post(loop, json={}, timeout=60)
        assert (second.status_code, f"ann started run {started['run']}" in second.text) == (409, True)
        told = wait_until(url, lambda told: "stage" in told["progress"], "under way")
        assert 0 < told["progress"]["done"] <= told["progress"]["total"]
        child = child_of(state)
        server.kill()
        server.wait()
        child.wait(END_TIMEOUT_S)
    with own_server(servers[1], few_studies) as (url, server):
        loop = f"{url}/samcorrect/loop"
        told = wait_until(url, lambda told: told["status"] != "running", "over")
        assert (told["status"], told["error"], told["run"], told["n_resumed"]) == ("finished", "", started["run"], 1)
        assert told["progress"]["eta_s"] == 0
        assert (told["summary"]["n_images"], len(told["summary"]["rounds"])) == (N_IMAGES, 1)
        assert Path(told["report"]["html"]).parent == state / "reports" / started["run"]
        assert Path(told["report"]["html"]).is_file()
        assert requests.delete(loop, timeout=60).status_code == 409
        requests.post(loop, json={"rounds": 1, "seed": 4}, timeout=60).raise_for_status()
        # This time every stage has been timed before.
        told = wait_until(url, lambda told: told["progress"].get("eta_s") is not None, "estimated")
        child = child_of(state)
        assert requests.delete(loop, timeout=60).json()["status"] == "cancelled"
        child.wait(END_TIMEOUT_S)
        server.terminate()
        assert server.wait(END_TIMEOUT_S) == 0
    with own_server(servers[2], few_studies) as (url, server):
        assert status(url)["status"] == "cancelled"
        requests.post(f"{url}/samcorrect/loop", json={"rounds": 1, "seed": 5}, timeout=60).raise_for_status()
        wait_until(url, lambda told: "stage" in told["progress"], "under way")
        child = child_of(state)
        server.terminate()
        assert server.wait(END_TIMEOUT_S) == 0
        assert not child.is_running()
        # The next server takes it up.
        assert json.loads((state / "loop.json").read_text(encoding="utf-8"))["status"] == "running"
