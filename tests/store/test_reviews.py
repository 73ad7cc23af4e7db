"""What people decide: rejections, approvals without a change, comments, and what each does to labels and queue."""

import pytest
from sqlalchemy import text

from samcorrect.lib.errors import ConflictError, LabelError, RequestError, UnknownImageError, UnknownLabelError
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records.labels import best_of
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow
from samcorrect.lib.store.studies import ImageFile

NOW = 1_000_000.0


@pytest.fixture
def ledger(tmp_path, ledger_url):
    ledger = Ledger(tmp_path / "state", ledger_url)
    ledger.sync_images([ImageFile(name, f"{name}.png", name) for name in ("a", "b", "c")])
    yield ledger
    assert ledger.verify_audit().is_whole  # whatever a test did
    ledger.close()


def enter(ledger: Ledger, image_id: str, tag: str = "original", content: str = "0", maker: str = "sam:test", **columns):
    row = LabelVersionRow(
        image_id=image_id, tag=tag, maker=maker, path="labels/x", content_sha256=content, created_at=NOW, **columns
    )
    return ledger.add_label(row)


def score(ledger: Ledger, label: LabelVersionRow, value: float) -> None:
    quality = QualityRow(label_version_id=label.id, structure_index=0, score=value, created_at=NOW)
    ledger.set_quality(label.id, [quality])


def reject(ledger: Ledger, label: LabelVersionRow, reason: str = "leaks", reviewer: str = "bob") -> None:
    ledger.reject(label.image_id, label.id, reviewer=reviewer, reason=reason)


def test_a_rejected_label_is_the_best_of_nothing_until_there_is_no_other(ledger):
    original = enter(ledger, "a", content="1")
    corrected = enter(ledger, "a", "corrected", content="2")
    reject(ledger, corrected)
    assert ledger.label_version(corrected.id).is_rejected
    assert ledger.best_label("a").id == ledger.best_label("a", with_rejected=True).id == original.id
    assert ledger.latest_label("a", "corrected") is None
    assert ledger.latest_label("a", "corrected", with_rejected=True).id == corrected.id
    assert {key: row.id for key, row in ledger.latest_labels().items()} == {("a", "original"): original.id}
    assert set(ledger.latest_labels(with_rejected=True)) == {("a", "original"), ("a", "corrected")}
    assert best_of(ledger.versions("a")).id == original.id
    reject(ledger, original)
    assert ledger.best_label("a") is None
    assert best_of(ledger.versions("a")) is None
    assert ledger.best_label("a", with_rejected=True).id == corrected.id
    assert [row.id for row in ledger.rejected_labels()] == [original.id, corrected.id]
    assert ledger.image_ids_with("original") == set()


def test_of_labels_for_the_pacs_those_that_are_rejected_do_not_count(ledger):
    ledger.sends_finals = True
    enter(ledger, "a", content="0")
    first, second, third = (enter(ledger, "a", "final", content=str(n), maker="user:anna") for n in range(1, 4))
    ledger.set_publication(first.id, "stored")
    assert ledger.pending_publications() == [second.id, third.id]
    assert ledger.count_publications() == {"stored": 1, "pending": 2}
    reject(ledger, second)
    assert ledger.pending_publications() == [third.id]
    assert ledger.count_publications() == {"stored": 1, "pending": 1}


def test_an_older_label_stands_behind_a_rejected_one_of_its_tag(ledger):
    old, new = enter(ledger, "a", content="1"), enter(ledger, "a", content="2")
    reject(ledger, new)
    assert ledger.best_label("a").id == ledger.latest_labels()["a", "original"].id == old.id


def test_the_state_of_an_image_follows_what_happens_to_it(ledger):
    assert ledger.state("a") == "unlabelled"
    label = enter(ledger, "a", content="1")
    assert ledger.state("a") == "pseudo"
    reject(ledger, label)
    assert ledger.state("a") == "rejected"
    corrected = enter(ledger, "a", "corrected", content="2")
    assert ledger.state("a") == "corrected"
    ledger.take_lease("a", "anna", now=NOW, lease_s=60)
    assert (ledger.state("a", now=NOW + 59), ledger.state("a", now=NOW + 61)) == ("in review", "corrected")
    final = ledger.approve(corrected.id, reviewer="anna")
    assert ledger.state("a", now=NOW) == "approved"
    reject(ledger, final)
    assert ledger.state("a", now=NOW) == "rejected"
    with pytest.raises(UnknownImageError):
        ledger.state("nobody")


def test_a_rejected_image_is_first_in_the_queue_whatever_is_scored_until_it_has_a_new_label(ledger):
    labels = {image_id: enter(ledger, image_id, content=image_id) for image_id in "abc"}
    corrected = enter(ledger, "c", "corrected", content="2")
    for image_id, value in (("a", 0.3), ("b", 0.2), ("c", 0.9)):
        score(ledger, labels[image_id], value)
    ledger.take_lease("c", "anna", now=NOW, lease_s=60)
    reject(ledger, corrected)
    assert ledger.held_by("anna", now=NOW) == []
    assert [row.id for row in ledger.queue_head("ann", 9, now=NOW)] == ["c", "b", "a"]
    for label in (labels["c"], corrected):
        score(ledger, label, 0.9)  # a scoring that began before does not move it
        assert ledger.image("c").queue_score is None
    again = enter(ledger, "c", "corrected", content="3")
    score(ledger, again, 0.9)
    assert [row.id for row in ledger.queue_head("ann", 9, now=NOW)] == ["b", "a", "c"]


