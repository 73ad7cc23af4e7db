"""One run of `samcorrect loop` at a time, as a child process of the server, which the next server takes up again."""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from samcorrect.lib.errors import ConflictError
from samcorrect.lib.loop.outcome import HTML_NAME, JSON_NAME
from samcorrect.lib.loop.progress import read_progress
from samcorrect.lib.loop.rounds import RESULT_SETTINGS
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.settings import ENVIRONMENT_PREFIX
from samcorrect.lib.store.files import write_bytes_atomically

logger = logging.getLogger(__name__)

NOTE_NAME, REPORTS_NAME, SAID_NAME = "loop.json", "reports", "said.log"
IDLE, RUNNING, FINISHED, FAILED, CANCELLED = "idle", "running", "finished", "failed", "cancelled"
# Done, and done but some input was set aside (samcorrect.cli.main).
DONE_CODES = (0, 3)
STOP_TIMEOUT_S = 10
MAX_ERROR = 500
# Set when the server ends: that its child is killed then is no failure of the run, and the next server resumes it.
server_ends = threading.Event()


class LoopRuns:
    """Starts, watches and ends runs; what is known of the last one is `loop.json` in the state folder."""

    def __init__(self, workspace: Workspace):
        """Look after the runs of a workspace."""
        self._workspace = workspace
        self._state_dir = workspace.store.state_dir
        self._lock = threading.RLock()
        self._child: subprocess.Popen | None = None

    def start(self, changes: Mapping[str, object], user: str) -> dict[str, Any]:
        """Start a run with the settings of the server and these changes; returns `status`.

        Raises:
            SettingsError: A setting is unknown or out of range.
            ProtocolError: There is no protocol.
            ConflictError: A run is under way.
        """
        self._workspace.require_protocol()
        settings = self._workspace.with_settings(**changes).settings
        with self._lock:
            note = self._note()
            if note.get("status") == RUNNING:
                raise ConflictError(
                    f"{note['started_by']} started run {note['run']} at {_clock(note['started_at'])}, and it is under "
                    "way; GET /samcorrect/loop says how far it is, DELETE /samcorrect/loop ends it"
                )
            run = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            told = {"run": run, "status": RUNNING, "started_by": user, "started_at": time.time(), "n_resumed": 0}
            self._spawn(told | {"settings": {name: getattr(settings, name) for name in RESULT_SETTINGS}})
        return self.status()

    def resume(self) -> None:
        """Take up the run that was under way when the last server ended, unless that server still lives."""
        with self._lock:
            note = self._note()
            if note.get("status") != RUNNING:
                return
            if _is_alive(note["server"]):
                logger.warning("run %s is under way in another server (process %d)", note["run"], note["server"]["pid"])
                return
            if _is_alive(note.get("child")):
                _end(psutil.Process(note["child"]["pid"]))
            logger.info("run %s goes on", note["run"])
            self._spawn(note | {"n_resumed": note["n_resumed"] + 1})

    def cancel(self, user: str) -> dict[str, Any]:
        """End the run; what it made so far stays, and a run of the same settings goes on from there.

        Raises:
            ConflictError: No run is under way, or it is another server's.
        """
        with self._lock:
            note = self._note()
            if note.get("status") != RUNNING or self._child is None:
                raise ConflictError("no run is under way on this server; POST /samcorrect/loop starts one")
            self._write(note | {"status": CANCELLED, "ended_at": time.time(), "cancelled_by": user})
            child = self._child
        _end(psutil.Process(child.pid))
        return self.status()

    def status(self) -> dict[str, Any]:
        """What is known of the last run: `status` and, but for "idle", its settings, progress, error and report."""
        note = self._note()
        if not note:
            return {"status": IDLE}
        folder = self._folder(note["run"])
        told = {key: value for key, value in note.items() if key not in ("server", "child")}
        progress = read_progress(folder)
        told["progress"] = {key: value for key, value in progress.items() if key not in ("seconds", "is_finished")}
        if note["status"] == FINISHED:
            told["report"] = {"html": str(folder / HTML_NAME), "json": str(folder / JSON_NAME)}
            told["summary"] = _summary(folder / JSON_NAME)
        return told

    def _spawn(self, note: dict[str, Any]) -> None:
        folder = self._folder(note["run"])
        folder.mkdir(parents=True, exist_ok=True)
        # Before the process is there: a server that is killed in between resumes a run that has done nothing.
        self._write(note | {"server": _identity(os.getpid()), "child": None})
        command = [sys.executable, "-m", "samcorrect.cli", "loop", "--studies", self._workspace.store.studies.location]
        command += ["--out", str(folder), "--served"]
        with (folder / SAID_NAME).open("ab") as said:
            environment = self._environment(note["settings"])
            pipe = subprocess.PIPE
            child = subprocess.Popen(command, stdin=pipe, stdout=said, stderr=subprocess.STDOUT, env=environment)
        self._child = child
        self._write(note | {"server": _identity(os.getpid()), "child": _identity(child.pid)})
        threading.Thread(target=self._watch, args=(child, note["run"]), daemon=True).start()

    def _environment(self, of_run: Mapping[str, object]) -> dict[str, str]:
        settings = self._workspace.settings.model_dump(exclude_none=True) | {"state": self._state_dir} | dict(of_run)
        given = {f"{ENVIRONMENT_PREFIX}{name.upper()}": str(value) for name, value in settings.items()}
        # A folder `samcorrect` where the server was started is not the package.
        return os.environ | given | {"PYTHONSAFEPATH": "1"}

    def _watch(self, child: subprocess.Popen, run: str) -> None:
        code = child.wait()
        if server_ends.is_set():
            return
        with self._lock:
            note = self._note()
            self._child = None
            if note.get("run") != run or note["status"] != RUNNING:
                return
            is_done = code in DONE_CODES
            error = "" if is_done else _last_line(self._folder(run) / SAID_NAME, code)
            note |= {"status": FINISHED if is_done else FAILED, "ended_at": time.time(), "error": error}
            self._write(note)
        logger.info("run %s ended with code %d", run, code)

    def _folder(self, run: str) -> Path:
        return self._state_dir / REPORTS_NAME / run

    def _note(self) -> dict[str, Any]:
        path = self._state_dir / NOTE_NAME
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _write(self, note: Mapping[str, Any]) -> None:
        write_bytes_atomically(self._state_dir / NOTE_NAME, json.dumps(note, indent=1).encode())


def _identity(pid: int) -> dict[str, float] | None:
    """What tells a process from a later one of the same number; None where it has ended."""
    try:
        return {"pid": pid, "created_at": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return None


def _is_alive(identity: Mapping[str, float] | None) -> bool:
    return identity is not None and _identity(int(identity["pid"])) == identity and identity["pid"] != os.getpid()


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            process.kill()


def _last_line(path: Path, code: int) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = next((line for line in reversed(lines) if line), "")
    if code == -signal.SIGKILL:
        return "killed by signal 9, as Linux does where the memory is full"
    return said[:MAX_ERROR] or f"ended with code {code} and said nothing"


def _summary(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text(encoding="utf-8"))
    told = {key: report[key] for key in ("n_images", "correction", "model_digest", "seconds", "stop_reason")}
    told["rounds"] = [{k: v for k, v in of_round.items() if k != "student"} for of_round in report["rounds"]]
    return told | {"n_set_aside": len(report["quarantined"])}


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
