"""`samcorrect audit`: verify, export, explain."""

import csv
import hashlib
import io
import json
import re
import sqlite3

import numpy as np
import pytest

from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.schema import QualityRow
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS


@pytest.fixture
def studies(make_studies):
    """ward/anna with a label that SAM made, that was scored, corrected and approved, and of which one was rejected."""
    folder = make_studies("ward/anna.png", "b.png")
    store = LabelStore(*open_studies(folder, None))
    ledger = store.ledger

    def save(n_rows: int, **columns):
        label_map = np.zeros((16, 12, 1), np.uint8)
        label_map[:n_rows, :4] = 1
        return store.save_label_map("ward/anna", label_map, affine=LPS_TO_RAS, **columns)

    boxes = {"right lung": {"source": "box", "box": [81.2, 40, 270, 419.9]}, "left lung": {"box": [1, 2, 3, 4]}}
    sam = {"maker": "sam:lite_medsam", "model_digest": "79d8c9dc" + "0" * 56, "runtime": "torch-bf16"}
    made = save(4, tag="original", prompts=boxes, **sam)
    quality = {"label_version_id": made.id, "structure_index": 0, "score": 0.412, "expected_dice": 0.6249}
    ledger.set_quality(made.id, [QualityRow(**quality, created_at=0.0)])
    told = {"info": {"reasons": ["right lung: prediction of the correctors"]}, "parent_id": made.id, "round_number": 2}
    corrected = save(5, tag="corrected", maker="correction:samcorrect", **told)
    ledger.reject("ward/anna", corrected.id, reviewer="=bob", reason="leaks")
    save(5, tag="corrected", maker="correction:samcorrect", **told)
    store.approve_label(made, user="carl", comment="fine")
    ledger.comment("ward/anna", made.id, reviewer="Zoë", text="nice")
    store.restore_label(ledger.label_version(4), user="dora")
    ledger.close()
    return folder


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d  "


def test_the_history_of_an_image_in_plain_words(run, studies):
    code, told, _ = run("audit", "explain", "ward/anna", "--studies", studies)
    assert code == 0
    lines = told.splitlines()
    assert all(re.match(TIME, line) for line in lines)
    assert [re.sub(f"^{TIME}", "", line) for line in lines] == [
        "lite_medsam (weights 79d8c9dc, torch-bf16) made version 1 from the box 1, 2, 3, 4 of 'left lung' and the box "
        "81, 40, 270, 420 of 'right lung'",
        "version 1 got the score 0.41 (expected Dice 0.62)",
        "correction by the preset samcorrect changed version 1 into version 2 in round 2 (right lung: prediction of "
        "the correctors)",
        "=bob rejected version 2: leaks",
        "correction by the preset samcorrect changed version 1 into version 3 in round 2 (right lung: prediction of "
        "the correctors), rejected at once: it equals a version that a person rejected",
        "carl approved version 1 without a change, as version 4: fine",
        "version 4 got the score 0.41 (expected Dice 0.62)",
        "Zoë said of version 1: nice",
        "dora brought version 4 back as version 5",
        "version 5 got the score 0.41 (expected Dice 0.62)",
    ]
    assert run("audit", "explain", "b", "--studies", studies)[:2] == (0, "nothing has happened to b yet\n")
    told = run("versions", "ward/anna", "--studies", studies)[1]
    assert told.count("corrected, rejected") == 2


def test_a_whole_log_says_so_and_where_it_ends(run, studies):
    code, told, _ = run("audit", "verify", "--studies", studies)
    assert code == 0
    noted = re.fullmatch(r"the log is whole and leads to what the ledger holds; its end is (10:[0-9a-f]{64})\n", told)
    assert run("audit", "verify", "--noted", noted.group(1), "--studies", studies)[:2] == (0, told)
    code, told, _ = run("audit", "verify", "--noted", "10:" + "0" * 64, "--studies", studies)
    assert (code, told.startswith("BROKEN at row 10: row 10 has another hash than was noted")) == (1, True)


def edit(studies, *statements: str) -> None:
    with sqlite3.connect(studies / ".samcorrect" / "ledger.sqlite") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_forged_row_is_named_and_the_exit_code_says_so(run, studies):
    edit(studies, "UPDATE audit SET actor = 'nobody' WHERE id = 4")
    code, told, _ = run("audit", "verify", "--studies", studies)
    assert (code, told) == (1, "BROKEN at row 4: row 4 is not as it was written, or one before it is not\n")
    edit(studies, "UPDATE audit SET details = '[]', actor = 'x\x1b[2J' WHERE id = 1")
    code, told, _ = run("audit", "explain", "ward/anna", "--studies", studies)
    first = "label made by x?[2J, with details that cannot be read: run `samcorrect audit verify`"
    assert (code, told.splitlines()[0][18:]) == (0, first)


def test_a_changed_ledger_is_told_line_by_line(run, studies):
    edit(studies, "UPDATE label_version SET is_rejected = 0", "UPDATE image SET is_approved = 0")
    code, told, _ = run("audit", "verify", "--studies", studies)
    assert code == 1
    assert told.splitlines() == [
        "DIFFERENT: label version 2 of ward/anna is not rejected in the ledger and rejected by the log",
        "DIFFERENT: label version 3 of ward/anna is not rejected in the ledger and rejected by the log",
        "DIFFERENT: image ward/anna is approved by the log and not in the ledger",
    ]


def test_an_exported_log_can_be_checked_by_anybody(run, studies, tmp_path):
    code, told, _ = run("audit", "export", "--studies", studies)
    assert code == 0
    previous = "0" * 64
    for line in told.splitlines():
        row = json.loads(line)
        details = json.dumps(row["details"], sort_keys=True, separators=(",", ":"))
        sealed = [row["id"], row["at"], row["event"], row["actor"], row["image_id"], row["label_version_id"], details]
        previous = hashlib.sha256(json.dumps([*sealed, previous], separators=(",", ":")).encode()).hexdigest()
        assert row["hash"] == previous
    assert run("audit", "export", "--out", tmp_path / "a.jsonl", "--studies", studies)[:2] == (0, "")
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == told


def test_a_table_for_a_spreadsheet_holds_no_formula(run, studies):
    told = run("audit", "export", "--format", "csv", "--image", "ward/anna", "--studies", studies)[1]
    rows = list(csv.DictReader(io.StringIO(told)))
    assert len(rows) == 10
    assert rows[3]["actor"] == "'=bob"
    assert json.loads(rows[3]["details"]) == {"reason": "leaks"}
    assert run("audit", "export", "--image", "b", "--format", "csv", "--studies", studies)[1].count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "--format", "xml"], "the audit log is exported as jsonl or csv; got 'xml'"),
        (["export", "--image", "nobody"], "no image 'nobody' in the store"),
        (["export", "--out", "{studies}/b.png"], "b.png exists already, and an export is never overwritten"),
        (["explain", "../../etc/passwd"], "'../../etc/passwd' is not an image id"),
        (["verify", "--noted", "ten"], "--noted takes N:HASH"),
        (["verify", "--noted", "0:x"], "a row of the audit log has a number from 1; got 0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(run, studies, words, message):
    code, told, said = run("audit", *(word.format(studies=studies) for word in words), "--studies", studies)
    assert (code, told) == (1, "")
    assert message in said
    assert len(said.splitlines()) == 1
