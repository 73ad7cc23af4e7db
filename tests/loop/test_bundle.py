"""A student as a MONAI bundle: run by MONAI itself, and read back."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run, verify_net_in_out
from PIL import Image

from samcorrect.lib.errors import WeightsError
from samcorrect.lib.loop.bundle import INFERENCE, METADATA, WEIGHTS, read_bundle, write_bundle
from samcorrect.lib.networks.student import StudentConfig, build_network, load_student, student_bytes
from samcorrect.lib.store.volumes import read_image, read_label_map

# "mandatory keys" of docs.monai.io/en/latest/mb_specification.html; the last was `optional_packages_version` once.
MANDATORY = {
    "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright",
    "network_data_format", "required_packages_version",
}  # fmt: skip
TENSOR_KEYS = {
    "type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
    "channel_def",
}  # fmt: skip


@pytest.fixture
def student(tmp_path):
    """A student with weights of chance, one of whose masks is full of specks, and statistics of no batch it saw."""
    config = StudentConfig(("right blob", "left blob"), (7, 3), 32, in_one_piece=(True, False))
    path = tmp_path / "student.pt"
    path.write_bytes(student_bytes(build_network(config, seed=1), config))
    return load_student(path)


@pytest.fixture
def bundle(student, tmp_path):
    write_bundle(tmp_path / "bundle", student, {"dice": 0.9, "reason": "better", "losses": [1]})
    return tmp_path / "bundle"


def test_the_metadata_is_what_the_specification_asks_for(bundle, student):
    metadata = json.loads((bundle / METADATA).read_text())
    assert metadata.keys() >= MANDATORY
    tensors = metadata["network_data_format"]
    image, pred = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    assert image.keys() == pred.keys() == TENSOR_KEYS
    assert (image["num_channels"], image["spatial_shape"], image["value_range"]) == (1, [32, 32], [0, 1])
    assert pred["channel_def"] == {"0": "background", "1": "right blob", "2": "left blob"}
    assert metadata["eval_metrics"] == {"dice": 0.9, "n_labels": None, "is_provisional": None, "reason": "better"}
    assert metadata["samcorrect"]["digest"] == student.digest


def test_monai_builds_the_network_and_finds_it_as_the_metadata_say(bundle, student):
    verify_net_in_out(
        "network_def", meta_file=str(bundle / METADATA), config_file=str(bundle / INFERENCE), device="cpu"
    )
    parser = ConfigParser()
    parser.read_config(str(bundle / INFERENCE))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / WEIGHTS, weights_only=True))
    frames = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(frames), student.network(frames))


def test_monai_runs_it_to_the_masks_that_samcorrect_makes(bundle, student, tmp_path, rng, oblique_affine):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(images / "flat.png")
    nib.save(nib.Nifti1Image(rng.normal(size=(30, 45, 3)).astype(np.float32), oblique_affine), images / "deep.nii.gz")
    (images / "notes.txt").write_text("no image")
    where = {"bundle_root": bundle, "dataset_dir": images, "output_dir": tmp_path / "out"}
    run(config_file=str(bundle / INFERENCE), logging_file=False, **{name: str(path) for name, path in where.items()})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deep.nii.gz", "flat.nii.gz"]
    for name in ("flat.png", "deep.nii.gz"):
        volume = read_image(images / name)
        made = read_label_map(tmp_path / "out" / f"{name.partition('.')[0]}.nii.gz")
        wanted = student.predict(volume.array)
        assert len(np.unique(wanted)) > 1
        np.testing.assert_array_equal(made.array, wanted)
        np.testing.assert_allclose(made.affine, volume.affine, atol=1e-6)


@pytest.mark.parametrize("dims", ["2.5d", "3d"])
def test_students_of_volumes_are_run_by_monai_and_read_back_too(tmp_path, rng, oblique_affine, dims):
    config = StudentConfig(("right blob", "left blob"), (7, 3), 32, dims=dims)
    (tmp_path / "student.pt").write_bytes(student_bytes(build_network(config, seed=1), config))
    student = load_student(tmp_path / "student.pt")
    images = tmp_path / "images"
    images.mkdir()
    nib.save(nib.Nifti1Image(rng.normal(size=(30, 45, 5)).astype(np.float32), oblique_affine), images / "deep.nii.gz")
    write_bundle(tmp_path / "bundle", student, {})

    where = {"bundle_root": tmp_path / "bundle", "dataset_dir": images, "output_dir": tmp_path / "out"}
    config_file = str(tmp_path / "bundle" / INFERENCE)
    run(config_file=config_file, logging_file=False, **{name: str(path) for name, path in where.items()})

    wanted = student.predict(read_image(images / "deep.nii.gz").array)
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "deep.nii.gz").array, wanted)
    assert read_bundle(tmp_path / "bundle")[0].digest == student.digest


def test_a_bundle_read_back_is_the_student_it_was_byte_for_byte(bundle, student, tmp_path):
    again, content = read_bundle(bundle)
    assert content == (tmp_path / "student.pt").read_bytes()
    assert (again.digest, again.config) == (student.digest, student.config)


def test_only_metadata_and_weights_of_a_bundle_are_read(bundle, student, tmp_path):
    (bundle / INFERENCE).write_text(json.dumps({"imports": [f"$open({str(tmp_path / 'pwned')!r}, 'w')"]}))
    assert read_bundle(bundle)[0].digest == student.digest
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (METADATA, b"{"),
        (METADATA, b'{"version": "1.0.0"}'),
        (METADATA, b'{"samcorrect": {"config": {"names": ["a"], "indices": [1], "side_px": 31, "dropout": 0}}}'),
        (WEIGHTS, b"no weights"),
    ],
    ids=["no JSON", "of another program", "a side that fits no network", "no weights"],
)
def test_a_bundle_that_is_damaged_or_of_others_is_refused(bundle, name, content):
    (bundle / name).write_bytes(content)
    with pytest.raises(WeightsError, match="is no bundle that samcorrect exported, or it is damaged"):
        read_bundle(bundle)
