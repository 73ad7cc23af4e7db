"""What people decide and the loop: a rejected label teaches nothing, starts nothing and is not made again."""

import numpy as np
import pytest
from sqlalchemy import text

from samcorrect.lib.errors import ConflictError, LabelError, UnknownImageError, UnknownLabelError
from samcorrect.lib.loop.audit import audit_refusal, audit_start
from samcorrect.lib.loop.cohort import best_labels, load_cohort, standing
from samcorrect.lib.loop.exchange import export_labels
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.queue import next_image
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.reviews import approve_label, comment_on_label, image_state, reject_label, why_rejected
from samcorrect.lib.loop.rounds import _open_run, run_loop
from samcorrect.lib.loop.students import train_on
from samcorrect.lib.loop.versions import restore_version
from samcorrect.lib.store.schema import TAG_CORRECTED
from samcorrect.lib.store.volumes import LPS_TO_RAS

FEW_STEPS = {"shares_trainings": False, "student_steps": 5}
LEAKS = {"reviewer": "bob", "reason": "leaks"}


def students(workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workspace.store.state_dir / "models").glob("*.pt")}


def forget(workspace, image_id: str) -> None:
    """Take an image's labels out of the ledger as if they had never been made; its log is then broken."""
    with workspace.store.ledger.session(writes=True) as session:
        session.execute(text("DELETE FROM label_version WHERE image_id = :i"), {"i": image_id})


def test_a_rejected_label_has_no_influence_on_the_next_student(labelled):
    rejected, never, kept = (labelled(name, **FEW_STEPS) for name in ("rejected", "never", "kept"))
    reject_label(rejected, "case2", **LEAKS)
    forget(never, "case2")
    told = {workspace: train_student(workspace) for workspace in (rejected, never, kept)}
    assert told[rejected]["digest"] == told[never]["digest"] != told[kept]["digest"]
    assert students(rejected) == students(never)
    assert told[rejected]["dice"] == told[never]["dice"]  # nor on the gate


def test_a_rejected_label_has_no_influence_on_scores_and_peers(labelled):
    rejected, never = (labelled(name, **FEW_STEPS) for name in ("rejected", "never"))
    reject_label(rejected, "case2", **LEAKS)
    forget(never, "case2")
    assert score_store(rejected)["n_scored"] == score_store(never)["n_scored"] == 9
    assert students(rejected) == students(never)
    scores = [{row.id: row.queue_score for row in w.store.ledger.images()} for w in (rejected, never)]
    assert scores[0] == scores[1]
    assert scores[0]["case2"] is None


def test_a_label_rejected_after_the_cohort_was_read_teaches_nothing(labelled):
    late, never = (labelled(name, **FEW_STEPS) for name in ("late", "never"))
    forget(never, "case2")
    cohorts = [load_cohort(workspace, best_labels(workspace)) for workspace in (late, never)]
    reject_label(late, "case2", **LEAKS)
    assert standing(late, cohorts[0]).tolist() == [n != 2 for n in range(10)]
    trained = [
        train_on(workspace, cohort, np.arange(len(cohort)), name="student", seed=0)
        for workspace, cohort in zip((late, never), cohorts, strict=True)
    ]
    assert trained[0].student.digest == trained[1].student.digest
    with pytest.raises(LabelError, match="every label that the student would learn from was rejected"):
        train_on(late, cohorts[0], np.array([2]), name="student", seed=0)


def test_the_student_learns_from_the_states_that_are_admitted(labelled, phantoms):
    workspace = labelled(**FEW_STEPS)
    for number in range(3):
        workspace.store.submit_label(f"case{number}", phantoms.labels / f"case{number}.png", tag="final", user="anna")
    approved = workspace.with_settings(train_on="approved")
    told = train_student(approved)
    cohort = load_cohort(workspace, best_labels(workspace))
    alone = train_on(workspace, cohort, np.arange(3), name="student", seed=10_000)
    assert told["digest"] == alone.student.digest
    with pytest.raises(LabelError, match=r"no label has one of the states corrected .*train_on"):
        train_student(workspace.with_settings(train_on="corrected"))


def test_sam_does_not_make_a_rejected_label_again(phantom_workspace):
    workspace = phantom_workspace()
    pseudo_label_store(workspace)
    reject_label(workspace, "case2", **LEAKS)
    assert pseudo_label_store(workspace) == {"n_labelled": 0, "n_kept": 10, "n_quarantined": 0}
    assert len(workspace.store.ledger.versions("case2")) == 1
    # By another recipe it does; where that comes to the same content, it is rejected already.
    pseudo_label_store(workspace.with_settings(seed=1), image_ids=["case2"])
    first, second = workspace.store.ledger.versions("case2")
    assert second.is_rejected == (first.content_sha256 == second.content_sha256)


def test_a_mask_that_was_brought_along_and_rejected_makes_room_for_sams(phantom_workspace, phantoms):
    workspace = phantom_workspace()
    pseudo_label_store(workspace)
    workspace.store.submit_label("case2", phantoms.labels / "case2.png", tag="original", user="import")
    assert pseudo_label_store(workspace, image_ids=["case2"])["n_labelled"] == 0
    reject_label(workspace, "case2", **LEAKS)
    assert pseudo_label_store(workspace, image_ids=["case2"])["n_labelled"] == 1
    assert pseudo_label_store(workspace, image_ids=["case2"])["n_labelled"] == 0


