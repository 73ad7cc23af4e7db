"""A finished run that is started once more: what it ended with is the best again, but for what people chose since."""

import pytest
from scipy.ndimage import shift

from samcorrect.lib.loop import rounds
from samcorrect.lib.loop.cohort import best_labels
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.versions import restore_version
from samcorrect.lib.store.schema import MODEL_CANDIDATE, ModelRow
from samcorrect.lib.store.volumes import LPS_TO_RAS


@pytest.fixture
def runs_that_shift(monkeypatch):
    """Every run corrects two images by moving them, by its seed, and promotes a student of its own."""

    def shifted(workspace, cohort, result, number, _progress):
        store, seed = workspace.store, workspace.settings.seed
        for image_id, label in zip(("case0", "case1"), cohort.labels, strict=False):
            moved = shift(store.read_label(label), (5 + seed, 0, 0), order=0)
            made_in = {"run_id": result.run_id, "round_number": number, "parent_id": label.id}
            maker = f"correction of seed {seed}"
            store.save_label_map(image_id, moved, tag="corrected", maker=maker, affine=LPS_TO_RAS, **made_in)
        digest = str(seed) * 64
        row = store.ledger.add_model(ModelRow(digest=digest, path="none.pt", status=MODEL_CANDIDATE, created_at=1.0))
        store.ledger.decide_model(row.id, is_promoted=True, metrics={})
        student = {"digest": digest, "status": "promoted"}
        return {"round": number, "n_corrected": 2, "mean_score": None, "student": student}

    monkeypatch.setattr(rounds, "_run_round", shifted)


def test_what_a_finished_run_ended_with_is_the_best_again_where_it_is_read_again(labelled, runs_that_shift, caplog):
    first = labelled(shares_trainings=False, student_steps=5)
    ledger = first.store.ledger

    def best():
        labels = best_labels(first)
        scores = {i: ledger.quality(label.id)[0].score for i, label in labels.items()}
        return {i: label.content_sha256 for i, label in labels.items()}, scores

    result, ended = run_loop(first), best()
    run_loop(first.with_settings(seed=1))
    assert best() != ended
    assert "stays in use" not in caplog.text

    again = run_loop(first)

    assert best() == ended
    assert (again.run_id, again.final_scores) == (result.run_id, result.final_scores) == (result.run_id, ended[1])
    assert {i: label.id for i, label in again.labels_last.items()} == {i: v.id for i, v in best_labels(first).items()}
    assert {i for i, label in again.labels_last.items() if label.maker == "correction of seed 0"} == {"case0", "case1"}
    assert f"promoted the student {'0' * 12}, but {'1' * 12}, which took its place" in caplog.text
    # Once more there is nothing to enter.
    n_rows = len(list(ledger.audit_rows()))
    run_loop(first)
    assert (best(), len(list(ledger.audit_rows()))) == (ended, n_rows)


def test_what_a_person_went_back_to_stays_the_best_where_a_run_is_read_again(labelled, runs_that_shift):
    workspace = labelled(shares_trainings=False, student_steps=5)
    before = best_labels(workspace)["case0"]
    result = run_loop(workspace)
    assert best_labels(workspace)["case0"].tag == "corrected"
    restore_version(workspace, "case0", before.id, user="anna")

    again = run_loop(workspace)

    best = best_labels(workspace)
    assert again.run_id == result.run_id
    assert (best["case0"].content_sha256, best["case0"].info["restored_by"]) == (before.content_sha256, "anna")
    assert again.labels_last["case0"].id == best["case0"].id
    assert best["case1"].tag == "corrected"
    assert workspace.store.ledger.quality(best["case0"].id)[0].score is not None
    # A run of its own may correct it anew.
    run_loop(workspace.with_settings(seed=1))
    assert best_labels(workspace)["case0"].maker == "correction of seed 1"
