"""Work ahead: in order, a step at a time, never while somebody is served, and never the end of the thread."""

import os
import sys
import threading

import pytest

from samcorrect.lib.loop.warmer import MAX_JOBS, NICE, Warmer

TIMEOUT_S = 10


@pytest.fixture
def warmer():
    warmer = Warmer()
    yield warmer
    warmer.stop()


@pytest.fixture
def steps():
    """A function that makes a job of some steps; each notes the job's name in `steps.done`."""

    def make(name, n_steps=1):
        for _ in range(n_steps):
            make.done.append(name)
            yield

    make.done = []
    return make


def test_urgent_work_goes_before_what_waits(warmer, steps):
    with warmer.giving_way():
        warmer.add("a", steps("a"), is_urgent=False)
        warmer.add("b", steps("b"), is_urgent=False)
        warmer.add("c", steps("c"), is_urgent=True)
    assert warmer.wait(TIMEOUT_S)
    assert steps.done == ["c", "a", "b"]


def test_urgent_work_goes_before_what_has_begun(warmer, steps):
    has_begun, may_go_on = threading.Event(), threading.Event()

    def long():
        has_begun.set()
        may_go_on.wait(TIMEOUT_S)
        yield from steps("long", 2)

    warmer.add("long", long(), is_urgent=False)
    assert has_begun.wait(TIMEOUT_S)
    warmer.add("click", steps("click"), is_urgent=True)
    may_go_on.set()
    assert warmer.wait(TIMEOUT_S)
    assert steps.done == ["long", "click", "long"]


def test_it_is_prepared_first_at_the_usual_priority_and_a_failure_ends_nothing(steps):
    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def prepare():
        seen.append(nice())
        raise OSError("no model")

    def job():
        seen.append(nice())
        yield

    seen = []
    warmer = Warmer(prepare)
    warmer.add("a", job(), is_urgent=False)
    assert warmer.wait(TIMEOUT_S)
    warmer.stop()
    lowered = min(nice() + NICE, 19) if sys.platform == "linux" else nice()
    assert seen == [nice(), lowered]


def test_it_is_not_prepared_while_somebody_is_served(steps):
    prepared = []
    warmer = Warmer(lambda: prepared.append(1))
    with warmer.giving_way():
        warmer.add("a", steps("a"), is_urgent=True)
        assert not warmer.wait(0.2)
        assert not prepared
    assert warmer.wait(TIMEOUT_S)
    warmer.stop()
    assert prepared == [1]


def test_nothing_begins_while_somebody_is_served(warmer, steps):
    with warmer.giving_way(), warmer.giving_way():
        warmer.add("a", steps("a"), is_urgent=True)
        assert not warmer.wait(0.2)
        assert steps.done == []
    assert warmer.wait(TIMEOUT_S)
    assert steps.done == ["a"]


def test_what_waits_already_is_not_done_twice(warmer, steps):
    with warmer.giving_way():
        for is_urgent in (False, True, False):
            warmer.add("a", steps("a"), is_urgent=is_urgent)
    assert warmer.wait(TIMEOUT_S)
    assert steps.done == ["a"]


def test_of_too_many_jobs_the_last_ones_are_dropped(warmer, steps):
    with warmer.giving_way():
        for number in range(MAX_JOBS + 3):
            warmer.add(number, steps(number), is_urgent=False)
        warmer.add("click", steps("click"), is_urgent=True)
    assert warmer.wait(TIMEOUT_S)
    assert steps.done == ["click", *range(MAX_JOBS - 1)]


def test_a_job_that_fails_ends_alone_and_its_message_is_not_logged(warmer, steps, caplog):
    def failing():
        raise ValueError("Doe^Jane.nii is torn")
        yield

    warmer.add("failing", failing(), is_urgent=False)
    warmer.add("a", steps("a"), is_urgent=False)
    assert warmer.wait(TIMEOUT_S)
    assert steps.done == ["a"]
    assert "ValueError" in caplog.text
    assert "Doe" not in caplog.text


def test_a_stopped_warmer_does_nothing_more(warmer, steps):
    warmer.add("a", steps("a"), is_urgent=False)
    assert warmer.wait(TIMEOUT_S)
    warmer.stop()
    warmer.add("b", steps("b"), is_urgent=True)
    assert not warmer.wait(0.2)
    assert steps.done == ["a"]
