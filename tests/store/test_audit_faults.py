"""The audit log under attack, beside writers, and after a kill."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from ledger_rows import NOW
from sqlalchemy import text

from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records.audit import MAX_REFUSALS, REFUSALS_WINDOW_S
from samcorrect.lib.store.studies import ImageFile


def execute(ledger: Ledger, *statements: str) -> None:
    """What somebody with access to the database does."""
    with ledger.session(writes=True) as session:
        for statement in statements:
            session.execute(text(statement))


def events(ledger: Ledger, image_id: str | None = None) -> list[str]:
    return [row.event for row in ledger.audit_rows(image_id)]


# Refused requests


def refuse(ledger: Ledger, *, now: float, user: str = "eve", image_id: str | None = None, status: int = 422) -> None:
    ledger.audit_refusal("PUT", "/datastore/label", status, "LabelError", user, image_id=image_id, now=now)


def test_repeats_within_a_minute_are_one_row_and_the_next_says_how_many(ledger):
    for second in range(50):
        refuse(ledger, now=NOW + second)
    assert len(events(ledger)) == 1
    refuse(ledger, now=NOW + REFUSALS_WINDOW_S)
    first, second = (json.loads(row.details) for row in ledger.audit_rows())
    assert first == {"method": "PUT", "route": "/datastore/label", "status": 422, "error": "LabelError"}
    assert second["unwritten"] == 49
    refuse(ledger, now=NOW + 2 * REFUSALS_WINDOW_S)
    assert "unwritten" not in json.loads(list(ledger.audit_rows())[-1].details)


def test_an_attacker_who_changes_names_does_not_fill_the_disk(ledger):
    for number in range(500):
        refuse(ledger, now=NOW, user=f"eve{number}")
    assert len(events(ledger)) == MAX_REFUSALS
    refuse(ledger, now=NOW + REFUSALS_WINDOW_S)
    assert json.loads(list(ledger.audit_rows())[-1].details)["unwritten"] == 500 - MAX_REFUSALS


def test_only_the_id_of_an_image_that_is_there_is_kept(ledger):
    refuse(ledger, now=NOW, image_id="a")
    refuse(ledger, now=NOW, image_id="Smith^John")
    refuse(ledger, now=NOW, image_id="../etc/passwd")
    assert [row.image_id for row in ledger.audit_rows()] == ["a", None, None]
    assert not any("Smith" in row.details or "passwd" in row.details for row in ledger.audit_rows())


# A killed process, and an edit of the file

WRITER = """
import sys
from pathlib import Path
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow
ledger = Ledger(Path(sys.argv[1]))
print("up", flush=True)
while True:
    row = LabelVersionRow(image_id="a", tag="original", maker="user:m", path="p", content_sha256="c", created_at=1.0)
    ledger.add_label(row)
    ledger.set_quality(row.id, [QualityRow(label_version_id=row.id, structure_index=0, score=0.5, created_at=1.0)])
    ledger.reject("a", row.id, reviewer="bob", reason="no")
"""


def kill_while_it_writes(ledger: Ledger, state: Path) -> None:
    n_rows = ledger.verify_audit().n_rows
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(state)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    deadline = time.monotonic() + 120
    while ledger.verify_audit().n_rows < n_rows + 10:
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_after_a_kill_the_log_is_whole_and_an_edit_of_the_file_is_found(tmp_path):
    state = tmp_path / "state"
    ledger = Ledger(state)
    ledger.sync_images([ImageFile("a", "a.png", "a")])
    kill_while_it_writes(ledger, state)
    kill_while_it_writes(ledger, state)
    verdict = ledger.verify_audit()
    assert verdict.is_whole
    refuse(ledger, now=NOW)
    assert ledger.verify_audit().n_rows == verdict.n_rows + 1
    ledger.close()
    with sqlite3.connect(state / LEDGER_NAME) as connection:
        connection.execute("UPDATE audit SET actor = x'00ff' WHERE id = 5")
        connection.execute("UPDATE audit SET at = 9e999 WHERE id = 7")
    connection.close()
    ledger = Ledger(state)
    assert ledger.verify_audit().first_broken == 5
    with sqlite3.connect(state / LEDGER_NAME) as connection:
        connection.execute("UPDATE audit SET actor = (SELECT actor FROM audit WHERE id = 2) WHERE id = 5")
    connection.close()
    assert ledger.verify_audit().first_broken in (5, 7)
    ledger.close()


def test_a_log_is_checked_while_others_write_to_it(tmp_path):
    state = tmp_path / "state"
    ledger = Ledger(state)
    ledger.sync_images([ImageFile("a", "a.png", "a")])
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(state)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        verdicts, deadline = [], time.monotonic() + 120
        while len(verdicts) < 40 or verdicts[-1].n_rows == verdicts[0].n_rows:
            verdicts.append(ledger.verify_audit())
            assert time.monotonic() < deadline
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert all(verdict.is_whole for verdict in verdicts)
    ledger.close()
