"""The loop killed at random moments while people submit labels; `benchmarks/kill.py` does the same fifty times."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill.py"
N_IMAGES = 6


@pytest.mark.parametrize("n_kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.long)])
def test_a_killed_loop_loses_nothing_and_ends_as_an_undisturbed_one(tmp_path, n_kills):
    spec = importlib.util.spec_from_file_location("kill_benchmark", SCRIPT)
    kill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill)
    trials = kill.kill_loops(tmp_path, n_kills=n_kills, seed=0, n_images=N_IMAGES)
    assert len(trials) == n_kills
    assert [trial.faults for trial in trials] == [[]] * n_kills
    assert all(trial.n_submitted > 0 for trial in trials)
    assert all(trial.is_killed for trial in trials)
