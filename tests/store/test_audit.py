"""The audit log: what is told, what a check finds, and what a replay leads to."""

import hashlib
import json

import pytest
from ledger_rows import NOW, enter, score
from sqlalchemy import text

from samcorrect.lib.errors import RequestError
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records.audit import append_audit
from samcorrect.lib.store.schema import MODEL_CANDIDATE, LabelVersionRow, ModelRow


@pytest.fixture
def lived(ledger):
    """A ledger in which everything has happened that the log tells of a label or a model."""
    made = enter(ledger, "a", "original", "one", model_digest="d" * 64, prompts={"lung": {"box": [1.5, 2, 3, 4]}})
    score(ledger, made, 0.41)
    corrected = enter(ledger, "a", "corrected", "two", "correction:samcorrect", parent_id=made.id, round=1)
    score(ledger, corrected, 0.625)
    other = enter(ledger, "b", "original", "three")
    score(ledger, other, None)
    submitted = enter(ledger, "b", "final", "four", "user:anna", parent_id=other.id)
    ledger.reject("b", submitted.id, reviewer="bob", reason="leaks into the heart")
    ledger.comment("b", other.id, reviewer="bob", text="rather this one")
    ledger.add_copy(made, restored_by="anna")
    ledger.approve(corrected.id, reviewer="bob", comment="fine", expected_best=corrected.id)
    students = [
        ledger.add_model(ModelRow(digest=d * 64, path=f"models/{d}", status=MODEL_CANDIDATE, created_at=NOW))
        for d in "12"
    ]
    ledger.decide_model(students[0].id, is_promoted=True, metrics={"reason": "first"})
    ledger.decide_model(students[1].id, is_promoted=False, metrics={"reason": "worse"})
    ledger.audit_refusal("PUT", "/datastore/label", 422, "LabelError", "eve", image_id="c", now=NOW)
    return ledger


def execute(ledger: Ledger, *statements: str) -> None:
    """What somebody with access to the database does."""
    with ledger.session(writes=True) as session:
        for statement in statements:
            session.execute(text(statement))


def events(ledger: Ledger, image_id: str | None = None) -> list[str]:
    return [row.event for row in ledger.audit_rows(image_id)]


def test_every_event_is_a_row_with_who_did_what_to_which_version(lived):
    told = [(row.event, row.actor, row.image_id, row.label_version_id) for row in lived.audit_rows()]
    assert told == [
        ("label made", "sam:test", "a", 1),
        ("label scored", "samcorrect", "a", 1),
        ("label corrected", "correction:samcorrect", "a", 2),
        ("label scored", "samcorrect", "a", 2),
        ("label made", "sam:test", "b", 3),
        ("label scored", "samcorrect", "b", 3),
        ("label submitted", "anna", "b", 4),
        ("label rejected", "bob", "b", 4),
        ("comment", "bob", "b", 3),
        ("label restored", "anna", "a", 5),
        ("label scored", "samcorrect", "a", 5),
        ("label approved", "bob", "a", 6),
        ("label scored", "samcorrect", "a", 6),
        ("model promoted", "samcorrect", None, None),
        ("model refused", "samcorrect", None, None),
        ("request refused", "eve", "c", None),
    ]
    assert [row.id for row in lived.audit_rows()] == list(range(1, len(told) + 1))
    details = [json.loads(row.details) for row in lived.audit_rows()]
    assert (details[0]["model"], details[0]["prompts"]) == ("d" * 64, {"lung": {"box": [1.5, 2, 3, 4]}})
    assert details[3] == {"score": 0.625, "expected_dice": None}
    assert details[5]["score"] is None
    assert details[7] == {"reason": "leaks into the heart"}
    assert (details[11]["reason"], details[11]["parent"], details[11]["tag"]) == ("fine", 2, "final")
    assert events(lived, "b") == ["label made", "label scored", "label submitted", "label rejected", "comment"]


def test_a_row_seals_its_columns_and_the_row_before(lived):
    # The recipe that the README gives, in words of its own.
    previous = "0" * 64
    for row in lived.audit_rows():
        told = [row.id, row.at, row.event, row.actor, row.image_id, row.label_version_id, row.details, previous]
        previous = hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).hexdigest()
        assert row.hash == previous


def test_what_happened_as_told_is_whole_and_so_is_an_empty_log(lived, ledger_url, tmp_path):
    verdict = lived.verify_audit()
    assert verdict.is_whole
    assert (verdict.n_rows, verdict.differences) == (16, ())
    assert lived.verify_audit(noted=(verdict.n_rows, verdict.head)).is_whole
    empty = Ledger(tmp_path / "empty")
    assert (empty.verify_audit().is_whole, empty.verify_audit().n_rows) == (True, 0)
    empty.close()


