"""`samcorrect loop` killed with SIGKILL at random moments while people submit labels, against an undisturbed run.

The moments are spread evenly over the CPU seconds of an undisturbed run, so that a busy machine does not move them: a
third of them over its pseudo-labels, the others over its rounds. Every kill has a state folder of its own; after it the
loop is started again and runs to its end. While it runs, labels are submitted to images of the run and to one that was
added after it began.

example:
  python benchmarks/kill.py --kills 50 --seed 0 --json kill.json
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

SAMPLE_DATA = Path(__file__).resolve().parents[1] / "sample-data"
# So many that labels are corrected.
N_IMAGES = 10
# Trainings in one thread: only then do two runs have the same bits.
SETTINGS = {"threads": 1, "rounds": 2, "student_steps": 20, "student_side_px": 32, "n_candidates": 2, "seed": 3}
CACHE_NAME = "cache"
LATE = "late"
SUBMIT_PAUSE_S = 0.2
RUN_TIMEOUT_S = 900
LABELLING, ROUNDS, END = "pseudo-labels", "rounds", "end"
# All that a run decides about labels and models. What people submit is compared by its bytes.
DECISIONS = {
    "labels": "select image_id, tag, round, maker, content_sha256, info from label_version"
    f" where tag != 'final' and image_id != '{LATE}'",
    "quality": "select image_id, tag, round, structure_index, score, expected_dice, expected_dice_low,"
    " expected_dice_high, posterior_good, features, reasons from quality"
    " join label_version on label_version.id = label_version_id where tag != 'final'",
    "models": "select digest, status, round, metrics from model",
    "runs": "select config, progress, is_finished from run",
}


@dataclass
class Trial:
    """One kill.

    Attributes:
        phase: Of the run: pseudo-labels or rounds.
        cpu_s: When, in CPU seconds of the process since the phase began.
        is_killed: False where its process had ended before.
        stage: What it had said last.
        n_submitted: Labels submitted before, during and after the kill.
        leftovers: Temporary files in the state folder and in the temporary folder after the kill.
        leftovers_at_end: The same after the resumed run.
        faults: What is not as it should be; empty where all is well.
    """

    phase: str
    cpu_s: float
    is_killed: bool = False
    stage: str = ""
    n_submitted: int = 0
    leftovers: list[str] = field(default_factory=list)
    leftovers_at_end: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill as often as asked and print what was found; returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="where the runs lie (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="write the findings here")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=parsed.work) as folder:
        trials = kill_loops(Path(folder), n_kills=parsed.kills, seed=parsed.seed)
    _print_table(trials)
    if parsed.json:
        parsed.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1), encoding="utf-8")
    return 1 if any(trial.faults for trial in trials) else 0


def kill_loops(folder: Path, *, n_kills: int, seed: int, n_images: int = N_IMAGES) -> list[Trial]:
    """Run the loop undisturbed, then once for every kill.

    Args:
        folder: An empty folder for the runs.
        n_kills: How many.
        seed: Of the moments.
        n_images: Of the loop.
    """
    whole = Run(folder / "whole", n_images)
    seconds_of = whole.time_to_its_end()
    expected = whole.decisions()
    rng = np.random.default_rng(seed)
    n_labelling = round(n_kills / 3)
    moments = [
        (phase, float(moment_s))
        for phase, count in ((LABELLING, n_labelling), (ROUNDS, n_kills - n_labelling))
        for moment_s in (np.arange(count) + rng.random(count)) / max(count, 1) * seconds_of[phase]
    ]
    trials = []
    for number, (phase, moment_s) in enumerate(moments):
        run = Run(folder / f"kill{number}", n_images)
        if phase == ROUNDS:  # what SAM encoded is the same in every run
            shutil.copytree(whole.state / CACHE_NAME, run.state / CACHE_NAME)
        trials.append(run.kill_and_resume(phase, moment_s, expected))
        print(f"kill {number + 1} of {n_kills}: {asdict(trials[-1])}", file=sys.stderr, flush=True)
        shutil.rmtree(run.folder)
    return trials


class Run:
    """A small loop in a folder of its own: `studies`, `state`, `out`, `tmp`, and what it said in `said.log`."""

    def __init__(self, folder: Path, n_images: int):
        self.folder = folder
        self.studies, self.state = folder / "studies", folder / "state"
        self.studies.mkdir(parents=True)
        (folder / "tmp").mkdir()
        shutil.copy(SAMPLE_DATA / "protocol.yaml", self.studies)
        images = sorted((SAMPLE_DATA / "images").glob("*.png"))
        for path in images[:n_images]:
            shutil.copy(path, self.studies)
        self.late_image = images[n_images]

    def start(self) -> subprocess.Popen:
        """`samcorrect loop` as a process."""
        where = ["--studies", str(self.studies), "--out", str(self.folder / "out")]
        settings = {f"SAMCORRECT_{key.upper()}": str(value) for key, value in SETTINGS.items()}
        places = {"SAMCORRECT_STATE": str(self.state), "TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"}
        with (self.folder / "said.log").open("a") as log:
            command = [sys.executable, "-m", "samcorrect.cli", "loop", *where]
            return subprocess.Popen(command, env=os.environ | settings | places, stdout=log, stderr=log)

    def time_to_its_end(self) -> dict[str, float]:
        """Run undisturbed; the CPU seconds of each phase."""
        process = psutil.Process(self.start().pid)
        began_s: dict[str, float] = {}
        while (seconds := _cpu_s(process)) is not None:
            for phase in (LABELLING, ROUNDS, END):
                if phase not in began_s and self.has_begun(phase):
                    began_s[phase] = seconds
            time.sleep(0.005)
        if process.wait(RUN_TIMEOUT_S) not in (0, None):
            raise RuntimeError(f"the undisturbed loop failed:\n{self.said()[-4000:]}")
        return {LABELLING: began_s[ROUNDS] - began_s[LABELLING], ROUNDS: began_s[END] - began_s[ROUNDS]}

    def has_begun(self, phase: str) -> bool:
        """Whether the ledger is there, the run has noted what its rounds work on, or it is finished."""
        if not (self.state / LEDGER_NAME).exists():
            return False
        if phase == LABELLING:
            return True
        with closing(sqlite3.connect(f"file:{self.state / LEDGER_NAME}?mode=ro", uri=True)) as connection:
            has_tables = connection.execute("select 1 from sqlite_master where name = 'run'").fetchone()
            query = "select 1 from run where is_finished" if phase == END else "select 1 from run"
            return bool(has_tables and connection.execute(query).fetchone())

    def kill_and_resume(self, phase: str, moment_s: float, expected: dict[str, Counter]) -> Trial:
        """Kill the loop at a moment, look at what is left, resume it, and compare its end with an undisturbed run.

        Args:
            phase: Of the run.
            moment_s: CPU seconds since the phase began.
            expected: The decisions of an undisturbed run.
        """
        trial = Trial(phase, round(moment_s, 3))
        people = People(self)
        people.start()
        process = self.start()
        self._wait_for_moment(psutil.Process(process.pid), phase, moment_s)
        process.kill()
        trial.is_killed = process.wait() == -signal.SIGKILL
        people.stop()
        trial.stage = self.said().strip().rpartition("\n")[2]
        trial.leftovers = self.temporary_files()
        trial.faults += self.faults_of_ledger() + people.faults_of_labels()
        if not self.has_begun(END):  # the loop would begin another run, with what was approved meanwhile
            people.start()
            if self.start().wait(RUN_TIMEOUT_S):
                trial.faults.append(f"the resumed loop failed: {self.said()[-2000:]}")
            people.stop()
        trial.leftovers_at_end = self.temporary_files()
        trial.n_submitted = len(people.submitted)
        trial.faults += self.faults_of_ledger() + people.faults_of_labels()
        trial.faults += _differences(self.decisions(), expected)
        return trial

    def _wait_for_moment(self, process: psutil.Process, phase: str, moment_s: float) -> None:
        began_s = None
        while (seconds := _cpu_s(process)) is not None:
            if began_s is None and self.has_begun(phase):
                began_s = seconds
            if began_s is not None and seconds - began_s >= moment_s:
                return
            time.sleep(0.005)

    def said(self) -> str:
        """All that the loop wrote to its console."""
        return (self.folder / "said.log").read_text(encoding="utf-8")

    def decisions(self) -> dict[str, Counter]:
        """All that the run decided, by kind."""
        with closing(sqlite3.connect(self.state / LEDGER_NAME)) as connection:
            return {kind: Counter(connection.execute(query).fetchall()) for kind, query in DECISIONS.items()}

    def faults_of_ledger(self) -> list[str]:
        """What is wrong with the database file, opened anew."""
        if not (self.state / LEDGER_NAME).exists():
            return []
        Ledger(self.state).close()
        with closing(sqlite3.connect(self.state / LEDGER_NAME)) as connection:
            found = connection.execute("pragma integrity_check").fetchall()
            orphans = connection.execute("pragma foreign_key_check").fetchall()
        return [f"ledger: {row}" for row in found if row != ("ok",)] + [f"ledger: no partner of {o}" for o in orphans]

    def temporary_files(self) -> list[str]:
        """Files that a writer had not finished, and whatever lies in the temporary folder."""
        unfinished = [
            p for p in self.state.rglob("*") if p.is_file() and (p.name.startswith(".") or p.suffix == ".tmp")
        ]
        passing = [p for p in (self.folder / "tmp").rglob("*") if p.is_file()]
        return [str(path.relative_to(self.folder)) for path in unfinished + passing]


class People:
    """Submit labels in a thread of this process, from when the run has noted its images until they are stopped.

    Attributes:
        submitted: (label version, image, SHA-256) of every label that the store said it took.
    """

    def __init__(self, run: Run):
        self.run = run
        self.submitted: list[tuple[int, str, str]] = []
        self._is_stopped = threading.Event()
        self._fault: str | None = None

    def start(self) -> None:
        """Begin to submit."""
        self._is_stopped.clear()
        self._thread = threading.Thread(target=self._submit_until_stopped)
        self._thread.start()

    def stop(self) -> None:
        """Finish the submit at hand."""
        self._is_stopped.set()
        self._thread.join()

    def faults_of_labels(self) -> list[str]:
        """Submitted labels that are not in the ledger and, byte for byte, on the disk."""
        faults = [self._fault] if self._fault else []
        if not self.submitted:
            return faults
        query = "select id, image_id, content_sha256, path from label_version where tag = 'final'"
        with closing(sqlite3.connect(self.run.state / LEDGER_NAME)) as connection:
            rows = {row[:3]: row[3] for row in connection.execute(query)}
        for told in self.submitted:
            if told not in rows:
                faults.append(f"lost: label {told}")
            elif hashlib.sha256((self.run.state / rows[told]).read_bytes()).hexdigest() != told[2]:
                faults.append(f"changed: label {told}")
        return faults

    def _submit_until_stopped(self) -> None:
        try:
            if self._wait_for_run():
                self._submit()
        except Exception as error:  # told with the trial's other faults, not on the console of a thread
            self._fault = f"a submit failed: {error!r}"

    def _wait_for_run(self) -> bool:
        """Approvals made before a run notes its images belong to it; those made afterwards must not change it."""
        while not self._is_stopped.wait(0.02):
            if self.run.has_begun(ROUNDS):
                return True
        return False

    def _submit(self) -> None:
        shutil.copy(self.run.late_image, self.run.studies / f"{LATE}.png")
        store = LabelStore(LocalStudies(self.run.studies), self.run.state)
        images = [LATE, *sorted(path.stem for path in self.run.studies.glob("phantom*.png"))[::2]]
        while not self._is_stopped.wait(SUBMIT_PAUSE_S):
            number = len(self.submitted)
            image_id = images[number % len(images)]
            label_map = np.zeros(store.read_image(image_id).array.shape, np.uint8)
            label_map[5 : 20 + number, 5:40] = 1 + number % 2
            path = self.run.folder / "submitted.nii.gz"
            write_label_map(path, label_map, LPS_TO_RAS)
            row = store.submit_label(image_id, path, tag="final", user="ann")
            self.submitted.append((row.id, row.image_id, hashlib.sha256(path.read_bytes()).hexdigest()))
        store.ledger.close()


def _cpu_s(process: psutil.Process) -> float | None:
    """CPU seconds that a process has used; None when it has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return None
    return times.user + times.system


def _differences(found: dict[str, Counter], expected: dict[str, Counter]) -> list[str]:
    faults = []
    for kind, rows in expected.items():
        for what, difference in (("missing", rows - found[kind]), ("more than undisturbed", found[kind] - rows)):
            faults += [f"{kind}, {what}: {str(row)[:300]}" for row in difference]
    return faults


def _print_table(trials: list[Trial]) -> None:
    table = Table("killed in", "CPU s", "after", "submits", "temporary files", "at the end", "faults")
    for trial in trials:
        row: list[Any] = [
            trial.cpu_s,
            trial.stage,
            trial.n_submitted,
            len(trial.leftovers),
            len(trial.leftovers_at_end),
        ]
        table.add_row(*map(str, row), str(len(trial.faults)))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
