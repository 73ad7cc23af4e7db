"""How long a run will take, from the times of its own stages or of an earlier run's."""

import json

import pytest

from samcorrect.lib.loop.progress import PROGRESS_NAME, STAGE_STOPPED, ProgressFile, eta, read_progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_the_stage_alone_is_told_before_the_others_are_known():
    assert eta("SAM candidates", 2, 8, 10.0, {}, {}, 2) == {"eta_stage_s": 30.0, "eta_s": None}
    assert eta("SAM candidates", 0, 8, 10.0, {}, {}, 2) == {"eta_stage_s": None, "eta_s": None}


def test_the_second_round_takes_as_long_as_the_first_and_a_scoring_ends_the_run():
    first = {"round 1: folds": 20.0, "round 1: scoring labels": 5.0, "round 1: student": 40.0}
    # 10 s of folds are left, then 5 + 40 of round 2, and 20 + 5 of the last scoring.
    told = eta("round 2: folds", 5, 10, 10.0, {"SAM candidates": 60.0, **first, "round 2: x": 0.0}, {}, 2)
    assert told == {"eta_stage_s": 10.0, "eta_s": 80.0}


def test_what_was_done_before_a_stage_began_took_it_no_time(tmp_path):
    assert eta("students", 5, 8, 6.0, {}, {}, 2, done_before=4)["eta_stage_s"] == 18.0
    assert eta("students", 4, 8, 0.0, {}, {}, 2, done_before=4)["eta_stage_s"] is None
    assert eta("students", 8, 8, 0.0, {}, {"students": 9.0}, 2, done_before=8)["eta_stage_s"] == 0.0
    clock = Clock()
    progress = ProgressFile(tmp_path, 1, clock=clock)
    for done in (400, 440):
        progress("students", done, 800)
        clock.now += 4.0
    progress("students", 480, 800)
    assert read_progress(tmp_path)["eta_stage_s"] == 32.0


def test_an_earlier_run_tells_all_from_the_start():
    expected = {"SAM candidates": 60.0, "round 1: student": 40.0, "scoring labels": 5.0}
    assert eta("SAM candidates", 0, 8, 0.0, {}, expected, 1) == {"eta_stage_s": 60.0, "eta_s": 105.0}
    seconds = {"SAM candidates": 1.0, "round 1: student": 80.0}
    assert eta("scoring labels", 1, 4, 1.0, seconds, expected, 1) == {"eta_stage_s": 3.0, "eta_s": 3.0}


def test_the_file_says_how_far_a_run_is_and_outlives_its_process(tmp_path):
    clock, folder = Clock(), tmp_path / "run1"
    folder.mkdir()
    progress = ProgressFile(folder, 1, clock=clock)
    assert read_progress(folder) == {}
    progress("round 1: student", 1, 4)
    told = read_progress(folder)
    assert (told["stage"], told["done"], told["total"], told["round"]) == ("round 1: student", 1, 4, 1)
    clock.now += 0.1
    progress("round 1: student", 2, 4)
    assert read_progress(folder)["done"] == 1, "two writes within half a second"
    clock.now += 9.9
    progress("round 1: student", 4, 4)
    assert ProgressFile(folder, 1, clock=clock)._seconds == {"round 1: student": 10.0}


def test_a_run_that_stops_early_waits_for_no_further_round(tmp_path):
    seconds = {"round 1: student": 30.0, "round 2: student": 40.0, "scoring labels": 5.0}
    (tmp_path / "run1").mkdir()
    before = {"n_rounds": 2, "is_finished": True, "seconds": seconds}
    (tmp_path / "run1" / PROGRESS_NAME).write_text(json.dumps(before))
    (tmp_path / "run2").mkdir()
    progress = ProgressFile(tmp_path / "run2", 2, clock=Clock())
    progress("round 1: student", 4, 4)
    assert read_progress(tmp_path / "run2")["eta_s"] == 45.0
    progress(f"{STAGE_STOPPED} 1 of 2: no correction: none", 1, 1)
    told = read_progress(tmp_path / "run2")
    assert (told["n_rounds"], told["stop_reason"], told["eta_s"]) == (1, "no correction: none", 5.0)


def test_times_of_a_finished_run_of_as_many_rounds_are_taken_for_the_next(tmp_path):
    for name, n_rounds, is_finished in (("run1", 1, True), ("run2", 2, True), ("run3", 1, False), ("run4", 1, False)):
        (tmp_path / name).mkdir()
        told = {"n_rounds": n_rounds, "is_finished": is_finished, "seconds": {name: 7.0}}
        (tmp_path / name / PROGRESS_NAME).write_text(json.dumps(told))
    (tmp_path / "run5").mkdir()
    progress = ProgressFile(tmp_path / "run5", 1, clock=Clock())
    progress("a", 0, 2)
    assert read_progress(tmp_path / "run5")["eta_s"] is None
    assert progress._expected == {"run1": 7.0}
    progress.finish()
    assert read_progress(tmp_path / "run5")["is_finished"]
    assert ProgressFile(tmp_path / "new", 1)._expected == {}


@pytest.mark.parametrize("n_rounds", [1, 3])
def test_a_run_without_a_stage_ahead_is_over_with_its_stage(n_rounds):
    assert eta("a", 3, 4, 3.0, {}, {"a": 4.0}, n_rounds) == {"eta_stage_s": 1.0, "eta_s": 1.0}
