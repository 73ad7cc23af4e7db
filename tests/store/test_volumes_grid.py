"""Grids read from headers alone, and labels that are refused because they lie on another one."""

import nibabel as nib
import nrrd
import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.errors import GeometryError, ImageError
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS, Grid, check_grid, read_grid, read_image, write_label_map

SHAPE = (14, 10, 9)


def flipped(affine: np.ndarray, axis: int, n_vox: int) -> np.ndarray:
    """The affine of the same array stored the other way round along an axis."""
    turn = np.eye(4)
    turn[axis, axis], turn[axis, 3] = -1, n_vox - 1
    return affine @ turn


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_the_grid_in_the_header_is_the_grid_of_the_volume(tmp_path, oblique_affine, suffix):
    for name, affine in {
        "oblique": oblique_affine,
        "flipped": flipped(oblique_affine, 1, SHAPE[1]),
        "anisotropic": np.diag([0.3, 0.3, 7.5, 1.0]),
    }.items():
        path = tmp_path / f"{name}{suffix}"
        write_label_map(path, np.ones(SHAPE, np.uint8), affine)
        grid, whole = read_grid(path), read_image(path).grid
        assert grid.shape == whole.shape == SHAPE
        assert np.array_equal(grid.affine, whole.affine)
        check_grid(grid, Grid(SHAPE, affine))


def test_two_dimensional_images_have_one_slice(tmp_path):
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(tmp_path / "a.png")
    nib.save(nib.Nifti1Image(np.zeros((12, 16), np.uint8), np.eye(4)), tmp_path / "b.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((12, 16, 1, 1), np.uint8), np.eye(4)), tmp_path / "c.nii.gz")
    nrrd.write(str(tmp_path / "d.nrrd"), np.zeros((12, 16), np.uint8))
    for name, shape in {
        "a.png": (16, 12, 1),
        "b.nii.gz": (12, 16, 1),
        "c.nii.gz": (12, 16, 1),
        "d.nrrd": (12, 16, 1),
    }.items():
        assert read_grid(tmp_path / name).shape == read_image(tmp_path / name).grid.shape == shape


def test_a_series_in_time_is_no_image_that_a_label_could_lie_on(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 3), np.uint8), np.eye(4)), tmp_path / "t.nii.gz")
    with pytest.raises(ImageError, match=r"t\.nii\.gz: 4 dimensions \(14, 10, 9, 3\); split it into volumes"):
        read_grid(tmp_path / "t.nii.gz")


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.nii", "a.nrrd", "a.jpg"])
def test_a_header_that_cannot_be_read_is_an_image_error_that_names_the_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"^{name}: its header cannot be read"):
        read_grid(tmp_path / name)


@pytest.fixture
def store(tmp_path, oblique_affine):
    """A store of one oblique volume and one picture."""
    studies = tmp_path / "studies"
    studies.mkdir()
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    nib.save(nib.Nifti1Image(voxels, oblique_affine), studies / "volume.nii.gz")
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(studies / "picture.png")
    store = LabelStore(*open_studies(studies, None))
    yield store
    store.ledger.close()


def test_a_model_cannot_store_a_label_off_its_images_grid(store, oblique_affine):
    label_map = np.ones(SHAPE, np.uint8)
    save = {"tag": "original", "maker": "sam:test"}
    thicker = oblique_affine @ np.diag([1, 1, 1.1, 1])
    shifted = oblique_affine.copy()
    shifted[0, 3] += 0.5
    for wrong in (np.eye(4), flipped(oblique_affine, 0, SHAPE[0]), thicker, shifted):
        with pytest.raises(GeometryError, match=r"the label for volume of sam:test is not on its image's grid"):
            store.save_label_map("volume", label_map, affine=wrong, **save)
    for wrong in (label_map[:-1], label_map.transpose(1, 0, 2), label_map[..., :1]):
        with pytest.raises(GeometryError, match=r"it has shape .*; the image has shape \(14, 10, 9\)"):
            store.save_label_map("volume", wrong, affine=oblique_affine, **save)
    with pytest.raises(GeometryError, match=r"the image has shape \(16, 12, 1\)"):
        store.save_label_map("picture", np.ones((12, 16, 1), np.uint8), affine=LPS_TO_RAS, **save)
    assert store.ledger.versions("volume") == store.ledger.versions("picture") == []
    assert not (store.state_dir / "labels").exists()
    store.save_label_map("volume", label_map, affine=oblique_affine, **save)
    store.save_label_map("picture", np.ones((16, 12, 1), np.uint8), affine=LPS_TO_RAS, **save)
