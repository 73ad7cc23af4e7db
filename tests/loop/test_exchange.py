"""Labels in and out."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.errors import LabelError, RequestError, StoreError
from samcorrect.lib.loop.exchange import export_labels, import_labels
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.store.volumes import LPS_TO_RAS, read_label_map


def test_masks_become_labels_byte_for_byte_and_faults_are_told(phantom_workspace, phantoms, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("case0.png", "case1.png"):
        (folder / name).write_bytes((phantoms.labels / name).read_bytes())
    Image.fromarray(np.zeros((96, 80), np.uint8)).save(folder / "case2.png")  # lies on its side
    Image.fromarray(np.full((80, 96), 255, np.uint8)).save(folder / "case3.png")  # no structure has the index 255
    (folder / "stranger.png").write_bytes((phantoms.labels / "case0.png").read_bytes())
    workspace = phantom_workspace()
    told = import_labels(workspace, folder)
    assert told["n_imported"] == 2
    assert told["unmatched"] == ["stranger.png"]
    refused = dict(told["refused"])
    assert sorted(refused) == ["case2.png", "case3.png"]
    assert "is not on its image's grid" in refused["case2.png"]
    assert "the label holds the values [255]" in refused["case3.png"]
    row = workspace.store.label("case0", "original")
    assert workspace.store.label_path(row).read_bytes() == (folder / "case0.png").read_bytes()
    assert (row.maker, row.info["imported_from"]) == ("user:import", "case0.png")
    assert not workspace.store.ledger.image("case0").is_approved


def test_masks_that_a_person_vouches_for_are_approved(phantom_workspace, phantoms):
    workspace = phantom_workspace()
    assert import_labels(workspace, phantoms.labels, approved_by="Dr A")["n_imported"] == 10
    row = workspace.store.label("case4", "final")
    assert row.maker == "user:Dr A"
    assert workspace.store.ledger.counts()["approved"] == 10


@pytest.mark.parametrize("name", ["", " "])  # of a variable of the shell that is not set
def test_nobody_without_a_name_vouches_for_masks(phantom_workspace, phantoms, name):
    workspace = phantom_workspace()
    with pytest.raises(RequestError, match="the name has 1 to 200 characters; got 0"):
        import_labels(workspace, phantoms.labels, approved_by=name)
    assert workspace.store.ledger.latest_labels() == {}


def test_masks_of_other_images_and_a_missing_folder_are_faults(phantom_workspace, phantoms, tmp_path):
    with pytest.raises(LabelError, match=r"no file in .*test-labels has the name of an image"):
        import_labels(phantom_workspace(), phantoms.test_labels)
    with pytest.raises(StoreError, match="gone does not exist"):
        import_labels(phantom_workspace(), tmp_path / "gone")


def test_export_to_nifti_writes_the_best_labels_and_where_they_come_from(labelled, phantoms, tmp_path):
    workspace = labelled()
    store = workspace.store
    store.save_label_map("case1", np.full((96, 80, 1), 3), tag="corrected", maker="correction:test", affine=LPS_TO_RAS)
    store.submit_label("case2", phantoms.labels / "case2.png", tag="final", user="anna")
    told = export_labels(workspace, tmp_path / "out", file_format="nifti", states=["approved", "corrected", "pseudo"])
    assert told["n_exported"] == 10
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    states = {record["image"]: record["state"] for record in manifest["labels"]}
    assert (states["case0"], states["case1"], states["case2"]) == ("pseudo", "corrected", "approved")
    record = next(r for r in manifest["labels"] if r["image"] == "case2")
    assert (record["maker"], record["label"]) == ("user:anna", "labels/case2.nii.gz")
    exported = nib.load(tmp_path / "out" / record["label"])
    truth = read_label_map(phantoms.labels / "case2.png")
    assert np.array_equal(np.asarray(exported.dataobj), truth.array)
    assert np.allclose(exported.affine, LPS_TO_RAS)


def test_export_takes_only_the_states_that_are_named(labelled, phantoms, tmp_path):
    workspace = labelled()
    workspace.store.submit_label("case2", phantoms.labels / "case2.png", tag="final", user="anna")
    told = export_labels(workspace, tmp_path / "out", file_format="nifti", states=["approved"])
    assert told["n_exported"] == 1
    with pytest.raises(LabelError, match="no image has a best label of the states corrected"):
        export_labels(workspace, tmp_path / "none", file_format="nifti", states=["corrected"])


def test_nnunet_gets_consecutive_indices_and_images(labelled, tmp_path):
    workspace = labelled(is_bad=lambda _: False)
    export_labels(workspace, tmp_path / "out", file_format="nnunet", states=["pseudo"])
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    # The protocol names index 7 first.
    assert dataset["labels"] == {"background": 0, "right blob": 1, "left blob": 2}
    assert (dataset["numTraining"], dataset["file_ending"]) == (10, ".nii.gz")
    label = np.asarray(nib.load(tmp_path / "out" / "labelsTr" / "case0.nii.gz").dataobj)
    original = workspace.store.read_label(workspace.store.label("case0", "original"))
    assert np.array_equal(label, np.select([original == 7, original == 3], [1, 2], 0))
    image = nib.load(tmp_path / "out" / "imagesTr" / "case0_0000.nii.gz")
    assert np.array_equal(image.get_fdata(), workspace.store.read_image("case0").array)


def test_images_in_folders_never_share_a_name_in_nnunet(make_studies, phantoms, tmp_path):
    studies = make_studies("a/b.png", "a__b.png")
    settings = phantoms.settings.model_copy(update={"protocol": phantoms.images / "protocol.yaml"})
    workspace = open_workspace(studies, settings)
    for image_id, index in (("a/b", 3), ("a__b", 7)):
        label_map = np.full((16, 12, 1), index)
        workspace.store.save_label_map(image_id, label_map, tag="original", maker="test", affine=LPS_TO_RAS)
    with pytest.raises(RequestError, match="a__b"):
        export_labels(workspace, tmp_path / "out", file_format="nnunet", states=["pseudo"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_format": "dicom", "states": ["pseudo"]}, "export takes --format nifti or nnunet .* got dicom"),
        ({"file_format": "nifti", "states": ["good"]}, "--states of approved, corrected, pseudo; got nifti, .'good'."),
        ({"file_format": "nifti", "states": []}, "export takes"),
    ],
)
def test_unknown_formats_and_states_are_told(labelled, tmp_path, options, message):
    with pytest.raises(RequestError, match=message):
        export_labels(labelled(), tmp_path / "out", **options)


def test_nothing_is_exported_into_a_folder_in_use_or_over_a_file(labelled, tmp_path):
    workspace = labelled()
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(RequestError, match="is not an empty folder"):
            export_labels(workspace, out, file_format="nifti", states=["pseudo"])
    assert (tmp_path / "file").read_text() == "mine"
