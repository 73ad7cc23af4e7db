"""Slicer's Reviewer against the datastore: its own code builds what it sends and reads what it gets."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from monailabel.config import settings as host_settings

from samcorrect.lib.errors import LabelError, RequestError
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.datastore import LedgerDatastore
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.reviewer import NO_REASON
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

BOX = {"source": "box", "xyxy": (0.1, 0.1, 0.9, 0.9)}
PROTOCOL = Protocol(structures=[{"name": "lung", "index": 1, "prompt": BOX}])
# Where the host's wheel puts its Slicer modules.
REVIEWER = Path(sys.prefix) / "monailabel" / "plugins" / "slicer" / "MONAILabelReviewer"
KEYS = {"status", "approvedBy", "level", "comment", "editTime"}


@pytest.fixture
def store(make_studies):
    return LabelStore(*open_studies(make_studies("a.png", "b.png"), None))


@pytest.fixture
def datastore(store):
    return LedgerDatastore(store, PROTOCOL)


@pytest.fixture
def seen(datastore, monkeypatch):
    """A function that reads the datastore with the Reviewer's parser: image id to its ImageData."""
    assert REVIEWER.is_dir()
    monkeypatch.syspath_prepend(str(REVIEWER))
    from MONAILabelReviewerLib.JsonParser import JsonParser

    def read() -> dict:
        parser = JsonParser(json.loads(json.dumps(datastore.json())))
        parser.init()
        return parser.getMapIdToImageData()

    return read


def square(n_rows: int) -> np.ndarray:
    label_map = np.zeros((16, 12, 1), np.uint8)
    label_map[:n_rows, :4] = 1
    return label_map


def machine_label(store, n_rows: int = 4, tag: str = "original"):
    return store.save_label_map("a", square(n_rows), tag=tag, maker="sam:test", affine=LPS_TO_RAS)


def submit(store, tmp_path, n_rows: int = 6, user: str = "anna"):
    write_label_map(tmp_path / "submitted.nii.gz", square(n_rows), LPS_TO_RAS)
    return store.submit_label("a", tmp_path / "submitted.nii.gz", tag="final", user=user)


def meta(status: str = "", by: str = "rita", comment: str = "", level: str = "") -> dict:
    """What the Reviewer sends: all keys, every time."""
    told = {"status": status, "approvedBy": by, "level": level, "comment": comment, "editTime": 1700000000}
    return {"segmentationMeta": told, "user": "admin"}


def shown(datastore, tag: str = "original") -> dict:
    return datastore.get_label_info("a", tag)["segmentationMeta"]


def test_a_label_that_nobody_decided_about_has_all_keys_and_no_status(datastore, store):
    machine_label(store)
    assert shown(datastore).keys() == KEYS
    assert {shown(datastore)[key] for key in KEYS - {"editTime"}} == {""}
    assert datastore.get_label_info("a", "original")["state"] == "pseudo"


def test_approved_in_the_reviewer_is_approved_in_the_ledger_once(datastore, store):
    label = machine_label(store)
    datastore.update_label_info("a", "original", meta("approved", comment="fine", level="easy"))
    final = store.ledger.best_label("a")
    assert (final.tag, final.maker, final.parent_id) == ("final", "user:rita", label.id)
    told = shown(datastore)
    assert {key: told[key] for key in ("status", "approvedBy", "comment", "level")} == {
        "status": "approved", "approvedBy": "rita", "comment": "fine", "level": "easy",
    }  # fmt: skip
    # It sends the same again at the next image, and for another tag too.
    datastore.update_label_info("a", "original", meta("approved", comment="fine", level="easy"))
    datastore.update_label_info("a", "final", meta("approved", comment="fine", level="hard"))
    assert store.ledger.best_label("a").id == final.id
    assert shown(datastore)["level"] == "hard"
    assert len(store.ledger.reviews("a")) == 1


def test_a_second_reader_approves_what_an_annotator_submitted(datastore, store, tmp_path):
    submitted = submit(store, tmp_path)
    assert (shown(datastore)["status"], shown(datastore)["approvedBy"]) == ("approved", "anna")
    datastore.update_label_info("a", "final", meta("approved"))
    best = store.ledger.best_label("a")
    assert (best.parent_id, best.maker, best.content_sha256) == (submitted.id, "user:rita", submitted.content_sha256)


def test_nobody_approves_in_anothers_name_where_there_is_a_login(datastore, store, monkeypatch):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    machine_label(store)
    datastore.update_label_info("a", "original", meta("approved", by="chief"))  # as the user "admin"
    assert store.ledger.best_label("a").maker == "user:admin"
    # What others approved comes back with every comment, and is no approval by the one who comments.
    datastore.update_label_info("a", "final", meta("approved", by="admin", comment="fine") | {"user": "rita"})
    assert store.ledger.best_label("a").maker == "user:admin"
    datastore.update_label_info("a", "final", meta("flagged", by="admin", comment="leaks") | {"user": "rita"})
    told = [(row.decision, row.reviewer) for row in store.ledger.reviews("a")]
    assert told == [("approved", "admin"), ("comment", "rita"), ("rejected", "rita")]


