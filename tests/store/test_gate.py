"""What the ledger knows of the promotion gate."""

import pytest
import sqlalchemy as sa

from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import LabelVersionRow
from samcorrect.lib.store.studies import ImageFile


@pytest.fixture
def ledger(tmp_path, ledger_url):
    """A ledger of three images, the first with two labels."""
    opened = Ledger(tmp_path / "state", ledger_url)
    opened.sync_images([ImageFile(i, f"{i}.png", i) for i in "abc"], [])
    for _ in range(2):
        columns = {"maker": "test", "path": "labels/a/1.png", "content_sha256": "c", "created_at": 1.0, "info": {}}
        opened.add_label(LabelVersionRow(image_id="a", tag="original", **columns))
    yield opened
    opened.close()


def test_what_is_held_out_is_written_once_and_never_taken_back(ledger):
    ledger.hold_out({"b", "a"})
    ledger.hold_out({"b"})
    ledger.hold_out({"c", "b"})
    assert ledger.held_out_images() == {"a", "b", "c"}
    rows = [row.image_id for row in ledger.audit_rows() if row.event == "image held out"]
    assert rows == ["a", "b", "c"]
    assert ledger.verify_audit().is_whole


def test_a_split_that_somebody_changed_differs_from_the_log(ledger):
    ledger.hold_out({"a"})
    with ledger.session(writes=True) as session:
        session.execute(sa.text("UPDATE image SET is_held_out = (id = 'b')"))
    assert ledger.verify_audit().differences == (
        "image b is held out in the ledger and not by the log",
        "image a is held out by the log and not in the ledger",
    )


def test_gate_labels_are_frozen_once_for_each_protocol(ledger):
    first, second = (row.id for row in ledger.versions("a"))
    assert ledger.gate_labels("p") == []
    ledger.freeze_gate("p", [])
    ledger.freeze_gate("p", [(first, 7), (first, 3)])
    ledger.freeze_gate("p", [(second, 7)])
    ledger.freeze_gate("q", [(second, 7)])
    assert ledger.gate_labels("p") == [(first, 3), (first, 7)]
    assert ledger.gate_labels("q") == [(second, 7)]
