"""The loop killed at random moments while people submit labels; `benchmarks/kill.py` does the same fifty times."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill.py"
N_KILLS, N_IMAGES = 2, 6


@pytest.mark.slow
def test_a_killed_loop_loses_nothing_and_ends_as_an_undisturbed_one(tmp_path):
    spec = importlib.util.spec_from_file_location("kill_benchmark", SCRIPT)
    kill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill)
    trials = kill.kill_loops(tmp_path, n_kills=N_KILLS, seed=0, n_images=N_IMAGES)
    assert len(trials) == N_KILLS
    assert [trial.faults for trial in trials] == [[]] * N_KILLS
    assert all(trial.n_submitted > 0 for trial in trials)
    assert all(trial.is_killed for trial in trials)
