"""Approved labels on their way into a real PACS: marked first, sent once, kept whatever happens."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient

from samcorrect.lib.errors import StoreError
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.store import publishing
from samcorrect.lib.store.backup import restore_backup, write_backup
from samcorrect.lib.store.datastore import LedgerDatastore
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.publishing import Publisher
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import write_label_map

STRAIGHT = np.diag([-1.0, -1.0, 3.0, 1.0])
PENDING, STORED = {"state": "pending", "reason": ""}, {"state": "stored", "reason": ""}
PROTOCOL = """
structures:
  - {name: liver, index: 1, prompt: {source: box, xyxy: [0, 0, 1, 1]}}
  - {name: spleen, index: 2, prompt: {source: box, xyxy: [0, 0, 1, 1]}}
"""


def stow(url: str, instances: list[pydicom.Dataset]) -> str:
    DICOMwebClient(url).store_instances(instances)
    return instances[0].SeriesInstanceUID


def segs_of(url: str) -> list[pydicom.Dataset]:
    client = DICOMwebClient(url)
    series = client.search_for_series(search_filters={"Modality": "SEG"})
    uids = [(entry["0020000D"]["Value"][0], entry["0020000E"]["Value"][0]) for entry in series]
    return [instance for study, uid in uids for instance in client.retrieve_series(study, uid)]


class Site:
    """A PACS with one series of 12 x 10 x 3, its store, and what a viewer and the server do."""

    def __init__(self, url: str, state_dir: Path, series: list[pydicom.Dataset]):
        self.uid = stow(url, series)
        self.state_dir = state_dir
        self.studies, _ = open_studies(url, state_dir)
        self.store = LabelStore(self.studies, state_dir)
        (state_dir / "protocol.yaml").write_text(PROTOCOL, encoding="utf-8")
        self.protocol = load_protocol(state_dir / "protocol.yaml")
        self.datastore = LedgerDatastore(self.store, self.protocol)

    def submit(self, tag: str = "final", **params: object) -> None:
        """Save a label of index 2 alone, as the host's endpoint does, and not yet what it calls afterwards."""
        image = self.store.read_image(self.uid)
        label_map = np.zeros(image.array.shape, np.uint8)
        label_map[1, 2, 0] = 2
        path = self.state_dir / "upload.nii.gz"
        write_label_map(path, label_map, image.affine)
        self.datastore.save_label(self.uid, str(path), tag, {"user": "anna", **params})

    def told(self) -> dict[str, str]:
        return self.store.label(self.uid, "final").info["pacs"]


@pytest.fixture
def site(pacs, make_series, tmp_path):
    site = Site(pacs, tmp_path / "state", make_series(np.zeros((3, 10, 12), np.uint16), STRAIGHT))
    yield site
    site.store.ledger.close()


def test_a_label_is_pending_in_the_ledger_before_it_is_sent(site, pacs):
    site.submit()
    assert site.told() == PENDING
    assert segs_of(pacs) == []
    assert site.datastore.publish_label(site.uid) == {"pacs": STORED}
    (seg,) = segs_of(pacs)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["liver", "spleen"]
    assert str(seg.ContentCreatorName) == "anna^"


def test_a_server_that_was_killed_before_it_sent_a_label_sends_it_at_the_next_refresh(site, pacs):
    site.submit()
    LedgerDatastore(site.store, site.protocol).refresh()
    assert site.told() == STORED
    assert len(segs_of(pacs)) == 1


def test_a_label_whose_reply_was_lost_is_there_once(site, pacs):
    site.submit()
    site.datastore.publish_label(site.uid)
    site.store.ledger.set_publication(site.store.label(site.uid, "final").id, "pending")
    assert Publisher(site.store, site.studies, site.protocol).publish(site.uid) == STORED
    assert len(segs_of(pacs)) == 1


