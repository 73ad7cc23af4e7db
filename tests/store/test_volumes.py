"""Reading and writing images and label maps, checked against the independent readers SimpleITK and nibabel."""

import itertools
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from samcorrect.lib.errors import GeometryError, ImageError, LabelError
from samcorrect.lib.store.volumes import (
    LPS_TO_RAS,
    Volume,
    align_label_map,
    read_image,
    read_label_map,
    suffix_of,
    write_label_map,
)

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
SHAPE = (9, 10, 11)


@pytest.fixture
def label_map(rng) -> np.ndarray:
    return rng.integers(0, 4, SHAPE, dtype=np.uint8)


def affines() -> dict[str, np.ndarray]:
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    oblique, flipped, anisotropic = np.eye(4), np.eye(4), np.eye(4)
    oblique[:3, :3], oblique[:3, 3] = tilt @ turn, [5, -7, 90]
    flipped[:3, :3], flipped[:3, 3] = np.diag([-1, 1, -1]), [100, 3, -8]
    anisotropic[:3, :3], anisotropic[:3, 3] = turn @ np.diag([0.5, 1.5, -4]), [-12.5, 0, 33]
    return {"oblique": oblique, "flipped": flipped, "anisotropic": anisotropic}


# Reading pictures


def test_a_png_is_read_with_x_first_and_one_millimetre_pixels_in_lps_order(tmp_path):
    pixels = np.zeros((10, 20), np.uint8)  # 10 rows, 20 columns
    pixels[3, 15] = 200  # row y = 3, column x = 15
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = read_image(tmp_path / "a.png")
    assert volume.array.shape == (20, 10, 1)
    assert volume.array.dtype == np.float32
    assert np.argwhere(volume.array).tolist() == [[15, 3, 0]]
    assert volume.n_dims == 2
    assert volume.spacing_mm == (1.0, 1.0, 1.0)
    assert (volume.affine @ [15, 3, 0, 1]).tolist() == [-15, -3, 0, 1]


def test_sixteen_bits_are_kept(tmp_path):
    pixels = np.arange(100, dtype=np.uint16).reshape(10, 10) * 650
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png").array[..., 0], pixels.T)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_colour_becomes_luminance(tmp_path, mode):
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B; the blue pixel (0, 0, 250) is 28.5, the grey one stays 90.
    picture = Image.new("RGB", (9, 8), (90, 90, 90))
    if mode != "LA":
        picture.putpixel((4, 2), (0, 0, 250))
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "a.png")
    array = read_image(tmp_path / "a.png").array
    assert array.shape == (9, 8, 1)
    assert array[0, 0, 0] == 90
    assert array[4, 2, 0] == (90 if mode == "LA" else pytest.approx(28.5, abs=1))


def test_what_is_transparent_is_black(tmp_path):
    # Half of 200 is seen at half opacity (128 / 255), and nothing where there is none.
    picture = Image.new("RGBA", (9, 8), (200, 200, 200, 255))
    picture.putpixel((4, 2), (200, 200, 200, 128))
    picture.putpixel((5, 2), (250, 250, 250, 0))
    picture.save(tmp_path / "a.png")
    array = read_image(tmp_path / "a.png").array
    assert [array[0, 0, 0], array[5, 2, 0]] == [200, 0]
    assert array[4, 2, 0] == pytest.approx(200 * 128 / 255, abs=1)


def test_colours_of_a_nifti_are_luminance_and_name_no_classes(tmp_path):
    for channels, opacity in (("RGB", 1.0), ("RGBA", 51 / 255)):
        voxels = np.zeros(SHAPE, [(name, "u1") for name in channels])
        voxels["R"], voxels["G"], voxels["B"] = 100, 10, 200
        if "A" in channels:
            voxels["A"] = 51
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
        # 29.9 + 5.87 + 22.8
        array = read_image(tmp_path / "a.nii.gz").array
        assert array.shape == SHAPE
        assert np.allclose(array, opacity * 58.57)
        with pytest.raises(LabelError, match=r"a\.nii\.gz.*RGB voxels.* names no classes"):
            read_label_map(tmp_path / "a.nii.gz")


def test_a_jpeg_and_an_upper_case_suffix_are_read(tmp_path):
    Image.new("L", (9, 8), 77).save(tmp_path / "A.JPG")
    assert suffix_of(Path("x/A.JPG")) == ".jpg"
    assert np.abs(read_image(tmp_path / "A.JPG").array - 77).max() <= 1
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)), tmp_path / "b.nii.gz")
    (tmp_path / "b.nii.gz").rename(tmp_path / "B.NII.GZ")
    assert read_image(tmp_path / "B.NII.GZ").array.shape == SHAPE