def test_flagged_rejects_with_the_comment_and_approving_it_all_the_same_is_meant(datastore, store, tmp_path):
    submitted = submit(store, tmp_path)
    datastore.update_label_info("a", "final", meta("flagged", comment="misses the apex"))
    assert not store.ledger.image("a").is_approved
    info = datastore.get_label_info("a", "final")
    assert (info["state"], info["reason"], info["version"]) == ("rejected", "misses the apex", submitted.id)
    assert (info["segmentationMeta"]["status"], info["segmentationMeta"]["approvedBy"]) == ("flagged", "rita")
    datastore.update_label_info("a", "final", meta("flagged", comment="misses the apex"))  # the same again
    assert [row.decision for row in store.ledger.reviews("a")] == ["rejected"]
    datastore.update_label_info("a", "final", meta("flagged", comment="and the hilum"))
    assert [row.decision for row in store.ledger.reviews("a")] == ["rejected", "comment"]
    datastore.update_label_info("a", "final", meta("approved", by="ruth"))
    assert store.ledger.best_label("a").maker == "user:ruth"
    assert store.ledger.label_version(submitted.id).is_rejected


def test_a_flag_without_a_comment_has_a_reason_that_says_so(datastore, store):
    machine_label(store)
    datastore.update_label_info("a", "original", meta("flagged"))
    assert datastore.get_label_info("a", "original")["reason"] == NO_REASON


def test_a_viewer_gets_the_rejected_label_only_where_there_is_no_other(datastore, store):
    original, corrected = machine_label(store), machine_label(store, 5, "corrected")
    store.ledger.reject("a", corrected.id, reviewer="bob", reason="leaks")
    assert datastore.get_label_info("a", "original")["version"] == original.id
    store.ledger.reject("a", original.id, reviewer="bob", reason="leaks too")
    info = datastore.get_label_info("a", "original")
    assert (info["version"], info["state"], info["reason"]) == (corrected.id, "rejected", "leaks")
    assert datastore.get_label("a", "original").sum() == 20
    assert datastore.json()["objects"]["a"]["labels"]["original"]["info"]["params"]["label_names"] == {"lung": 1}
    assert datastore.get_labeled_images("original") == []
    assert datastore.status()["label_tags"] == {}


def test_a_comment_alone_is_a_comment_and_other_statuses_are_notes(datastore, store):
    machine_label(store)
    for _ in range(2):
        datastore.update_label_info("a", "original", meta("in review", comment="is that pleura?"))
    assert [(r.decision, r.reviewer) for r in store.ledger.reviews("a")] == [("comment", "rita")]
    assert (shown(datastore)["status"], shown(datastore)["comment"]) == ("", "is that pleura?")
    assert datastore.get_label_info("a", "original")["viewer"]["segmentationMeta"]["status"] == "in review"
    datastore.update_label_info("a", "original", {"seen": True})
    assert datastore.get_label_info("a", "original")["viewer"]["seen"] is True


@pytest.mark.parametrize("value", ["approved", 7, {"status": 1}, {"comment": ["x"]}])
def test_a_malformed_meta_changes_nothing(datastore, store, value):
    machine_label(store)
    with pytest.raises(RequestError, match="segmentationMeta"):
        datastore.update_label_info("a", "original", {"segmentationMeta": value})
    assert store.ledger.reviews("a") == []
    assert datastore.get_label_info("a", "original")["viewer"] == {}


def test_the_reviewer_reads_what_the_ledger_knows(datastore, store, tmp_path, seen):
    assert not seen()["a"].isSegemented()
    machine_label(store)
    assert not seen()["a"].isSegemented()
    final = submit(store, tmp_path)
    image = seen()["a"]
    assert (image.isSegemented(), image.isApproved(), image.isFlagged()) == (True, True, False)
    assert image.getApprovedBy() == "anna"
    store.ledger.reject("a", final.id, reviewer="bob", reason="leaks")
    image = seen()["a"]
    assert (image.isSegemented(), image.isApproved(), image.isFlagged()) == (True, False, True)
    assert (image.getComment(), image.getApprovedBy()) == ("leaks", "bob")
    datastore.update_label_info("a", "final", meta("approved", level="hard"))
    image = seen()["a"]
    assert (image.isApproved(), image.isFlagged(), image.getLevel()) == (True, False, "hard")


def test_what_the_reviewer_sends_of_other_tags_decides_nothing(datastore, store, tmp_path, seen):
    """It sends the meta of every tag that it knows one of, at each change of one of them."""
    original = machine_label(store)
    final = submit(store, tmp_path)
    store.ledger.reject("a", final.id, reviewer="bob", reason="leaks")
    store.ledger.reject("a", original.id, reviewer="bob", reason="leaks")
    image = seen()["a"]
    image.updateSegmentationMetaByVerionTag(tag="final", status="approved", approvedBy="rita", comment="leaks")
    others = image.updateApprovedStatusOfOtherThanSubjectedVersion("final", "hard")
    datastore.update_label_info("a", "final", image.getMetaByVersionTag("final"))
    for tag, told in others.items():
        datastore.update_label_info("a", tag, told)
    assert (store.ledger.best_label("a").tag, store.ledger.state("a")) == ("final", "approved")


def test_an_approval_needs_its_file(datastore, store):
    label = machine_label(store)
    store.label_path(label).write_bytes(b"x")
    with pytest.raises(OSError, match="was changed on the disk"):
        datastore.update_label_info("a", "original", meta("approved"))
    assert store.ledger.reviews("a") == []


def test_a_rejected_label_is_restored_by_a_person_who_says_so(store):
    label = machine_label(store)
    store.ledger.reject("a", label.id, reviewer="bob", reason="leaks")
    assert store.make_best(label).id == label.id  # what a run ends with does not bring it back
    assert store.ledger.best_label("a") is None
    restored = store.restore_label(label, user="anna")
    assert (store.ledger.best_label("a").id, store.ledger.state("a")) == (restored.id, "pseudo")
    final = store.approve_label(restored, user="bob")
    with pytest.raises(LabelError, match="bob approved"):
        store.restore_label(label, user="anna")
    assert store.ledger.best_label("a").id == final.id