def test_a_second_reader_rejects_a_final_label_and_the_image_is_approved_while_another_stands(ledger):
    first, second = (enter(ledger, "a", "final", content=c, maker="user:anna") for c in "12")
    reject(ledger, second)
    assert ledger.image("a").is_approved
    assert (ledger.best_label("a").id, ledger.state("a")) == (first.id, "approved")
    reject(ledger, first)
    assert not ledger.image("a").is_approved
    assert [row.id for row in ledger.queue_head("ann", 9, now=NOW)] == ["a", "b", "c"]


def test_a_machine_cannot_bring_back_what_a_person_threw_out_and_a_person_can(ledger):
    rejected = enter(ledger, "a", content="1")
    reject(ledger, rejected)
    again = enter(ledger, "a", "corrected", content="1", maker="correction:samcorrect")
    assert ledger.label_version(again.id).is_rejected
    assert ledger.add_copy(rejected).is_rejected
    assert not enter(ledger, "b", content="1").is_rejected  # the same content of another image
    assert ledger.state("a") == "rejected"
    restored = ledger.add_copy(rejected, restored_by="anna")
    assert not restored.is_rejected
    assert not enter(ledger, "a", content="1").is_rejected  # a person has spoken since
    submitted = enter(ledger, "a", "final", content="1", maker="user:anna")
    assert (submitted.is_rejected, ledger.image("a").is_approved) == (False, True)


def test_a_copy_that_a_machine_makes_of_a_restored_label_is_not_told_as_restored(ledger):
    label = enter(ledger, "a", content="1")
    restored = ledger.add_copy(label, restored_by="anna")
    copy = ledger.add_copy(restored)
    assert (restored.info, copy.info) == ({"restored_by": "anna"}, {})
    assert [row.event for row in ledger.audit_rows()] == ["label made", "label restored", "label made"]


def test_an_approval_enters_a_copy_as_final_and_keeps_quality_and_why_it_was_served(ledger):
    label = enter(ledger, "a", content="1", info={"present_indices": [1]}, model_digest="d")
    score(ledger, label, 0.4)
    ledger.take_lease("a", "bob", now=NOW, lease_s=60, why="audit")
    final = ledger.approve(label.id, reviewer="bob", comment="  as it\n is ")
    assert (final.tag, final.maker, final.parent_id, final.content_sha256) == ("final", "user:bob", label.id, "1")
    assert final.info == {"present_indices": [1], "why_served": "audit"}
    assert ledger.quality(final.id)[0].score == 0.4
    assert ledger.image("a").is_approved
    assert ledger.held_by("bob", now=NOW) == []
    review = ledger.last_review(final.id)
    assert (review.decision, review.reviewer, review.reason) == ("approved", "bob", "as it is")
    second = ledger.approve(final.id, reviewer="carl")
    assert second.info["why_served"] == "audit"  # a second reading is no other draw
    assert [row.decision for row in ledger.reviews("a")] == ["approved", "approved"]


def test_a_rejected_version_is_approved_only_by_who_knows_that(ledger):
    label = enter(ledger, "a", content="1")
    reject(ledger, label)
    with pytest.raises(ConflictError, match=r"version 1 of a was rejected; approve another version"):
        ledger.approve(label.id, reviewer="bob")
    assert len(ledger.versions("a")) == 1
    final = ledger.approve(label.id, reviewer="bob", even_rejected=True)
    assert ledger.label_version(label.id).is_rejected
    assert not final.is_rejected
    assert (ledger.best_label("a").id, ledger.state("a")) == (final.id, "approved")


def test_an_approval_is_refused_where_somebody_else_was_faster(ledger):
    seen = enter(ledger, "a", content="1")
    other = enter(ledger, "a", "final", content="2", maker="user:anna")
    with pytest.raises(ConflictError, match=r"anna approved version 2 of a in the meantime"):
        ledger.approve(seen.id, reviewer="bob")
    with pytest.raises(ConflictError):
        ledger.approve(seen.id, reviewer="bob", expected_best=seen.id)
    assert ledger.best_label("a").id == other.id
    assert ledger.approve(seen.id, reviewer="bob", expected_best=other.id).content_sha256 == "1"
    # One's own newer label is no conflict, nor is one that was rejected.
    assert ledger.approve(seen.id, reviewer="bob", expected_best=other.id).maker == "user:bob"
    for row in ledger.versions("a")[2:]:
        reject(ledger, row)
    reject(ledger, other)
    assert ledger.approve(seen.id, reviewer="carl").maker == "user:carl"


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("bob", "", r"the reason has 1 to 2000 characters; got 0"),
        ("bob", " \n\t ", r"the reason has 1 to 2000 characters; got 0"),
        ("bob", "x" * 2001, r"the reason has 1 to 2000 characters; got 2001"),
        ("bob", "clear\x1b[2J", r"the reason holds control characters; got 'clear\\x1b\[2J'"),
        ("bob", "a\x00b", r"the reason holds control characters"),
        ("bob", "\ud800", r"the reason holds control characters"),
        (" ", "leaks", r"the reviewer has 1 to 200 characters; got 0"),
        ("b" * 201, "leaks", r"the reviewer has 1 to 200 characters; got 201"),
        ("b\x07b", "leaks", r"the reviewer holds control characters"),
    ],
)
def test_a_rejection_needs_a_name_and_a_reason_that_can_be_shown(ledger, name, reason, message):
    label = enter(ledger, "a")
    with pytest.raises(RequestError, match=message):
        ledger.reject("a", label.id, reviewer=name, reason=reason)
    assert not ledger.label_version(label.id).is_rejected
    assert ledger.reviews("a") == []