# Labels in and out, against independent readers


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", affines())
def test_a_label_map_comes_back_with_its_grid(tmp_path, label_map, suffix, name):
    affine = affines()[name]
    path = tmp_path / f"label{suffix}"
    write_label_map(path, label_map, affine)
    back = read_label_map(path)
    assert back.array.dtype == np.uint8
    assert np.array_equal(back.array, label_map)
    assert np.allclose(back.affine, affine, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", affines())
def test_independent_readers_see_the_marked_voxel_where_we_put_it(tmp_path, suffix, name):
    affine, voxel = affines()[name], (7, 2, 5)
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[voxel] = 3
    path = tmp_path / f"label{suffix}"
    write_label_map(path, label_map, affine)
    wanted_ras_mm = (affine @ [*voxel, 1])[:3]

    image = SimpleITK.ReadImage(str(path))
    z, y, x = np.argwhere(SimpleITK.GetArrayFromImage(image) == 3)[0].tolist()
    lps_mm = np.array(image.TransformIndexToPhysicalPoint((x, y, z)))
    assert np.allclose(lps_mm * [-1, -1, 1], wanted_ras_mm, atol=1e-3)
    if suffix != ".nrrd":
        other = nib.load(path)
        found = np.argwhere(np.asanyarray(other.dataobj) == 3)[0]
        assert np.allclose((other.affine @ [*found, 1])[:3], wanted_ras_mm, atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_we_see_what_simpleitk_writes_where_it_put_it(tmp_path, oblique_affine, suffix):
    array_zyx = np.zeros(SHAPE[::-1], np.int16)
    array_zyx[5, 2, 7] = 40
    image = SimpleITK.GetImageFromArray(array_zyx)
    lps = LPS_TO_RAS @ oblique_affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    path = tmp_path / f"image{suffix}"
    SimpleITK.WriteImage(image, str(path), useCompression=suffix == ".nrrd")
    volume = read_image(path)
    assert volume.array.shape == SHAPE
    assert np.argwhere(volume.array).tolist() == [[7, 2, 5]]
    lps_mm = np.array(image.TransformIndexToPhysicalPoint((7, 2, 5)))
    assert np.allclose((volume.affine @ [7, 2, 5, 1])[:3], lps_mm * [-1, -1, 1], atol=1e-3)
    assert np.allclose(volume.spacing_mm, [0.8, 1.2, 2.5], atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_two_dimensional_label_fits_its_png_for_us_and_for_simpleitk(tmp_path, suffix):
    Image.new("L", (20, 10), 50).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    label_map = np.zeros((20, 10, 1), np.uint8)
    label_map[15, 3] = 2
    path = tmp_path / f"label{suffix}"
    write_label_map(path, label_map, image.affine)
    back = read_label_map(path)
    assert back.n_dims == 2
    assert np.array_equal(align_label_map(back, image.grid), label_map)
    # SimpleITK puts the pixel (15, 3) of the PNG at LPS (15, 3); the label's voxel must lie there too.
    assert SimpleITK.ReadImage(str(tmp_path / "a.png")).TransformIndexToPhysicalPoint((15, 3)) == (15.0, 3.0)
    assert np.allclose(SimpleITK.ReadImage(str(path)).TransformIndexToPhysicalPoint((15, 3, 0)), (15, 3, 0))


def test_a_two_dimensional_nrrd_of_simpleitk_is_read(tmp_path):
    image = SimpleITK.GetImageFromArray(np.arange(90, dtype=np.uint8).reshape(9, 10))
    image.SetSpacing((0.5, 2.0))
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    volume = read_image(tmp_path / "a.nrrd")
    assert volume.array.shape == (10, 9, 1)
    assert volume.n_dims == 2
    assert volume.spacing_mm[:2] == (0.5, 2.0)


def test_an_nrrd_with_spacings_alone_keeps_them(tmp_path):
    nrrd.write(str(tmp_path / "a.nrrd"), np.ones(SHAPE, np.uint8), {"spacings": [0.5, 0.6, 3.0]})
    assert read_image(tmp_path / "a.nrrd").spacing_mm == (0.5, 0.6, 3.0)


def test_ras_and_lps_nrrd_of_one_place_agree_and_another_space_is_refused(tmp_path):
    header = {"space directions": np.diag([1.0, 2, 3]), "space origin": [4, 5, 6]}
    for space, sign in (("right-anterior-superior", 1), ("left-posterior-superior", -1)):
        nrrd.write(str(tmp_path / "a.nrrd"), np.ones(SHAPE), {**header, "space": space})
        affine = read_image(tmp_path / "a.nrrd").affine
        assert np.allclose(affine[:3, 3], [4 * sign, 5 * sign, 6])
        assert np.allclose(np.diag(affine)[:3], [1 * sign, 2 * sign, 3])
    nrrd.write(str(tmp_path / "a.nrrd"), np.ones(SHAPE), {**header, "space": "left-anterior-superior"})
    with pytest.raises(ImageError, match="left-anterior-superior"):
        read_image(tmp_path / "a.nrrd")


def test_real_volumes_have_the_geometry_that_simpleitk_gives_them(shared_data):
    folder = shared_data / "dicom" / "ct_3slice_with_dicom_seg_dcmqi"
    paths = [
        *sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))[:2],
        *sorted(folder.rglob("*seg.nrrd"))[:2],
    ]
    assert len(paths) == 4
    for path in paths:
        volume, image = read_image(path), SimpleITK.ReadImage(str(path))
        assert np.array_equal(volume.array, SimpleITK.GetArrayFromImage(image).T.astype(np.float32))
        corner = [n - 1 for n in volume.array.shape]
        lps_mm = np.array(image.TransformIndexToPhysicalPoint(corner))
        assert np.allclose((volume.affine @ [*corner, 1])[:3], lps_mm * [-1, -1, 1], atol=1e-2)


def test_equal_labels_are_equal_files(tmp_path, label_map):
    for name in ("first.nii.gz", "second.nii.gz"):
        write_label_map(tmp_path / name, label_map, np.eye(4))
    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()


def test_writing_does_not_change_its_arguments_and_takes_bool_and_whole_floats(tmp_path, label_map):
    before = label_map.copy()
    write_label_map(tmp_path / "a.nrrd", label_map[::-1], np.eye(4))
    assert np.array_equal(label_map, before)
    write_label_map(tmp_path / "a.nii", label_map > 1, np.eye(4))
    assert np.array_equal(read_label_map(tmp_path / "a.nii").array, label_map > 1)
    write_label_map(tmp_path / "a.nii", label_map.astype(np.float64), np.eye(4))
    assert np.array_equal(read_label_map(tmp_path / "a.nii").array, label_map)


@pytest.mark.parametrize("value", [0.5, -1, 256, np.nan])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_value_that_no_label_map_has_is_refused_in_and_out(tmp_path, value, suffix):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    path = tmp_path / f"label{suffix}"
    with pytest.raises(LabelError, match=f"whole numbers from 0 to 255; this one holds {value}"):
        write_label_map(path, array, np.eye(4))
    assert not path.exists()
    if suffix == ".nrrd":
        nrrd.write(str(path), array)
    else:
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    with pytest.raises(LabelError, match=f"label{suffix}.*whole numbers from 0 to 255; this one holds {value}"):
        read_label_map(path)


def test_labels_are_not_written_as_pictures(tmp_path, label_map):
    with pytest.raises(LabelError, match=r"label\.png: labels are written as \.nii\.gz"):
        write_label_map(tmp_path / "label.png", label_map, np.eye(4))


def test_a_png_label_holds_indices_as_grey_values_as_palette_or_as_bits(tmp_path):
    values = np.array([[0, 1, 2], [3, 0, 255]], np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9] + [7, 70, 170] * 252)
    assert palette.mode == "P"
    grey = Image.fromarray(values)
    pictures = {"grey": grey, "palette": palette, "rgb": grey.convert("RGB"), "rgba": grey.convert("RGBA")}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        assert np.array_equal(read_label_map(tmp_path / f"{name}.png").array[..., 0], values.T), name
    Image.fromarray(values > 0).save(tmp_path / "bits.png")
    assert np.array_equal(read_label_map(tmp_path / "bits.png").array[..., 0], values.T > 0)


