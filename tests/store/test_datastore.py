from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from PIL import Image

from samcorrect.lib.errors import (
    GeometryError,
    ImageError,
    LabelError,
    RequestError,
    UnknownImageError,
    UnknownLabelError,
)
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store import dicomweb
from samcorrect.lib.store.datastore import LedgerDatastore, check_tag
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.records.base import MAX_NOTES_BYTES
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import read_label_map

SHAPE = (16, 12, 1)
PNG_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
BOX = {"source": "box", "xyxy": (0.1, 0.1, 0.9, 0.9)}
PROTOCOL = Protocol(
    structures=[{"name": "lung", "index": 1, "prompt": BOX}, {"name": "heart", "index": 3, "prompt": BOX}]
)


@pytest.fixture
def store(make_studies):
    return LabelStore(*open_studies(make_studies("a.png", "ward/b.png"), None))


@pytest.fixture
def datastore(store):
    return LedgerDatastore(store, PROTOCOL)


@pytest.fixture
def submitted(tmp_path):
    """A submit of Slicer: the heart is its first segment, and it wrote the axes the other way round."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:5, 3:9] = 1
    path = tmp_path / "deep" / "submitted.nii.gz"
    path.parent.mkdir()
    flipped = PNG_AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(label[::-1], flipped), path)
    return path


INFO = {"label_info": [{"name": "heart", "idx": 1}, {"name": "lung", "idx": 2}], "client_id": "dr-who"}


def machine_label(store, image_id="a", tag="original", value=3):
    label = np.zeros(SHAPE, np.uint8)
    label[:4, :4] = value
    return store.save_label_map(image_id, label, tag=tag, maker="sam:test", affine=PNG_AFFINE)


def names_in_json(datastore, image_id):
    return datastore.json()["objects"][image_id]["labels"]["original"]["info"]["params"]["label_names"]


def test_json_names_what_is_in_the_best_label(datastore, store, submitted):
    objects = datastore.json()["objects"]
    assert {image_id: told["labels"] for image_id, told in objects.items()} == {"a": {}, "ward/b": {}}
    # Under this name the Reviewer keeps the image that it downloads, all in one folder.
    assert objects["ward/b"]["image"]["info"]["name"] == "ward_b.png"
    machine_label(store, value=1)
    assert names_in_json(datastore, "a") == {"lung": 1}
    machine_label(store, tag="corrected", value=3)
    assert names_in_json(datastore, "a") == {"heart": 3}
    datastore.save_label("a", str(submitted), "final", {"label_info": [{"name": "lung", "idx": 1}]})
    assert names_in_json(datastore, "a") == {"lung": 1}


def test_a_pacs_that_is_down_for_long_leaves_the_images_that_are_known(
    orthanc, make_series, tmp_path, monkeypatch, caplog
):
    def stow(url):
        instances = make_series(np.zeros((3, 10, 12), np.uint16), np.diag([-1.0, -1.0, 3.0, 1.0]))
        DICOMwebClient(url).store_instances(instances)
        return instances[0].SeriesInstanceUID

    with orthanc() as url:
        first = stow(url)
        store = LabelStore(*open_studies(url, tmp_path / "state"))
    datastore = LedgerDatastore(store, PROTOCOL)
    monkeypatch.setattr(dicomweb, "MAX_SCAN_AGE_S", 0)  # the last scan is older
    scans, scan = [], store.studies.scan
    monkeypatch.setattr(store.studies, "scan", lambda: scans.append(1) or scan())
    for _ in range(2):
        assert datastore.list_images() == list(datastore.json()["objects"]) == [first]
        assert datastore.status()["total"] == 1
    assert len(scans) == 1  # within RETRY_S
    datastore._next_check_at = 0.0
    assert datastore.list_images() == [first]
    assert len(scans) == 2
    assert caplog.text.count("the list of images is old") == 1
    with orthanc():
        second = stow(url)
        datastore._next_check_at = 0.0
        assert datastore.list_images() == sorted([first, second])
    datastore._next_check_at = 0.0
    datastore.list_images()
    assert caplog.text.count("the list of images is old") == 2
    store.ledger.close()


def test_the_list_follows_what_comes_and_goes(datastore, store):
    assert list(datastore.json()["objects"]) == ["a", "ward/b"]
    machine_label(store, value=1)
    store.ledger.quarantine("ward/b", "unreadable")
    assert list(datastore.json()["objects"]) == ["a"]
    assert names_in_json(datastore, "a") == {"lung": 1}
    store.ledger.release_from_quarantine()
    assert set(datastore.json()["objects"]) == {"a", "ward/b"}
    assert datastore.json_bytes() is datastore.json_bytes(), "nothing has changed in between"


def test_original_hands_out_the_best_label_on_the_grid(datastore, store, submitted):
    machine_label(store)
    datastore.save_label("a", str(submitted), "final", INFO)
    best = read_label_map(_path(datastore, "a", "original"))
    assert np.allclose(best.affine, PNG_AFFINE)
    assert np.unique(best.array[2:5, 3:9]).tolist() == [3]
    assert (best.array > 0).sum() == 18
    assert datastore.get_label_info("a", "original")["params"]["label_names"] == {"heart": 3}


def test_final_comes_back_byte_for_byte_with_its_submitter(datastore, store, submitted):
    assert datastore.save_label("a", str(submitted), "final", INFO) == "a"
    assert _path(datastore, "a", "final").read_bytes() == submitted.read_bytes()
    assert datastore.get_label_info("a", "final")["maker"] == "user:dr-who"
    row = store.label("a", "final")
    assert row.info["label_info"] == INFO["label_info"]
    assert row.info["value_to_index"] == {"1": 3}
    assert datastore.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
    assert datastore.get_labeled_images() == ["a"]
    assert datastore.get_unlabeled_images() == ["ward/b"]
    assert datastore.datalist()[0]["image"].endswith("a.png")


def test_the_names_of_a_label_are_those_of_the_values_in_its_file(datastore, store, submitted):
    def told(tag):
        values = set(np.unique(read_label_map(_path(datastore, "a", tag)).array).tolist()) - {0}
        return values, datastore.get_label_info("a", tag)["params"]["label_names"]

    machine_label(store)
    datastore.save_label("a", str(submitted), "final", INFO)
    datastore.save_label("a", str(submitted), "draft", {"label_info": [{"name": "lung", "idx": 1}]})
    datastore.save_label("ward/b", str(submitted), "final", {})  # without names, so in the protocol's numbering
    assert told("original") == ({3}, {"heart": 3})
    assert told("final") == ({1}, {"heart": 1})
    assert told("draft") == ({1}, {"lung": 1})
    assert datastore.get_label_info("ward/b", "final")["params"]["label_names"] == {"lung": 1}
    store.approve_label(store.label("a", "original"), user="anna", expected_best=store.label("a", "final").id)
    assert told("final") == ({3}, {"heart": 3})


def test_every_submit_is_a_version_of_its_own(datastore, store, submitted, tmp_path):
    datastore.save_label("a", str(submitted), "final", INFO)
    first = _path(datastore, "a", "final")
    second = tmp_path / "deep" / "second.nii.gz"
    nib.save(nib.Nifti1Image(np.full(SHAPE, 3, np.uint8), PNG_AFFINE), second)
    datastore.save_label("a", str(second), "final", {})
    assert first.read_bytes() == submitted.read_bytes()
    assert _path(datastore, "a", "final").read_bytes() == second.read_bytes()


def test_notes_of_a_viewer_cannot_change_provenance(datastore, store, submitted):
    datastore.save_label("a", str(submitted), "final", INFO)
    datastore.update_label_info("a", "final", {"value_to_index": {"1": 1}, "status": "approved"})
    assert store.label("a", "final").info["value_to_index"] == {"1": 3}
    assert datastore.get_label_info("a", "final")["viewer"]["status"] == "approved"


def test_image_notes_are_merged(datastore):
    datastore.update_image_info("a", {"strategy": {"random": 1}})
    datastore.update_image_info("a", {"seen": True})
    assert datastore.get_image_info("a") == {"strategy": {"random": 1}, "seen": True}


def test_a_new_file_is_seen_without_a_restart(datastore, store):
    (store.studies.folder / "ward" / "deep").mkdir()
    assert datastore.list_images() == ["a", "ward/b"]
    Image.new("L", (16, 12)).save(store.studies.folder / "ward" / "deep" / "c.png")
    assert datastore.list_images() == ["a", "ward/b", "ward/deep/c"]


def test_an_upload_becomes_an_image(datastore, store, tmp_path):
    upload = tmp_path / "x.png"
    Image.new("L", (16, 12), 7).save(upload)
    assert datastore.add_image("ward/new", str(upload), {"client_id": "me"}) == "ward/new"
    assert (store.studies.folder / "ward" / "new.png").read_bytes() == upload.read_bytes()
    assert "ward/new" in datastore.list_images()


@pytest.mark.parametrize(
    ("image_id", "error", "says"),
    [
        ("a", RequestError, "never overwritten"),
        ("../a", RequestError, "not an image id"),
        ("labels/a", RequestError, "host's own"),
        ("new", ImageError, "cannot be read"),
    ],
)
def test_bad_uploads_are_refused(datastore, store, tmp_path, image_id, error, says):
    upload = tmp_path / "deep" / "x.png"
    upload.parent.mkdir()
    upload.write_text("not a picture")
    before = sorted(store.studies.folder.rglob("*.png"))
    with pytest.raises(error, match=says):
        datastore.add_image(image_id, str(upload), {})
    assert sorted(store.studies.folder.rglob("*.png")) == before


def test_an_upload_with_the_id_of_an_image_whose_suffix_is_in_capitals_is_refused(datastore, store, tmp_path):
    upload, image = tmp_path / "x.png", store.studies.folder / "scan.PNG"
    for path in (upload, image):
        Image.new("L", (16, 12), 7).save(path, format="PNG")
    with pytest.raises(RequestError, match="never overwritten"):
        datastore.add_image("scan", str(upload), {})
    assert store.find_image("scan").path == "scan.PNG"


def test_nothing_is_deleted(datastore, store):
    machine_label(store)
    for refuse in (lambda: datastore.remove_label("a", "original"), lambda: datastore.remove_image("a")):
        with pytest.raises(RequestError, match="is not deleted"):
            refuse()
    with pytest.raises(RequestError, match="samcorrect export"):
        datastore.get_dataset_archive()
    assert _path(datastore, "a", "original").is_file()


def test_unknown_images_and_labels_are_named(datastore):
    for call in (datastore.get_image_uri, datastore.get_image_info, datastore.get_labels_by_image_id):
        with pytest.raises(UnknownImageError, match="nobody"):
            call("nobody")
    with pytest.raises(UnknownLabelError, match="a has no label yet"):
        datastore.get_label_uri("a", "original")
    with pytest.raises(UnknownLabelError, match="final"):
        datastore.get_label_uri("a", "final")


def test_a_file_refused_by_its_name_is_not_handed_out(make_studies, tmp_path):
    studies = make_studies("a.png")
    outside = tmp_path / "outside.png"
    Image.new("L", (16, 12)).save(outside)
    (studies / "link.png").symlink_to(outside)
    datastore = LedgerDatastore(LabelStore(*open_studies(studies, None)), None)
    assert datastore.list_images() == ["a"]
    with pytest.raises(ImageError, match="leaves the studies folder"):
        datastore.get_image_uri("link.png")


def test_a_label_of_another_grid_is_refused(datastore, store, tmp_path):
    path = tmp_path / "deep" / "label.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(np.full((15, 12, 1), 3, np.uint8), PNG_AFFINE), path)
    with pytest.raises(GeometryError, match="grid"):
        datastore.save_label("a", str(path), "final", {})
    assert store.ledger.latest_labels() == {}


def test_a_label_is_not_handed_out_for_another_image_under_its_name(datastore, store, submitted):
    datastore.save_label("a", str(submitted), "final", INFO)
    machine_label(store, "ward/b")
    as_submitted = datastore.get_label_uri("a", "final")
    for image_id in ("a", "ward/b"):
        datastore.get_label_uri(image_id, "original")  # kept in the cache from now on
        Image.new("L", SHAPE[:2], 7).save(store.studies.folder / f"{image_id}.png")
        with pytest.raises(LabelError, match="made on another image"):
            datastore.get_label_uri(image_id, "original")
    assert datastore.get_label_uri("a", "final") == as_submitted


def test_params_that_are_no_object_are_refused(datastore, submitted):
    with pytest.raises(RequestError, match="`params` is a JSON object"):
        datastore.save_label("a", str(submitted), "final", ["x"])


def test_an_unknown_name_is_refused(datastore, submitted):
    with pytest.raises(LabelError, match="spleen"):
        datastore.save_label("a", str(submitted), "final", {"label_info": [{"name": "spleen", "idx": 1}]})


@pytest.mark.parametrize("tag", ["final", "attending_2", "a" * 32])
def test_good_tags(tag):
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "Final", "../evil", "a" * 33, "1st", "a b", "a\n", None])
def test_bad_tags(tag):
    with pytest.raises(RequestError, match="is not a tag"):
        check_tag(tag)


def _path(datastore, image_id, tag):
    return Path(datastore.get_label_uri(image_id, tag))


def test_notes_do_not_grow_without_end(datastore, store, submitted):
    note = {"a": "x" * (MAX_NOTES_BYTES - 20)}
    datastore.update_image_info("a", note)
    with pytest.raises(RequestError, match="65536 are the limit"):
        datastore.update_image_info("a", {"b": "x" * 20})
    assert datastore.get_image_info("a") == note
    datastore.save_label("a", str(submitted), "final", INFO)
    with pytest.raises(RequestError, match="65536 are the limit"):
        datastore.update_label_info("a", "final", {"a": "x" * MAX_NOTES_BYTES})


def test_an_image_with_notes_that_are_too_long_is_not_taken(datastore, store, submitted):
    upload = store.studies.folder.parent / "new.png"
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(upload)
    with pytest.raises(RequestError, match="65536 are the limit"):
        datastore.add_image("new", str(upload), {"a": "x" * MAX_NOTES_BYTES})
    assert not (store.studies.folder / "new.png").exists()