COLUMNS = "at, event, actor, image_id, label_version_id, details, hash"
NOT_AS_WRITTEN = "is not as it was written"
FORGED = {
    "at": "at = at + 1",
    "event": "event = 'label scored'",
    "actor": "actor = 'nobody'",
    "image_id": "image_id = 'c'",
    "image_id taken away": "image_id = NULL",
    "label_version_id": "label_version_id = 3",
    "details": "details = '{}'",
    "hash": "hash = '" + "0" * 64 + "'",
}


@pytest.mark.parametrize("number", [1, 8])
@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_a_forged_column_is_found_at_its_row(lived, change, number):
    execute(lived, f"UPDATE audit SET {change} WHERE id = {number}")
    verdict = lived.verify_audit()
    assert (verdict.is_whole, verdict.first_broken, verdict.n_rows) == (False, number, number - 1)
    assert f"row {number} is not as it was written" in verdict.why


@pytest.mark.parametrize(
    ("statements", "first_broken", "why"),
    [
        (["DELETE FROM audit WHERE id = 1"], 1, "row 1 is missing: the next one is 2"),
        (["DELETE FROM audit WHERE id = 8"], 8, "row 8 is missing: the next one is 9"),
        (["DELETE FROM audit WHERE id = 16"], 16, "the log ends after row 15; 16 were written"),
        (["DELETE FROM audit WHERE id > 3"], 4, "the log ends after row 3; 16 were written"),
        (["DELETE FROM audit"], 1, "the log ends after row 0; 16 were written"),
        # The gap is closed, so that the numbers are right again.
        (["DELETE FROM audit WHERE id = 8", "UPDATE audit SET id = 8 WHERE id = 16"], 8, f"row 8 {NOT_AS_WRITTEN}"),
        # Two rows change places.
        (
            [
                "UPDATE audit SET id = 99 WHERE id = 8",
                "UPDATE audit SET id = 8 WHERE id = 9",
                "UPDATE audit SET id = 9 WHERE id = 99",
            ],
            8,
            "row 8 is not as it was written",
        ),
        (
            [f"INSERT INTO audit SELECT 17, {COLUMNS} FROM audit WHERE id = 16"],
            17,
            "row 17 is not as it was written",
        ),
        (
            [f"INSERT INTO audit SELECT 0, {COLUMNS} FROM audit WHERE id = 1"],
            1,
            "row 1 is missing: the next one is 0",
        ),
        (["DELETE FROM audit_head"], 17, "the log ends after row 16; 0 were written"),
        (["UPDATE audit_head SET n_rows = 15"], 17, "the log ends after row 16; 15 were written"),
        (["UPDATE audit_head SET hash = 'x'"], 17, "the log ends after row 16; 16 were written, the last"),
    ],
)
def test_a_deleted_moved_or_inserted_row_is_found_where_it_is(lived, statements, first_broken, why):
    execute(lived, *statements)
    verdict = lived.verify_audit()
    assert verdict.first_broken == first_broken
    assert verdict.why.startswith(why)


def forge_end(ledger: Ledger, n_rows: int) -> None:
    """Cut the log off after `n_rows` and let its head say that this is the end."""
    execute(
        ledger,
        f"DELETE FROM audit WHERE id > {n_rows}",
        f"UPDATE audit_head SET n_rows = {n_rows}, hash = (SELECT hash FROM audit WHERE id = {n_rows})",
    )


@pytest.mark.parametrize(
    ("n_rows", "difference"),
    [
        (14, None),  # the refusals of a model and of a request change nothing in the ledger
        (13, "the promoted model is 111111111111 in the ledger and none by the log"),
        (12, "label version 6 has the score 0.625 in the ledger and none by the log"),
        (11, "label version 6 of a is in the ledger and not in the log"),
        (9, "label version 5 of a is in the ledger and not in the log"),
        (8, "review 2 is not what the log says"),
        (7, "label version 4 of b is rejected in the ledger and not by the log"),
        (1, "label version 1 has the score 0.41 in the ledger and none by the log"),
    ],
)
def test_a_log_cut_off_with_a_forged_end_differs_from_the_ledger_or_from_what_was_noted(lived, n_rows, difference):
    noted = lived.verify_audit()
    forge_end(lived, n_rows)
    verdict = lived.verify_audit()
    assert verdict.first_broken is None  # the chain itself is whole
    assert verdict.is_whole == (difference is None)
    assert difference is None or difference in verdict.differences
    again = lived.verify_audit(noted=(noted.n_rows, noted.head))
    assert (again.first_broken, again.why) == (n_rows + 1, f"the log ends after row {n_rows} of 16 noted")


