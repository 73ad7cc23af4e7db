"""How far a run is and how long it will take, in a small file that others read while it runs."""

import json
import re
import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from samcorrect.lib.loop.scoring import STAGE_SCORE
from samcorrect.lib.store.files import write_bytes_atomically

PROGRESS_NAME = "progress.json"
WRITE_EVERY_S = 0.5
STAGE_STOPPED = "stopped after round"
ROUND_STAGE = re.compile(r"round (\d+): (.*)")


class ProgressFile:
    """A progress that writes `progress.json`: stage, done, total, round, seconds left in the stage and in all.

    What is left in all is told once every stage ahead has been timed: in an earlier run of as many rounds whose folder
    lies beside this one's, or in an earlier round. Where a run stops before its last round, `stop_reason` says why, and
    `n_rounds` are those it did.
    """

    def __init__(self, folder: Path, n_rounds: int, *, clock: Callable[[], float] = time.time):
        """Go on from what an earlier process of the same run noted in `folder`, where it did."""
        self._path = folder / PROGRESS_NAME
        self._n_rounds = n_rounds
        self._clock = clock
        self._seconds: dict[str, float] = read_progress(folder).get("seconds", {})
        self._stop_reason: str | None = None
        self._expected = _expected(folder, n_rounds)
        self._stage, self._began_at, self._written_at = "", clock(), 0.0
        self._done_before = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` parts of a stage are done; not every call is written."""
        now = self._clock()
        if stage.startswith(STAGE_STOPPED):
            self._stop(stage)
        if stage != self._stage:
            self._stage, self._began_at, self._done_before = stage, now, done
            self._written_at = 0.0
        if done >= total:
            self._seconds[stage] = round(now - self._began_at, 3)
        if done < total and now - self._written_at < WRITE_EVERY_S:
            return
        self._written_at = now
        in_round = ROUND_STAGE.fullmatch(stage)
        told = {"stage": stage, "done": done, "total": total, "round": int(in_round[1]) if in_round else None}
        told |= {
            "n_rounds": self._n_rounds,
            "stop_reason": self._stop_reason,
            "stage_began_at": self._began_at,
            "updated_at": now,
        }
        beside = (self._seconds, self._expected, self._n_rounds)
        told |= eta(stage, done, total, now - self._began_at, *beside, done_before=self._done_before)
        self._write({**told, "seconds": self._seconds})

    def finish(self) -> None:
        """Note that the run is over; later runs take its times for theirs."""
        self._write({**read_progress(self._path.parent), "is_finished": True, "eta_stage_s": 0.0, "eta_s": 0.0})

    def _stop(self, stage: str) -> None:
        """No round comes after the one that a stage names, so none is waited for."""
        done, self._stop_reason = stage.removeprefix(STAGE_STOPPED).split(": ", 1)
        self._n_rounds = int(done.split()[0])
        rounds = {name: ROUND_STAGE.fullmatch(name) for name in self._expected}
        self._expected = {
            name: self._expected[name] for name, of in rounds.items() if of is None or int(of[1]) <= self._n_rounds
        }

    def _write(self, told: Mapping[str, Any]) -> None:
        write_bytes_atomically(self._path, json.dumps(told).encode())


def read_progress(folder: Path) -> dict[str, Any]:
    """What a run noted in its folder; empty where it has not begun."""
    path = folder / PROGRESS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def eta(
    stage: str,
    done: int,
    total: int,
    elapsed_s: float,
    seconds: Mapping[str, float],
    expected: Mapping[str, float],
    n_rounds: int,
    *,
    done_before: int = 0,
) -> dict[str, float | None]:
    """Seconds left, `eta_stage_s` and `eta_s`; None where there is nothing to go by.

    Args:
        stage: The stage at work.
        done, total: Its parts.
        elapsed_s: Since it began.
        seconds: Finished stages of this run.
        expected: Stages of an earlier run, in order; empty where there was none.
        n_rounds: Rounds of the run.
        done_before: Parts that were done when it began, as by an earlier process.
    """
    is_known = done_before < done or done >= total
    left = elapsed_s * (total - done) / max(1, done - done_before) if is_known else expected.get(stage)
    plan = expected or _plan(seconds, n_rounds)
    if left is None or not plan:
        return {"eta_stage_s": left, "eta_s": None}
    ahead = sum(value for name, value in plan.items() if name not in seconds and name != stage)
    return {"eta_stage_s": round(left, 1), "eta_s": round(left + ahead, 1)}


def _plan(seconds: Mapping[str, float], n_rounds: int) -> dict[str, float]:
    """Stages of a run whose first round is over: its rounds take alike, and it ends with a scoring; else empty."""
    rounds = [match for match in map(ROUND_STAGE.fullmatch, seconds) if match]
    if not any(match[1] != "1" for match in rounds):
        return {}
    first = {match[2]: seconds[match[0]] for match in rounds if match[1] == "1"}
    plan = {f"round {number}: {name}": value for number in range(1, n_rounds + 1) for name, value in first.items()}
    scoring = [*takewhile(lambda name: name != STAGE_SCORE, first), STAGE_SCORE]
    return plan | {name: first.get(name, 0.0) for name in scoring}


def _expected(folder: Path, n_rounds: int) -> dict[str, float]:
    """The times of the last run beside `folder` that was finished and had as many rounds."""
    if not folder.parent.is_dir():
        return {}
    for other in sorted((path for path in folder.parent.iterdir() if path != folder), reverse=True):
        told = read_progress(other)
        if told.get("is_finished") and told.get("n_rounds") == n_rounds:
            return told.get("seconds", {})
    return {}