def test_each_version_that_a_person_approves_is_an_instance_of_its_own(site, pacs):
    site.submit()
    site.datastore.publish_label(site.uid)
    first = site.store.label(site.uid, "final")
    site.submit(user="ben")
    site.datastore.publish_label(site.uid)
    restored = site.store.restore_label(first, user="cleo")
    assert restored.info["pacs"] == PENDING
    site.datastore.publish_label(site.uid)
    assert sorted(str(seg.ContentCreatorName) for seg in segs_of(pacs)) == ["anna^", "ben^", "cleo^"]


def test_a_machines_label_never_goes_there(site, pacs):
    image = site.store.read_image(site.uid)
    label_map = np.ones(image.array.shape, np.uint8)
    for tag in ("original", "corrected"):
        site.store.save_label_map(site.uid, label_map, tag=tag, maker="sam:lite", affine=image.affine)
    site.datastore.refresh()
    assert site.datastore.publish_label(site.uid) == {}
    assert segs_of(pacs) == []


@pytest.mark.parametrize("tag", ["version_1", "original"])
def test_a_submit_of_another_tag_has_nothing_to_send(site, pacs, tag):
    site.submit(tag)
    assert site.datastore.publish_label(site.uid) == {}
    assert segs_of(pacs) == []


def test_a_label_that_began_as_a_machines_says_so(site, pacs):
    image = site.store.read_image(site.uid)
    label_map = np.ones(image.array.shape, np.uint8)
    site.store.save_label_map(
        site.uid, label_map, tag="original", maker="sam:lite", model_digest="79d8c9dc00", affine=image.affine
    )
    for user in ("anna", "ben"):  # the second one began with the first one's
        site.submit(user=user)
        site.datastore.publish_label(site.uid)
    for seg in segs_of(pacs):
        assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
        (algorithm,) = seg.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("sam:lite", "79d8c9dc00")


def test_names_of_a_viewer_serve_where_there_is_no_protocol(site, pacs):
    site.datastore = LedgerDatastore(site.store, None)
    site.submit(label_info=[{"name": "background", "idx": 0}, {"name": "cyst", "idx": 1}, {"name": "tumour", "idx": 2}])
    assert site.datastore.publish_label(site.uid) == {"pacs": STORED}
    assert [item.SegmentLabel for item in segs_of(pacs)[0].SegmentSequence] == ["cyst", "tumour"]


def test_what_waits_is_sent_until_the_time_is_up(site, pacs, monkeypatch):
    for _ in range(3):
        site.submit()
    newest = site.store.label(site.uid, "final")
    monkeypatch.setattr(publishing, "RETRY_BUDGET_S", 0)
    assert site.datastore.publish_label(site.uid) == {"pacs": STORED}
    assert site.store.ledger.count_publications() == {"pending": 2, "stored": 1}
    assert site.store.ledger.label_version(newest.id).info["pacs"] == STORED  # the one that somebody waits for
    monkeypatch.undo()
    site.datastore.refresh()
    assert site.store.ledger.count_publications() == {"stored": 3}
    assert len(segs_of(pacs)) == 3


def test_a_label_that_the_pacs_never_takes_holds_up_no_other_one(site, pacs, monkeypatch):
    for _ in range(3):
        site.submit()
    poison = site.store.ledger.pending_publications()[0]
    store = site.studies.store

    def refuse_poison(seg):
        if str(seg.ContentCreatorName) == "anna^":
            raise StoreError("HTTP 409")
        store(seg)

    monkeypatch.setattr(site.studies, "store", refuse_poison)
    site.submit(user="ben")
    assert site.datastore.publish_label(site.uid) == {"pacs": STORED}  # and then fails at the first of anna's
    monkeypatch.setattr(site.studies, "store", store)
    monkeypatch.setattr(publishing, "RETRY_BUDGET_S", 0)
    site.datastore.refresh()
    assert poison in site.store.ledger.pending_publications()  # another one was first this time
    assert site.store.ledger.count_publications() == {"pending": 2, "stored": 2}


