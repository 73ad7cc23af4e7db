"""The label store: versions, their files and what may be submitted."""

import errno
import hashlib
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.errors import (
    GeometryError,
    ImageError,
    LabelError,
    StoreError,
    UnknownImageError,
    UnknownLabelError,
)
from samcorrect.lib.store import labels
from samcorrect.lib.store.labels import LabelStore, renumber
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

SHAPE = (16, 12, 1)  # of the PNG images of make_studies: 16 columns, 12 rows


@pytest.fixture
def store(make_studies):
    store = LabelStore(*open_studies(make_studies("a.png", "sub/b 1.png"), None))
    yield store
    store.ledger.close()


def square(value: int = 1, start: int = 3) -> np.ndarray:
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[start : start + 4, 2:6] = value
    return label_map


def save(store: LabelStore, image_id: str = "a", tag: str = "original", label_map: np.ndarray | None = None):
    label_map = square() if label_map is None else label_map
    return store.save_label_map(image_id, label_map, tag=tag, maker="sam:test", affine=LPS_TO_RAS)


def image_hash(store: LabelStore) -> str:
    return hashlib.sha256((store.studies.folder / "a.png").read_bytes()).hexdigest()


def label_files(store: LabelStore) -> list[Path]:
    return sorted(path for path in (store.state_dir / "labels").rglob("*") if path.is_file())


def test_a_label_of_a_model_is_a_file_named_by_its_content_and_a_row(store):
    row = save(store, "sub/b 1")
    content = store.label_path(row).read_bytes()
    assert row.content_sha256 == hashlib.sha256(content).hexdigest()
    assert row.path == f"labels/sub/b 1/{row.content_sha256[:16]}.nii.gz"
    assert (row.tag, row.maker, row.parent_id) == ("original", "sam:test", None)
    assert store.label("sub/b 1", "original").id == row.id
    assert np.array_equal(store.read_label(row), square())
    assert np.array_equal(store.read_label(row, store.read_image("sub/b 1")), square())


def test_what_made_a_label_is_kept_with_it(store):
    parent = save(store)
    row = store.save_label_map(
        "a",
        square(2),
        tag="corrected",
        maker="correction:samcorrect",
        affine=LPS_TO_RAS,
        round_number=2,
        model_digest="d" * 64,
        prompts={"boxes": [[0, 4]]},
        parent_id=parent.id,
        info={"reasons": ["boundary"]},
    )
    seen = store.label("a", "corrected")
    assert (seen.id, seen.round, seen.model_digest, seen.parent_id) == (row.id, 2, "d" * 64, parent.id)
    assert seen.prompts == {"boxes": [[0, 4]]}
    assert seen.info == {"reasons": ["boundary"], "present_indices": [2], "image_sha256": image_hash(store)}


def test_the_same_content_twice_is_two_versions_of_one_file(store):
    first, second = save(store), save(store)
    assert first.id != second.id
    assert first.path == second.path
    assert len(label_files(store)) == 1
    save(store, label_map=square(start=4))
    assert len(label_files(store)) == 2
    assert np.array_equal(store.read_label(first), square())


def test_the_same_content_for_two_images_is_two_files(store):
    assert save(store).path != save(store, "sub/b 1").path
    assert len(label_files(store)) == 2


def test_an_id_that_is_a_folder_of_another_id_does_not_mix_with_it(make_studies):
    store = LabelStore(*open_studies(make_studies("a.png", "a/b.png"), None))
    rows = [save(store, "a", label_map=square(1)), save(store, "a/b", label_map=square(2))]
    assert [store.read_label(row).max() for row in rows] == [1, 2]


@pytest.mark.parametrize("tag", ["final", "Final", "original2", ""])
def test_a_model_cannot_write_final_or_an_unknown_tag(store, tag):
    with pytest.raises(
        LabelError, match=r"a model may write the tags original, corrected; got '.*' \(final is a person's\)"
    ):
        save(store, tag=tag)
    assert store.ledger.latest_labels() == {}
    assert not store.ledger.image("a").is_approved
    assert not (store.state_dir / "labels").exists()