@pytest.mark.parametrize("number", [9, 2**31, 10**25, -(10**25)])
def test_a_number_that_no_version_has_is_named_however_great(ledger, number):
    with pytest.raises(UnknownLabelError, match=f"no label version {number} in the ledger"):
        ledger.label_version(number)


def test_what_is_not_there_or_of_another_image_is_named(ledger):
    label = enter(ledger, "a")
    with pytest.raises(UnknownLabelError, match="no label version 9 in the ledger"):
        ledger.reject("a", 9, reviewer="bob", reason="x")
    with pytest.raises(UnknownLabelError, match="no label version 9 in the ledger"):
        ledger.approve(9, reviewer="bob")
    with pytest.raises(LabelError, match="version 1 is not of the image 'b'"):
        ledger.reject("b", label.id, reviewer="bob", reason="x")
    with pytest.raises(UnknownImageError, match="no image 'x' in the store"):
        ledger.comment("x", label.id, reviewer="bob", text="x")
    reject(ledger, label)
    with pytest.raises(ConflictError, match="version 1 of a is rejected already; comment on it instead"):
        reject(ledger, label)


def test_comments_change_nothing_else(ledger):
    label = enter(ledger, "a")
    score(ledger, label, 0.4)
    ledger.comment("a", label.id, reviewer="Zoë", text="Ist das die Pleura?\nSicher?")
    assert [(r.decision, r.reviewer, r.reason) for r in ledger.reviews("a")] == [
        ("comment", "Zoë", "Ist das die Pleura? Sicher?")
    ]
    assert (ledger.state("a"), ledger.image("a").queue_score) == ("pseudo", 0.4)
    assert ledger.last_review(label.id).reason == "Ist das die Pleura? Sicher?"


def test_a_rejection_is_whole_or_not_at_all(ledger):
    label = enter(ledger, "a")
    with ledger.session(writes=True) as session:
        session.execute(text("ALTER TABLE audit RENAME TO elsewhere"))
    with pytest.raises(Exception, match="audit"):
        reject(ledger, label)
    with ledger.session(writes=True) as session:
        session.execute(text("ALTER TABLE elsewhere RENAME TO audit"))
    assert not ledger.label_version(label.id).is_rejected
    assert ledger.reviews("a") == []


def test_the_label_of_a_run_that_was_rejected_is_not_taken_and_its_checkpoint_stays(ledger):
    run, _ = ledger.open_run("d", {}, {"key": "k", "labels": {}})
    label = enter(ledger, "a", "corrected", content="1", run_id=run.id, round=1)
    reject(ledger, label)
    assert ledger.run_labels("corrected", run.id, 1) == {}
    assert ledger.run_label("a", "corrected", run.id, 1).id == label.id


def test_a_run_that_starts_from_a_rejected_label_is_not_taken_up(ledger):
    rejected, other = enter(ledger, "a", content="1"), enter(ledger, "a", content="2")
    first, _ = ledger.open_run("d", {}, {"key": "k", "labels": {"a": rejected.id}})
    assert ledger.open_run("d", {}, {"key": "new", "labels": {"a": other.id}})[0].id == first.id
    reject(ledger, rejected)
    second, is_known = ledger.open_run("d", {}, {"key": "new", "labels": {"a": other.id}})
    assert (second.id != first.id, is_known) == (True, False)


def test_the_names_in_the_labels_of_people_are_told_once_each_without_what_was_replaced_or_rejected(ledger):
    def info(name):
        return {"label_info": [{"name": name, "idx": 1}], "value_to_index": {"1": 3}}

    enter(ledger, "a", "final", info=info("replaced"))
    first = enter(ledger, "a", "final", info=info("lung"))
    enter(ledger, "b", "final", info=info("lung"))
    enter(ledger, "c", info=info("of a machine"))
    reject(ledger, enter(ledger, "c", "final", info=info("rejected")))
    assert ledger.names_in_finals() == [(first.id, [{"name": "lung", "idx": 1}], {"1": 3})]
    enter(ledger, "c", "final")
    assert len(ledger.names_in_finals()) == 1