def test_a_label_that_was_rejected_while_it_waited_is_never_sent(site, pacs):
    site.submit()
    site.submit(user="ben")
    first, second = site.store.ledger.versions(site.uid)
    site.store.ledger.reject(site.uid, second.id, reviewer="chief", reason="wrong side")
    assert site.store.ledger.pending_publications() == [first.id]
    assert site.datastore.publish_label(site.uid) == {"pacs": STORED}  # anna's is the approved one again
    site.store.ledger.reject(site.uid, first.id, reviewer="chief", reason="wrong side")
    assert site.datastore.publish_label(site.uid) == {}
    site.datastore.refresh()
    assert [str(seg.ContentCreatorName) for seg in segs_of(pacs)] == ["anna^"]
    assert site.store.ledger.count_publications() == {}


def test_a_label_that_is_rejected_while_its_seg_is_made_is_not_sent(site, pacs, monkeypatch):
    site.submit()
    headers = site.studies.headers
    label = site.store.label(site.uid, "final")

    def reject_meanwhile(image_id):
        site.store.ledger.reject(site.uid, label.id, reviewer="chief", reason="wrong side")
        return headers(image_id)

    monkeypatch.setattr(site.studies, "headers", reject_meanwhile)
    assert site.datastore.publish_label(site.uid) == {"pacs": {"state": "refused", "reason": "rejected"}}
    assert segs_of(pacs) == []


def test_what_was_approved_elsewhere_is_sent_by_a_server_that_runs(site, pacs):
    site.submit()
    site.datastore.publish_label(site.uid)
    site.datastore.refresh()
    elsewhere = LabelStore(open_studies(pacs, site.state_dir)[0], site.state_dir)  # a command, or a second server
    elsewhere.restore_label(elsewhere.label(site.uid, "final"), user="cleo")
    elsewhere.ledger.close()
    site.datastore.refresh()
    assert site.told() == STORED
    assert sorted(str(seg.ContentCreatorName) for seg in segs_of(pacs)) == ["anna^", "cleo^"]


def test_what_the_reviewer_of_slicer_approves_is_sent_at_once(site, pacs):
    site.submit("original")
    meta = {"status": "", "approvedBy": "", "comment": "look at the apex"}
    site.datastore.update_label_info(site.uid, "original", {"segmentationMeta": meta})
    assert segs_of(pacs) == []
    meta |= {"status": "approved", "approvedBy": "ben"}
    site.datastore.update_label_info(site.uid, "original", {"segmentationMeta": meta})
    assert site.told() == STORED
    assert [str(seg.ContentCreatorName) for seg in segs_of(pacs)] == ["ben^"]


def test_what_dicom_cannot_hold_is_kept_and_not_sent_again(site, pacs, make_series):
    grown = make_series(
        np.zeros((4, 10, 12), np.uint16), STRAIGHT, SeriesInstanceUID=site.uid, StudyInstanceUID="1.2.3"
    )
    site.submit()
    for instance in grown[3:]:
        instance.StudyInstanceUID = DICOMwebClient(pacs).search_for_series()[0]["0020000D"]["Value"][0]
        instance.FrameOfReferenceUID = "1.2.3.4"
    stow(pacs, grown[3:])
    (told,) = site.datastore.publish_label(site.uid).values()
    assert told["state"] == "refused"
    assert "the series was changed in the PACS" in told["reason"]
    assert site.store.ledger.pending_publications() == []
    assert site.store.label(site.uid, "final").maker == "user:anna"


def test_a_backup_knows_the_same_patients(site, tmp_path):
    write_backup(site.store, tmp_path / "backup.tar")
    restore_backup(tmp_path / "backup.tar", tmp_path / "restored")
    studies, _ = open_studies(site.studies.location, tmp_path / "restored")
    assert studies.scan() == site.studies.scan()


def test_a_folder_has_no_pacs(make_studies, tmp_path):
    studies, state_dir = open_studies(make_studies("a.png"), tmp_path / "state")
    store = LabelStore(studies, state_dir)
    assert LedgerDatastore(store, None).publish_label("a") == {}
    store.ledger.close()