def test_a_log_that_was_written_anew_is_found_by_what_was_noted(lived):
    noted = lived.verify_audit()
    forge_end(lived, 15)
    lived.audit("started", actor="samcorrect")
    assert lived.verify_audit().is_whole
    verdict = lived.verify_audit(noted=(noted.n_rows, noted.head))
    assert verdict.first_broken == 16
    assert "another hash than was noted" in verdict.why
    with pytest.raises(RequestError, match="a number from 1; got 0"):
        lived.verify_audit(noted=(0, ""))


ENTERED = "is not as the log says it was entered"
VERSION, QUALITY = "UPDATE label_version SET", "UPDATE quality SET"


@pytest.mark.parametrize(
    ("statement", "difference"),
    [
        (f"{VERSION} tag = 'final' WHERE id = 3", f"label version 3 of b {ENTERED}"),
        (f"{VERSION} maker = 'user:x' WHERE id = 1", f"label version 1 of a {ENTERED}"),
        (f"{VERSION} prompts = '{{}}' WHERE id = 1", f"label version 1 of a {ENTERED}"),
        (f"{VERSION} content_sha256 = 'x' WHERE id = 2", f"label version 2 of a {ENTERED}"),
        (f"{VERSION} image_id = 'c' WHERE id = 2", f"label version 2 of c {ENTERED}"),
        (f"{VERSION} info = '{{\"reasons\": []}}' WHERE id = 4", f"label version 4 of b {ENTERED}"),
        (
            f"{VERSION} is_rejected = (1 = 0) WHERE id = 4",
            "label version 4 of b is not rejected in the ledger and rejected by the log",
        ),
        (
            "UPDATE image SET is_approved = (1 = 1) WHERE id = 'b'",
            "image b is approved in the ledger and not by the log",
        ),
        (
            "UPDATE image SET is_approved = (1 = 0) WHERE id = 'a'",
            "image a is approved by the log and not in the ledger",
        ),
        (
            f"{QUALITY} score = 0.9 WHERE label_version_id = 1",
            "label version 1 has the score 0.9 in the ledger and 0.41 by the log",
        ),
        (
            f"{QUALITY} score = 0.9 WHERE label_version_id = 3",
            "label version 3 has the score 0.9 in the ledger and None by the log",
        ),
        (
            "UPDATE model SET status = 'promoted' WHERE id = 2",
            "the promoted model is 111111111111, 222222222222 in the ledger and 111111111111 by the log",
        ),
        ("UPDATE review SET reason = 'good' WHERE id = 1", "review 1 is not what the log says"),
        ("DELETE FROM review WHERE id = 3", "review 3 is not what the log says"),
    ],
)
def test_a_ledger_that_was_changed_behind_the_log_is_found(lived, statement, difference):
    execute(lived, statement)
    assert lived.verify_audit().differences == (difference,)


def test_a_label_version_that_is_gone_is_found(lived):
    execute(
        lived,
        "DELETE FROM quality WHERE label_version_id = 6",
        "DELETE FROM review WHERE label_version_id = 6",
        "DELETE FROM label_version WHERE id = 6",
    )
    differences = lived.verify_audit().differences
    assert "label version 6 is in the log and not in the ledger" in differences
    assert "label version 6 has the score none in the ledger and 0.625 by the log" in differences


def test_notes_of_a_viewer_are_no_forgery(lived):
    lived.update_label_notes(4, {"level": "hard"})
    assert lived.verify_audit().is_whole


def test_an_event_is_there_if_and_only_if_what_it_tells_is(ledger):
    label = enter(ledger, "a", "original", "one")
    with ledger.session(writes=True) as session:
        session.get(LabelVersionRow, label.id).is_rejected = True
        append_audit(session, "label rejected", actor="x", image_id="a", label_version_id=label.id)
        session.flush()
        session.rollback()
    assert not ledger.label_version(label.id).is_rejected
    assert events(ledger) == ["label made"]
    assert ledger.verify_audit().is_whole


def test_names_that_no_database_takes_are_written_all_the_same(ledger):
    ledger.audit_refusal("PUT", "/datastore/label", 400, "RequestError", "eve\x00\x1b[2J\ud800", now=NOW)
    assert [row.actor for row in ledger.audit_rows()] == ["eve??[2J?"]
    assert ledger.verify_audit().is_whole
