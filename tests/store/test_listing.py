"""What lists say of an image's labels, and the queue's statements, in both databases."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select, text

from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records.listing import relist
from samcorrect.lib.store.records.queue import KEEP_EXPIRED_S
from samcorrect.lib.store.schema import ImageRow, LabelVersionRow, LeaseRow, ReviewRow
from samcorrect.lib.store.studies import ImageFile

REVIEWER = Path(sys.prefix) / "monailabel" / "plugins" / "slicer" / "MONAILabelReviewer"
NOW = 1000.0


@pytest.fixture
def ledger(tmp_path, ledger_url):
    ledger = Ledger(tmp_path / "state", ledger_url)
    ledger.sync_images([ImageFile(image_id, f"{image_id}.png", image_id) for image_id in "abcd"])
    yield ledger
    ledger.close()


def label_row(image_id, tag="original", **columns):
    info = {"present_indices": [1], "label_info": [{"name": "lung", "idx": 1}]}
    base = {
        "maker": "sam:x",
        "path": f"labels/{image_id}/1.nii.gz",
        "content_sha256": "c",
        "created_at": NOW,
        "info": info,
    }
    return LabelVersionRow(image_id=image_id, tag=tag, **base | columns)


def listed(ledger, image_id="a"):
    (row,) = (row for row in ledger.listings() if row.id == image_id)
    shown = json.loads(row.shown_labels) if row.shown_labels else {}
    return json.loads(row.best_present) if row.best_present else {}, shown


def decide(ledger, label, decision, reason="", reviewer="ann"):
    with ledger.session(writes=True) as session:
        if decision == "rejected":
            session.get(LabelVersionRow, label.id).is_rejected = True
        of = {"image_id": label.image_id, "label_version_id": label.id, "created_at": NOW + 5}
        session.add(ReviewRow(decision=decision, reviewer=reviewer, reason=reason, **of))


def test_a_listing_follows_every_label_and_decision(ledger):
    assert listed(ledger) == ({}, {})
    first = ledger.add_label(label_row("a"))
    present = {"present_indices": [1], "label_info": [{"name": "lung", "idx": 1}]}
    assert listed(ledger) == (present, {})
    assert ledger.image("a").best_label_id == first.id
    final = ledger.add_label(label_row("a", "final", maker="user:ann"))
    ledger.add_label(label_row("a", "corrected"))
    assert ledger.image("a").best_label_id == final.id
    info = listed(ledger)[1]["final"]["info"]
    assert (info["name"], info["client_id"], info["ts"]) == ("1.nii.gz", "ann", NOW)
    meta = {"status": "approved", "approvedBy": "ann", "level": "", "comment": "", "editTime": NOW}
    assert info["segmentationMeta"] == meta
    decide(ledger, final, "rejected", "wrong side", "bob")
    assert ledger.image("a").best_label_id == final.id + 1
    flagged = {"status": "flagged", "approvedBy": "bob", "comment": "wrong side", "editTime": NOW + 5}
    assert listed(ledger)[1]["final"]["info"]["segmentationMeta"] == meta | flagged
    ledger.update_label_notes(final.id, {"segmentationMeta": {"level": "hard"}})
    assert listed(ledger)[1]["final"]["info"]["segmentationMeta"]["level"] == "hard"


def test_an_image_whose_labels_are_all_rejected_shows_the_last_of_them(ledger):
    only = ledger.add_label(label_row("a"))
    decide(ledger, only, "rejected", "empty")
    present, shown = listed(ledger)
    assert (present["present_indices"], present["segmentationMeta"]["status"], shown) == ([1], "flagged", {})
    assert ledger.image("a").best_label_id is None


def test_a_listing_made_anew_for_all_images_is_the_same(ledger):
    for image_id, tag in (("a", "original"), ("a", "version_1"), ("a", "mine"), ("b", "final"), ("d", "corrected")):
        decide(ledger, ledger.add_label(label_row(image_id, tag)), "comment", f"on {tag}")
    columns = select(ImageRow.id, ImageRow.best_label_id, ImageRow.best_present, ImageRow.shown_labels).order_by(
        ImageRow.id
    )
    with ledger.session() as session:
        before = session.execute(columns).all()
    with ledger.session(writes=True) as session:
        session.execute(text("UPDATE image SET best_label_id = NULL, best_present = '', shown_labels = ''"))
        relist(session)
    with ledger.session() as session:
        assert session.execute(columns).all() == before
    assert set(listed(ledger)[1]) == {"version_1"}


def test_only_images_that_changed_are_read_again(ledger):
    seen = ledger.listings()[-1].revision
    assert ledger.listings(seen) == []

    def changed() -> dict[str, str]:
        nonlocal seen
        rows = ledger.listings(seen)
        seen = rows[-1].revision if rows else seen
        return {row.id: row.status for row in rows}

    decide(ledger, ledger.add_label(label_row("c")), "comment")
    assert changed() == {"c": "ok"}
    ledger.quarantine("b", "unreadable")
    assert changed() == {"b": "quarantined"}
    ledger.release_from_quarantine()
    assert changed()["b"] == "ok"
    found = [ImageFile(image_id, f"ward/{image_id}.png", image_id) for image_id in "ab"]
    ledger.sync_images([*found, ImageFile("c", "c.png", "c"), ImageFile("e", "e.png", "e")], [("ü.png", "no id")])
    # d is gone, two have moved, one is new; the refused file is in no list.
    assert changed() == {"a": "ok", "b": "ok", "d": "quarantined", "e": "ok"}
    ledger.sync_images([*found, ImageFile("c", "c.png", "c"), ImageFile("e", "e.png", "e")], [])
    assert changed() == {}
    ledger.set_quality(ledger.best_label("c").id, [])
    ledger.take_lease("a", "ann", now=NOW, lease_s=60)
    assert changed() == {}


def test_what_is_given_back_is_free_and_of_that_holder_alone(ledger):
    for image_id, holder in (("a", "ann"), ("b", "ann"), ("c", "bob")):
        ledger.take_lease(image_id, holder, now=NOW, lease_s=60)
    assert ledger.release("ann", "c", now=NOW) == []
    assert ledger.release("ann", "b", now=NOW) == ["b"]
    assert [row.id for row in ledger.queue_head(None, 9, now=NOW)] == ["b", "d"]
    assert [(w.image.id, w.lease and w.lease.holder) for w in ledger.queue(3, now=NOW)] == [
        ("a", "ann"),
        ("b", None),
        ("c", "bob"),
    ]
    assert ledger.release("ann", now=NOW + 61) == []
    assert ledger.queue(1, now=NOW + 61)[0].lease is None


def test_leases_that_ended_long_ago_are_swept(ledger):
    ledger.take_lease("a", "ann", now=NOW, lease_s=60)
    ledger.take_lease("b", "ann", now=NOW + 60 + KEEP_EXPIRED_S - 1, lease_s=60)
    with ledger.session() as session:
        assert session.get(LeaseRow, "a") is not None
    ledger.take_lease("b", "ann", now=NOW + 60 + KEEP_EXPIRED_S, lease_s=60)
    with ledger.session() as session:
        assert session.get(LeaseRow, "a") is None


def test_the_queue_is_read_by_an_index_and_never_sorted(ledger):
    ledger.sync_images([ImageFile(f"i{n:05d}", f"i{n:05d}.png", "x") for n in range(5000)])
    is_sqlite = ledger.url is None
    explain, analyze = ("EXPLAIN QUERY PLAN", "ANALYZE") if is_sqlite else ("EXPLAIN", "ANALYZE image")
    with ledger.session(writes=True) as session:
        session.execute(text(analyze))
        waits = f"status = 'ok' AND is_approved IS {'0' if is_sqlite else 'false'}"
        free = f"{waits} AND id NOT IN (SELECT image_id FROM lease WHERE expires_at > 1)"
        for order, index in (("queue_score ASC NULLS FIRST, id", "ix_image_queue"), ("draw", "ix_image_draw")):
            query = f"{explain} SELECT * FROM image WHERE {free} ORDER BY {order} LIMIT 8"
            plan = " ".join(str(tuple(row)) for row in session.execute(text(query)))
            assert index in plan, plan
            assert "TEMP B-TREE FOR ORDER" not in plan, plan
            assert "Sort" not in plan, plan


@pytest.mark.skipif(not REVIEWER.is_dir(), reason="the host was installed without Slicer's Reviewer")
def test_the_reviewer_of_slicer_reads_every_image(make_studies, monkeypatch):
    from samcorrect.lib.store.datastore import LedgerDatastore
    from samcorrect.lib.store.labels import LabelStore
    from samcorrect.lib.store.sources import open_studies

    store = LabelStore(*open_studies(make_studies("a.png", "ward/b.png", "c.png"), None))
    store.ledger.add_label(label_row("a", "final", maker="user:ann"))
    decide(store.ledger, store.ledger.add_label(label_row("ward/b")), "rejected", "wrong side", "bob")
    monkeypatch.syspath_prepend(str(REVIEWER))
    assert importlib.util.find_spec("MONAILabelReviewerLib") is not None
    from MONAILabelReviewerLib.JsonParser import JsonParser

    parser = JsonParser(LedgerDatastore(store, None).json())
    parser.init()
    read = parser.getMapIdToImageData()
    assert {i: (image.isSegemented(), image.getFileName()) for i, image in read.items()} == {
        "a": (True, "a.png"),
        "ward/b": (False, "ward_b.png"),
        "c": (False, "c.png"),
    }
    assert (read["a"].getClientId(), read["a"].getSegmentationFileName()) == ("ann", "1.nii.gz")
    assert read["a"].getTimeOfAnnotation() == time.strftime(
        "%Y-%m-%d %H:%M:%S", time.localtime(store.ledger.image("a").added_at)
    )
    meta = read["ward/b"].getSegmentationMetaDict()["original"]
    assert (meta.status, meta.approvedBy, meta.comment) == ("flagged", "bob", "wrong side")
