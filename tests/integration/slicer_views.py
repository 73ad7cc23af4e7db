"""What Slicer makes of a mask file, and what the phantoms of the integration tests show."""

from pathlib import Path

import nibabel as nib
import numpy as np

from samcorrect.lib.store.volumes import align_label_map, read_image, read_label_map

DISC, BAR = 5, 2


def slicer_segments(file, label_names, image_path):
    """Name to mask as Slicer's ImportLabelmapToSegmentationNode pairs them: the i-th name, the i-th value present."""
    label_map = assert_on_grid(file, image_path)
    values = [int(v) for v in np.unique(label_map) if v > 0]
    assert len(values) == len(label_names)
    return {name: label_map == value for name, value in zip(label_names, values, strict=True)}


def assert_on_grid(file, image_path):
    label, image = read_label_map(Path(file)), read_image(Path(image_path))
    assert label.array.shape == image.array.shape
    assert np.allclose(label.affine, image.affine, atol=1e-4)
    return align_label_map(label, image.grid)


def assert_shows_phantom(segments, image_path):
    expected = truth(image_path)
    assert set(segments) == {"bar", "disc"}
    assert dice(segments["disc"], expected == DISC) > 0.8
    assert dice(segments["bar"], expected == BAR) > 0.8


def truth(image_path):
    """The phantom's label map, by its grey values: background 50, disc 160, bar 190, noise of 6."""
    array = read_image(Path(image_path)).array
    smooth = sum(np.roll(array, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    return np.where(smooth < 105, 0, np.where(np.arange(array.shape[0])[:, None, None] < 60, DISC, BAR))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def write_nifti(path, label, affine):
    nib.save(nib.Nifti1Image(label, affine), path)
    return str(path)


def bad_label(path, make):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    label = np.full((96, 80, 1), DISC, np.uint8)
    label[:, ::3] = np.random.default_rng(1).choice([0, DISC], (96, 27, 1))
    if make == "text":
        path.write_text("this is not a label")
    elif make == "other_grid":
        write_nifti(path, label[:90], affine)
    else:
        write_nifti(path, np.where(label > 0, 9, 0).astype(np.uint8) if make == "unknown_value" else label, affine)
    if make == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    return path