def test_a_coloured_png_and_a_jpeg_are_no_labels(tmp_path):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "a.png")
    with pytest.raises(LabelError, match=r"a\.png.*colours \(RGB\).*grey values"):
        read_label_map(tmp_path / "a.png")
    Image.new("L", (9, 9), 1).save(tmp_path / "a.jpg")
    with pytest.raises(LabelError, match=r"a\.jpg.*JPEG changes values"):
        read_label_map(tmp_path / "a.jpg")


# Grids


def reoriented(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same voxels at the same places, stored with permuted and then flipped axes."""
    array = np.transpose(volume.array, axes)
    affine = volume.affine[:, [*axes, 3]].copy()
    for axis in range(3):
        if flips[axis]:
            array = np.flip(array, axis)
            affine[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
            affine[:, axis] *= -1
    return Volume(np.ascontiguousarray(array), affine, 3)


@pytest.mark.parametrize("axes", itertools.permutations(range(3)))
@pytest.mark.parametrize("flips", itertools.product((False, True), repeat=3))
def test_each_of_the_48_storage_orders_comes_back_exactly(label_map, oblique_affine, axes, flips):
    image = Volume(label_map.astype(np.float32), oblique_affine, 3)
    label = reoriented(Volume(label_map, oblique_affine, 3), axes, flips)
    before = label.array.copy()
    assert np.array_equal(align_label_map(label, image.grid), label_map)
    assert np.array_equal(label.array, before)


def test_a_permuted_cube_is_not_taken_for_its_image(oblique_affine, rng):
    array = rng.integers(0, 3, (9, 9, 9), dtype=np.uint8)
    label = reoriented(Volume(array, oblique_affine, 3), (2, 0, 1), (True, False, True))
    assert not np.array_equal(label.array, array)
    assert np.array_equal(align_label_map(label, Volume(array, oblique_affine, 3).grid), array)


def moved(affine: np.ndarray, **changes: np.ndarray) -> np.ndarray:
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ changes.get("shift_vox", np.zeros(3))
    affine[:3, :3] = affine[:3, :3] @ changes.get("within", np.eye(3))
    return affine


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"shift_vox": np.array([0.5, 0, 0])}, SHAPE),
        ({"shift_vox": np.array([0, 0, -0.05])}, SHAPE),
        ({"within": np.diag([1, 1.01, 1])}, SHAPE),
        ({"within": np.diag([2.0, 2.0, 2.0])}, SHAPE),
        ({"within": np.array([[0.998, -0.063, 0], [0.063, 0.998, 0], [0, 0, 1]])}, SHAPE),  # turned by 3.6 degrees
        ({"within": np.diag([1.0, 1.0, -1.0])}, SHAPE),  # mirrored in place, about the first slice
        ({}, (9, 10, 12)),
        ({}, (9, 11, 10)),
    ],
    ids=["half voxel", "twentieth of a voxel", "1 % wider", "double", "turned", "mirrored", "a slice more", "swapped"],
)
def test_another_grid_is_refused_and_both_grids_are_named(oblique_affine, change, shape):
    image = Volume(np.zeros(SHAPE, np.float32), oblique_affine, 3)
    label = Volume(np.zeros(shape, np.uint8), moved(oblique_affine, **change), 3)
    with pytest.raises(GeometryError) as caught:
        align_label_map(label, image.grid, name="label 7 of case_1")
    message = str(caught.value)
    assert message.startswith("label 7 of case_1 is not on its image's grid")
    for volume in (label, image):
        assert f"shape {volume.array.shape}" in message
        assert ", ".join(f"{s:.4g}" for s in volume.spacing_mm) in message
        assert ", ".join(f"{o:.4g}" for o in volume.affine[:3, 3]) in message
    assert "Resample the label" in message


def test_a_spacing_that_adds_up_over_a_large_image_is_another_grid():
    # 0.1 % wider voxels: 0.5 voxels at the far side of 512.
    image = Volume(np.zeros((512, 512, 1), np.float32), np.eye(4), 2)
    with pytest.raises(GeometryError):
        align_label_map(Volume(np.zeros((512, 512, 1), np.uint8), np.diag([1.001, 1, 1, 1]), 2), image.grid)


def test_rounding_of_float32_and_of_six_digits_is_no_other_grid(oblique_affine):
    shape = (512, 512, 60)
    image = Volume(np.zeros(shape, np.uint8), oblique_affine, 3)
    for rounded in (oblique_affine.astype(np.float32), np.round(oblique_affine, 6)):
        label = Volume(np.zeros(shape, np.uint8), rounded.astype(np.float64), 3)
        assert align_label_map(label, image.grid).shape == shape


def test_a_quaternion_that_simpleitk_reads_otherwise_is_no_other_grid(tmp_path):
    # LPS order, tilted about x and a hair about z: the quaternion's real part is nearly 0 and lost in float32.
    a, b = np.deg2rad([6.0, 0.05])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ about_z @ about_x @ np.diag([0.5, 0.5, 3])
    nifti = nib.Nifti1Image(np.zeros((512, 512, 2), np.uint8), None)
    nifti.set_sform(None, code=0)
    nifti.set_qform(affine, code=1)
    nib.save(nifti, tmp_path / "image.nii")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "image.nii")), str(tmp_path / "label.nrrd"))
    image, label = read_image(tmp_path / "image.nii"), read_label_map(tmp_path / "label.nrrd")
    assert np.abs((label.affine - image.affine) @ [511, 511, 0, 0]).max() > 0.1  # mm, or the test shows nothing
    assert align_label_map(label, image.grid).shape == (512, 512, 2)
