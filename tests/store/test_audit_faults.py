"""The audit log under attack, beside writers, and after a kill."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ledger_rows import NOW
from sqlalchemy import text

from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records.audit import MAX_REFUSALS, REFUSALS_WINDOW_S, AuditVerdict
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


@contextmanager
def writing(state: Path) -> Iterator[None]:
    """A process that writes to the log of a state folder until it is killed at the end."""
    command = [sys.executable, "-c", WRITER, str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "up\n"
            yield
        finally:
            process.kill()


def check_until_it_has(ledger: Ledger, n_rows: int) -> AuditVerdict:
    """The first verdict on so many rows."""
    deadline = time.monotonic() + 120
    while (verdict := ledger.verify_audit()).n_rows < n_rows:
        assert time.monotonic() < deadline
    return verdict


def test_after_a_kill_the_log_is_whole_and_an_edit_of_the_file_is_found(tmp_path):
    state = tmp_path / "state"
    ledger = Ledger(state)
    ledger.sync_images([ImageFile("a", "a.png", "a")])
    for n_rows in (11, 22):
        with writing(state):
            check_until_it_has(ledger, n_rows)
    verdict = ledger.verify_audit()
    assert verdict.is_whole
    assert verdict.n_rows > 10
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
    with writing(state):
        verdicts = [ledger.verify_audit() for _ in range(40)]
        verdicts.append(check_until_it_has(ledger, verdicts[0].n_rows + 1))
    assert all(verdict.is_whole for verdict in verdicts)
    assert verdicts[-1].n_rows > verdicts[0].n_rows
    ledger.close()