@pytest.mark.parametrize("image_id", ["gone", "../../evil", "/tmp/evil", "a/../../../evil"])
def test_a_label_of_an_unknown_image_writes_nothing(store, tmp_path, image_id):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnknownImageError, match="no image"):
        save(store, image_id)
    write_label_map(tmp_path / "label.nii.gz", square(), LPS_TO_RAS)
    with pytest.raises(UnknownImageError, match="no image"):
        store.submit_label(image_id, tmp_path / "label.nii.gz", tag="final", user="ann")
    (tmp_path / "label.nii.gz").unlink()
    assert sorted(tmp_path.rglob("*")) == before


# Submitted files


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".png"])
def test_a_submitted_file_is_kept_byte_for_byte(store, tmp_path, suffix):
    machine = save(store)
    path = tmp_path / f"mask{suffix}"
    if suffix == ".png":
        Image.fromarray(square(3)[..., 0].T).save(path)
    else:
        write_label_map(path, square(3), LPS_TO_RAS)
    content = path.read_bytes()
    row = store.submit_label("a", path, tag="final", user="ann")
    assert path.read_bytes() == content
    assert store.label_path(row).read_bytes() == content
    assert store.label_path(row).name.endswith(suffix)
    assert (row.tag, row.maker, row.parent_id) == ("final", "user:ann", machine.id)
    assert row.info == {"present_indices": [3], "image_sha256": image_hash(store)}
    assert np.array_equal(store.read_label(row), square(3))
    assert store.ledger.image("a").is_approved


def test_a_submit_that_is_not_final_does_not_approve(store, tmp_path):
    write_label_map(tmp_path / "mask.nrrd", square(), LPS_TO_RAS)
    store.submit_label("a", tmp_path / "mask.nrrd", tag="original", user="import")
    assert not store.ledger.image("a").is_approved


def test_a_submitted_file_in_another_storage_order_is_read_on_the_grid_of_the_image(store, tmp_path):
    turned = LPS_TO_RAS.copy()  # x reversed: voxel 0 lies where the image has its voxel 15
    turned[0] = [1, 0, 0, -15]
    write_label_map(tmp_path / "mask.nii.gz", square()[::-1], turned)
    row = store.submit_label("a", tmp_path / "mask.nii.gz", tag="final", user="ann")
    assert np.array_equal(store.read_label(row), square())


def test_the_numbers_of_a_viewer_are_read_as_those_of_the_protocol(store, tmp_path):
    label_map = square(1) + square(2, start=8)
    write_label_map(tmp_path / "mask.nrrd", label_map, LPS_TO_RAS)
    info = {"label_info": [{"name": "heart", "idx": 1}], "value_to_index": {"1": 7}}
    row = store.submit_label("a", tmp_path / "mask.nrrd", tag="final", user="ann", info=info)
    assert np.array_equal(store.read_label(row), square(7))  # the value 2 is named nothing
    assert row.info == {**info, "present_indices": [7], "image_sha256": image_hash(store)}
    assert info.keys() == {"label_info", "value_to_index"}


def test_renumbering_swaps_without_overwriting():
    label_map = np.array([[[0, 1, 2, 3]]], np.uint8)
    assert renumber(label_map, {1: 2, 2: 1}).tolist() == [[[0, 2, 1, 0]]]
    assert renumber(label_map, {}).tolist() == [[[0, 0, 0, 0]]]
    assert label_map.tolist() == [[[0, 1, 2, 3]]]


def test_a_label_on_another_grid_is_refused_and_leaves_nothing(store, tmp_path):
    path = tmp_path / "mask.nii.gz"
    write_label_map(path, np.zeros((12, 16, 1), np.uint8), LPS_TO_RAS)
    with pytest.raises(
        GeometryError, match=r"the label for a is not on its image's grid.*\(12, 16, 1\).*\(16, 12, 1\)"
    ):
        store.submit_label("a", path, tag="final", user="ann")
    assert store.ledger.best_label("a") is None
    assert not store.ledger.image("a").is_approved
    assert not (store.state_dir / "labels").exists()