def test_a_run_starts_from_no_rejected_label_and_a_rejection_makes_a_new_run(labelled):
    workspace = labelled()
    first = _open_run(workspace)
    assert _open_run(workspace).id == first.id
    label = workspace.store.ledger.best_label("case2")
    other = workspace.store.save_label_map(
        "case2", np.full((96, 80, 1), 3), tag="original", maker="test", affine=LPS_TO_RAS
    )
    assert _open_run(workspace).id == first.id  # the same images: it goes on
    reject_label(workspace, "case2", label.id, **LEAKS)
    second = _open_run(workspace)
    assert second.id != first.id
    assert second.snapshot["labels"]["case2"] == other.id
    reject_label(workspace, "case2", other.id, **LEAKS)
    assert "case2" not in _open_run(workspace).snapshot["labels"]
    started = [row for row in workspace.store.ledger.audit_rows() if row.event == "started"]
    assert len(started) == 3


def test_where_every_label_was_rejected_a_run_says_what_to_do(labelled):
    workspace = labelled()
    for row in workspace.store.ledger.images():
        reject_label(workspace, row.id, **LEAKS)
    with pytest.raises(LabelError, match="every label was rejected; submit or import others"):
        _open_run(workspace)


@pytest.mark.slow
def test_a_correction_that_was_rejected_is_out_of_the_run_and_the_label_before_in_it(labelled):
    workspace = labelled(rounds=1)
    result = run_loop(workspace)
    corrected = [i for i, label in result.labels_last.items() if label.tag == TAG_CORRECTED]
    assert corrected
    original = result.labels_first[corrected[0]]
    reject_label(workspace, corrected[0], **LEAKS)
    again = run_loop(workspace)
    assert again.run_id != result.run_id
    best = workspace.store.ledger.best_label(corrected[0])
    # The same correction is rejected at once; the label before is what stands, and no correction was accepted.
    told = again.rounds[0]
    assert corrected[0] not in told["corrected"]
    assert told["n_corrected"] == len(told["corrected"]) - told["n_chosen_again"] == len(corrected) - 1
    assert best.id == again.labels_last[corrected[0]].id
    assert best.content_sha256 == original.content_sha256
    assert workspace.store.ledger.verify_audit().is_whole


def test_a_rejected_image_is_served_first_and_says_why(labelled):
    workspace = labelled(audit_share=0, **FEW_STEPS)
    score_store(workspace)
    last = max(workspace.store.ledger.images(), key=lambda row: row.queue_score).id
    assert image_state(workspace, last) == "pseudo"
    reject_label(workspace, last, reviewer="bob", reason="leaks into the heart " * 20)
    assert image_state(workspace, last) == "rejected"
    audited = next_image(workspace.with_settings(audit_share=1), "carl", strategy="lowest_quality", now=1.0)
    assert "audit share" in audited.why
    chosen = next_image(workspace, "anna", strategy="lowest_quality")
    assert chosen.image_id == last
    assert chosen.why.startswith("rejected by bob: leaks into the heart leaks")
    assert len(chosen.why) == 160
    assert image_state(workspace, last) == "in review"
    final = approve_label(workspace, last, reviewer="anna", even_rejected=True)
    assert final.info["why_served"] == chosen.why
    assert (image_state(workspace, last), why_rejected(workspace, last)) == ("approved", None)


def test_rejected_labels_are_never_exported(labelled, tmp_path):
    workspace = labelled()
    reject_label(workspace, "case2", **LEAKS)
    told = export_labels(workspace, tmp_path / "out", file_format="nifti", states=["approved", "corrected", "pseudo"])
    assert told["n_exported"] == 9


def test_what_is_not_there_is_named(labelled):
    workspace = labelled()
    forget(workspace, "case9")
    with pytest.raises(UnknownLabelError, match="case9 has no label yet, so there is nothing to decide about"):
        reject_label(workspace, "case9", **LEAKS)
    with pytest.raises(UnknownImageError):
        image_state(workspace, "nobody")
    with pytest.raises(LabelError, match="version 1 is not of the image 'case3'"):
        approve_label(workspace, "case3", 1, reviewer="bob")
    reject_label(workspace, "case3", **LEAKS)
    with pytest.raises(ConflictError):
        approve_label(workspace, "case3", reviewer="bob")


def test_the_log_of_a_whole_life_leads_to_the_ledger(labelled, phantoms):
    """Made, scored, corrected, submitted, rejected, restored, approved, a student promoted and one refused."""
    workspace = labelled(shares_trainings=False, student_steps=60)
    store = workspace.store
    audit_start(workspace, "serve")
    score_store(workspace)
    corrected = store.save_label_map(
        "case1", np.full((96, 80, 1), 7), tag="corrected", maker="correction:test", affine=LPS_TO_RAS, round_number=1
    )
    submitted = store.submit_label("case2", phantoms.labels / "case2.png", tag="final", user="anna")
    reject_label(workspace, "case2", reviewer="bob", reason="leaks")
    comment_on_label(workspace, "case2", reviewer="bob", text="see above")
    restore_version(workspace, "case2", submitted.id, user="anna")
    approve_label(workspace, "case1", corrected.id, reviewer="bob")
    reject_label(workspace, "case3", reviewer="bob", reason="empty")
    first, second = train_student(workspace), train_student(workspace, steps=1)
    assert {first["status"], second["status"]} == {"promoted", "refused"}
    audit_refusal(workspace, "PUT", "/datastore/label", 422, "LabelError", "eve", image_id="case1")
    verdict = store.ledger.verify_audit()
    assert verdict.differences == ()
    assert verdict.is_whole
    told = {row.event for row in store.ledger.audit_rows()}
    assert told == {
        "started", "label made", "label scored", "label corrected", "label submitted", "label rejected", "comment",
        "label restored", "label approved", "model promoted", "model refused", "request refused",
    }  # fmt: skip
    started = next(row for row in store.ledger.audit_rows() if row.event == "started")
    assert '"audit_share":0.2' in started.details
    assert "ledger_url" not in started.details
    store.rescan()
    assert store.ledger.verify_audit().is_whole
