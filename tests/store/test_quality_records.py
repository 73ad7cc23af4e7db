"""The quality of many labels at once."""

import pytest

from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records import labels
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow
from samcorrect.lib.store.studies import ImageFile

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def ledger(tmp_path, ledger_url):
    ledger = Ledger(tmp_path / "state", ledger_url)
    ledger.sync_images([ImageFile(name, f"{name}.png", name) for name in NAMES])
    yield ledger
    ledger.close()


def add_label(ledger: Ledger, image_id: str, *scores: float, tag: str = "original") -> int:
    """Enter a label and the scores of the structures 0, 3, ...; returns its number."""
    values = {"maker": "test", "path": "labels/x", "content_sha256": "0" * 64, "created_at": 1.0}
    label = ledger.add_label(LabelVersionRow(image_id=image_id, tag=tag, **values))
    if scores:
        rows = [
            QualityRow(label_version_id=label.id, structure_index=3 * n, score=score, created_at=1.0)
            for n, score in enumerate(scores)
        ]
        ledger.set_quality(label.id, rows)
    return label.id


def test_quality_of_many_labels_comes_in_a_few_queries(ledger, monkeypatch):
    monkeypatch.setattr(labels, "IDS_PER_QUERY", 2)
    made = [add_label(ledger, name, number / 10, 0.5) for number, name in enumerate(NAMES[:4])]
    unscored = add_label(ledger, "e")
    found = ledger.qualities([*made[1:], unscored])
    assert {label_id: sorted(of) for label_id, of in found.items()} == {label_id: [0, 3] for label_id in made[1:]}
    assert [found[label_id][0].score for label_id in made[1:]] == [0.1, 0.2, 0.3]
    assert ledger.scored_labels() == set(made)
    assert ledger.qualities([]) == {}


def test_more_approvals_change_the_expected_dice_and_nothing_else(ledger):
    label_id = add_label(ledger, "a", 0.5, 0.4)
    before, n_audited = ledger.quality(label_id), len(list(ledger.audit_rows()))
    bounds = {"expected_dice": 0.9, "expected_dice_low": 0.8, "expected_dice_high": None, "n_approved": 9}
    ledger.update_quality([{"id": before[3].id, **bounds}])
    after = ledger.quality(label_id)
    assert {name: getattr(after[3], name) for name in bounds} == bounds
    assert (after[3].score, after[0].expected_dice, after[0].n_approved) == (0.4, None, 0)
    assert len(list(ledger.audit_rows())) == n_audited


def test_only_the_best_label_has_a_place_in_the_queue(ledger):
    original = add_label(ledger, "a", 0.5)
    assert ledger.image("a").queue_score == 0.5
    corrected = add_label(ledger, "a", 0.7, tag="corrected")
    assert ledger.image("a").queue_score == 0.7
    ledger.set_quality(original, [QualityRow(structure_index=0, score=0.1, created_at=1.0, label_version_id=original)])
    assert (ledger.image("a").queue_score, ledger.quality(original)[0].score) == (0.7, 0.1)
    ledger.set_quality(
        corrected, [QualityRow(structure_index=0, score=0.9, created_at=1.0, label_version_id=corrected)]
    )
    assert ledger.image("a").queue_score == 0.9


def test_another_score_of_a_label_is_in_the_log(ledger):
    label_id = add_label(ledger, "a", 0.5, 0.4)
    ledger.update_quality([{"id": row.id, "score": 0.3} for row in ledger.quality(label_id).values()])
    assert {index: row.score for index, row in ledger.quality(label_id).items()} == {0: 0.3, 3: 0.3}
    assert ledger.verify_audit().differences == ()