def test_a_file_that_is_no_label_map_is_refused(store, tmp_path):
    (tmp_path / "mask.nii.gz").write_bytes(b"hello")
    with pytest.raises(LabelError, match=r"mask\.nii\.gz: cannot be read"):
        store.submit_label("a", tmp_path / "mask.nii.gz", tag="final", user="ann")
    nib.save(nib.Nifti1Image(np.full(SHAPE, 0.5, np.float32), LPS_TO_RAS), tmp_path / "mask.nii.gz")
    with pytest.raises(LabelError, match=r"whole numbers from 0 to 255; this one holds 0\.5"):
        store.submit_label("a", tmp_path / "mask.nii.gz", tag="final", user="ann")
    assert not store.ledger.image("a").is_approved


# Files that change under the store


def test_a_stored_file_that_was_changed_is_found_out(store):
    row = save(store)
    path = store.label_path(row)
    good = path.read_bytes()
    write_label_map(path, square(2), LPS_TO_RAS)  # a valid label, but not the one of the ledger
    with pytest.raises(StoreError, match=r"stored label labels/a/.* was changed on the disk"):
        store.read_label(row)
    path.write_bytes(good)
    assert np.array_equal(store.read_label(row), square())


def test_a_stored_file_that_was_damaged_is_written_anew_by_the_same_content_and_a_whole_one_is_not(store, tmp_path):
    path = tmp_path / "mask.nii.gz"
    write_label_map(path, square(), LPS_TO_RAS)
    row = store.submit_label("a", path, tag="final", user="ann")
    stored = store.label_path(row)
    stored.write_bytes(path.read_bytes()[:50])
    store.submit_label("a", path, tag="final", user="ann")
    assert stored.read_bytes() == path.read_bytes()
    assert np.array_equal(store.read_label(row), square())
    written = stored.stat()
    store.submit_label("a", path, tag="final", user="ann")
    assert (stored.stat().st_ino, stored.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_of_two_contents_whose_hashes_begin_alike_the_second_does_not_replace_the_first(store, monkeypatch):
    monkeypatch.setattr(labels, "NAME_DIGITS", 0)
    first = save(store)
    with pytest.raises(StoreError, match="was changed on the disk"):
        save(store, label_map=square(2))
    assert np.array_equal(store.read_label(first), square())


def test_a_stored_file_that_is_gone_is_a_store_error_and_is_written_anew_by_the_same_content(store):
    row = save(store)
    store.label_path(row).unlink()
    with pytest.raises(StoreError, match="is gone from"):
        store.read_label(row)
    save(store)
    assert np.array_equal(store.read_label(row), square())


def test_a_label_is_not_taken_for_that_of_another_image_until_its_own_is_back(store, tmp_path):
    write_label_map(tmp_path / "label.nii.gz", square(), LPS_TO_RAS)
    row = store.submit_label("a", tmp_path / "label.nii.gz", tag="final", user="anna")
    image = store.studies.folder / "a.png"
    content = image.read_bytes()
    image.unlink()
    store.rescan()
    Image.new("L", SHAPE[:2], 9).save(image)
    store.rescan()
    uses = (
        lambda: store.read_label(row),
        lambda: store.restore_label(row, user="bob"),
        lambda: store.approve_label(row, user="bob"),
    )
    for use in uses:
        with pytest.raises(LabelError, match="version 1 of the label of a was made on another image"):
            use()
    drawn_anew = store.submit_label("a", tmp_path / "label.nii.gz", tag="final", user="bob")
    np.testing.assert_array_equal(store.read_label(drawn_anew), square())
    image.write_bytes(content)
    np.testing.assert_array_equal(store.read_label(row), square())
    assert store.label_path(row).read_bytes() == (tmp_path / "label.nii.gz").read_bytes()


def test_a_label_of_which_nobody_noted_the_image_stays_valid(store):
    row = store.ledger.add_copy(save(store), info={"present_indices": [1]})
    Image.new("L", SHAPE[:2], 9).save(store.studies.folder / "a.png")
    np.testing.assert_array_equal(store.read_label(row), square())


def test_a_value_beyond_a_byte_is_refused_before_it_wraps(store):
    with pytest.raises(LabelError, match="whole numbers from 0 to 255; this one holds 256"):
        save(store, label_map=square().astype(np.int32) * 256)
    assert store.ledger.best_label("a") is None


# Opening


def test_an_image_or_label_that_is_not_there_is_named(store):
    with pytest.raises(UnknownImageError, match="no image 'gone'"):
        store.read_image("gone")
    with pytest.raises(UnknownLabelError, match="a has no label with the tag 'final'"):
        store.label("a", "final")
    with pytest.raises(UnknownImageError, match="no image 'gone'"):
        store.label("gone", "final")


def test_a_bad_image_names_its_file_and_the_others_are_read(store):
    (store.studies.folder / "a.png").write_bytes(b"text")
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as png"):
        store.read_image("a")
    assert store.read_image("sub/b 1").array.shape == SHAPE


def test_a_state_folder_within_the_studies_does_not_become_images(make_studies):
    studies = make_studies("a.png")
    store = LabelStore(*open_studies(studies, studies / "state"))
    save(store)
    store.rescan()
    assert [row.id for row in store.require_images()] == ["a"]
    assert store.ledger.quarantined() == []


def test_a_store_opened_by_a_relative_path_works_from_another_folder(make_studies, tmp_path, monkeypatch):
    studies = make_studies("a.png")
    monkeypatch.chdir(studies.parent)
    store = LabelStore(*open_studies("studies", Path("state")))
    row = save(store)
    monkeypatch.chdir("/")
    assert np.array_equal(store.read_label(row), square())
    assert (tmp_path / "state" / row.path).is_file()


def test_a_rescan_finds_new_images_and_labels_outlive_a_reopening(store):
    row = save(store)
    os.link(store.studies.folder / "a.png", store.studies.folder / "c.png")
    assert [image.id for image in store.require_images()] == ["a", "sub/b 1"]
    store.rescan()
    assert [image.id for image in store.require_images()] == ["a", "c", "sub/b 1"]
    again = LabelStore(*open_studies(store.studies.location, None))
    assert again.label("a", "original").id == row.id
    assert np.array_equal(again.read_label(row), square())


def test_an_image_with_the_longest_name_that_a_file_can_have_takes_labels(make_studies):
    name = "x" * 251
    store = LabelStore(*open_studies(make_studies(f"{name}.png"), None))
    assert np.array_equal(store.read_label(save(store, name)), square())


def test_what_a_run_ends_with_becomes_the_best_label_again_unless_a_person_has_spoken(store):
    first = save(store)
    corrected = save(store, tag="corrected", label_map=square(start=5))
    assert store.make_best(corrected).id == corrected.id
    entered = store.make_best(first)
    assert entered.id > corrected.id
    assert (entered.path, entered.tag, entered.parent_id) == (first.path, "original", first.id)
    assert store.ledger.best_label("a").id == entered.id
    assert store.make_best(first).id == entered.id
    path = store.state_dir / "submitted.nii.gz"
    write_label_map(path, square(2), LPS_TO_RAS)
    final = store.submit_label("a", path, tag="final", user="ann")
    assert store.make_best(corrected).id == corrected.id
    assert store.ledger.best_label("a").id == final.id


def test_who_may_not_sweep_reads_all_the_same(make_studies, monkeypatch):
    studies = make_studies("a.png")
    left = LabelStore(*open_studies(studies, None)).state_dir / "scratch" / "old.tmp"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (1, 1))

    def refuse(path, **_options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert LabelStore(*open_studies(studies, None)).ledger.image_ids() == ["a"]


def test_what_a_killed_process_left_half_written_is_swept_away_once_it_is_old(make_studies):
    studies = make_studies("a.png")
    store = LabelStore(*open_studies(studies, None))
    save(store)
    scratch = store.state_dir / "scratch"
    assert list(scratch.iterdir()) == []
    for name in ("old", "new"):
        (scratch / f"{name}-folder").mkdir()
        (scratch / f"{name}.tmp").write_bytes(b"half")
    for path in scratch.glob("old*"):
        os.utime(path, (1, 1))
    LabelStore(*open_studies(studies, None))
    assert sorted(path.name for path in scratch.iterdir()) == ["new-folder", "new.tmp"]
