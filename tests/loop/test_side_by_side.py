"""Trainings beside each other: to the same students as one after the other, told and stopped as one."""

import threading
from functools import partial

import numpy as np
import pytest
import torch

from samcorrect.lib.errors import TrainingError
from samcorrect.lib.loop import trainings
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.side_by_side import threads_of_training, torch_threads, train_side_by_side
from samcorrect.lib.loop.students import out_of_fold_probs, train_on
from samcorrect.lib.loop.workspace import no_progress
from samcorrect.lib.settings import Settings


@pytest.fixture
def cohort_of(labelled, monkeypatch):
    """Workspaces of so many threads on a machine of two cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2))
    before = torch.get_num_threads()

    def of(name, **settings):
        workspace = labelled(name, is_bad=lambda _: False, shares_trainings=False, **{"student_steps": 4, **settings})
        return workspace, load_cohort(workspace, best_labels(workspace))

    yield of
    torch.set_num_threads(before)


def at_work() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("training")]


@pytest.mark.parametrize(
    ("n_set", "n_cores", "alone", "of_two"),
    [(0, 1, 1, 1), (0, 2, 1, 1), (0, 4, 3, 1), (0, 16, 15, 7), (1, 16, 1, 1), (4, 16, 4, 2), (64, 16, 15, 7)],
)
def test_trainings_share_the_threads_and_leave_a_core(n_set, n_cores, alone, of_two, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(n_cores))
    assert [threads_of_training(Settings(threads=n_set), n) for n in (1, 2)] == [alone, of_two]


def test_side_by_side_the_same_students_come_out(cohort_of):
    (one, cohort), (two, same) = cohort_of("one", threads=1), cohort_of("two", threads=2)
    generator = torch.get_rng_state()
    n_threads = torch.get_num_threads()

    seen_alone: list[list[threading.Thread]] = []
    alone, _ = out_of_fold_probs(one, cohort, seed=3, progress=lambda *_: seen_alone.append(at_work()))
    seen: set[int] = set()
    beside, _ = out_of_fold_probs(two, same, seed=3, progress=lambda *_: seen.add(len(at_work())))

    assert torch.equal(alone, beside)
    files = [{p.name: p.read_bytes() for p in (of.store.state_dir / "models").iterdir()} for of in (one, two)]
    assert len(files[0]) == 4
    assert files[0] == files[1]
    assert not any(seen_alone)
    assert max(seen) == 2
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == n_threads


def test_threads_that_begin_beside_or_after_a_training_have_all_of_them(cohort_of):
    workspace, cohort = cohort_of("state", threads=2)
    torch.set_num_threads(2)
    found: list[int] = []

    def look(*_) -> None:
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()

    out_of_fold_probs(workspace, cohort, seed=3, progress=look)
    train_on(workspace, cohort, np.arange(4), name="a", seed=1, progress=look)
    look()
    assert set(found) == {2}


def test_a_share_of_the_threads_ends_with_its_work():
    before = torch.get_num_threads()

    def work() -> None:
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_the_progress_is_of_all_and_told_in_the_thread_that_waits(cohort_of, threads):
    workspace, cohort = cohort_of("state", threads=threads)
    told = []
    out_of_fold_probs(
        workspace, cohort, seed=3, progress=lambda *message: told.append((*message, threading.current_thread()))
    )
    stages, done, total, told_in = zip(*told, strict=True)
    assert set(stages) == {"out-of-fold students"}
    assert list(done) == sorted(done)
    assert set(done) == set(range(1, 9))
    assert set(total) == {8}
    assert set(told_in) == {threading.current_thread()}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_progress_that_raises_ends_all_and_what_was_trained_is_kept(cohort_of, threads):
    workspace, cohort = cohort_of("state", threads=threads, student_steps=300)

    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        out_of_fold_probs(workspace, cohort, seed=3, progress=interrupt)
    assert not at_work()
    assert not list((workspace.store.state_dir / "models").glob("*.pt"))
    assert out_of_fold_probs(workspace, cohort, seed=3)[0].shape == (10, 3, 32, 32)


def test_killed_side_by_side_they_go_on_to_the_same_students(cohort_of, monkeypatch):
    monkeypatch.setattr(trainings, "CHECKPOINT_EVERY_S", 0.0)
    (whole, cohort), (killed, same) = cohort_of("whole", threads=2), cohort_of("killed", threads=2)
    undisturbed, _ = out_of_fold_probs(whole, cohort, seed=3)
    models = killed.store.state_dir / "models"

    def kill(_stage: str, done: int, _total: int) -> None:
        if done >= 5:  # of 2 times 4, so each has taken a step
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        out_of_fold_probs(killed, same, seed=3, progress=kill)
    assert {path.suffix for path in models.iterdir()} >= {".checkpoint"}
    assert torch.equal(out_of_fold_probs(killed, same, seed=3)[0], undisturbed)
    assert not list(models.glob(".*"))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_that_fails_ends_those_beside_it(cohort_of, threads):
    workspace, cohort = cohort_of("state", threads=threads, student_steps=100_000)

    def fail(**_):
        raise TrainingError("the training collapsed")

    endless = partial(train_on, workspace, cohort, np.arange(4), name="a", seed=1)
    for jobs in ([fail, endless], [endless, fail]) if threads == 2 else ([fail, endless],):
        with pytest.raises(TrainingError, match="collapsed"):
            train_side_by_side(workspace.settings, jobs, name="both", progress=no_progress)
    assert not list((workspace.store.state_dir / "models").glob("*.pt"))
