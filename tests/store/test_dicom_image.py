"""DICOM series as volumes: order, geometry and values of what scanners and PACS deliver."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset

from samcorrect.lib.errors import ImageError
from samcorrect.lib.store.dicom_image import read_series

STRAIGHT = np.diag([-1.0, -1.0, 3.0, 1.0])


def ramp(n_slices: int, rows: int = 10, columns: int = 12) -> np.ndarray:
    """Stored values (slices, rows, columns), each one once."""
    return np.arange(n_slices * rows * columns, dtype=np.uint16).reshape(n_slices, rows, columns)


def by_itk(instances: list[Dataset], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What SimpleITK's own series reader makes of it: array (x, y, z) and RAS affine."""
    for number, instance in enumerate(instances):
        instance.save_as(folder / f"{number}.dcm", write_like_original=False)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_oblique_slices_that_arrive_in_any_order_lie_where_their_headers_say(
    make_series, oblique_affine, tmp_path, rng
):
    stored = ramp(5)
    # The third axis of oblique_affine is minus the cross product of the others: DICOM's order begins at its last slice.
    expected_affine = oblique_affine.copy()
    expected_affine[:3, 3] += 4 * oblique_affine[:3, 2]
    expected_affine[:3, 2] *= -1
    series = make_series(stored, oblique_affine)
    rng.shuffle(series)
    (tmp_path / "itk").mkdir()
    itk_array, itk_affine = by_itk(series, tmp_path / "itk")
    volume = read_series(series, tmp_path, "1.2")
    np.testing.assert_array_equal(volume.array, stored[::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine, expected_affine, atol=1e-6)
    np.testing.assert_array_equal(volume.array, itk_array)
    np.testing.assert_allclose(volume.affine, itk_affine, atol=1e-5)
    assert volume.n_dims == 3


@pytest.mark.parametrize(
    "name",
    [
        "mr_brain_study1_T1post",
        "mr_study1_HippoCrop",
        "mr_study2_HippoCrop",
        "ct_3slice_with_dicom_seg_dcmqi/ct-3slice",
    ],
)
def test_real_series_equal_the_reading_of_simpleitk(shared_data, name, tmp_path):
    folder = shared_data / "dicom" / name
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_series((pydicom.dcmread(path) for path in sorted(folder.iterdir())), tmp_path, name)
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.spacing_mm, image.GetSpacing(), atol=1e-4)
    last_lps = image.TransformIndexToPhysicalPoint([n - 1 for n in image.GetSize()])
    last_ras = volume.affine @ [*(n - 1 for n in volume.array.shape), 1]
    np.testing.assert_allclose(last_ras[:3] * [-1, -1, 1], last_lps, atol=1e-3)


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"], ids=["MR", "PET"])
def test_each_slice_is_rescaled_by_its_own_slope_whatever_its_sop_class(make_series, tmp_path, sop_class):
    series = make_series(np.full((2, 8, 8), 100, np.uint16), STRAIGHT, SOPClassUID=sop_class)
    series[0].RescaleSlope, series[0].RescaleIntercept = 2, -10
    series[1].RescaleSlope, series[1].RescaleIntercept = 0.125, 0
    volume = read_series(series, tmp_path, "1.2")
    assert (volume.array[..., 0] == 190).all()
    assert (volume.array[..., 1] == 12.5).all()


def test_monochrome1_is_inverted_and_a_radiograph_has_its_pixel_size(make_series, tmp_path):
    stored = np.full((1, 9, 8), 7, np.uint16)
    stored[0, 0, 0], stored[0, 8, 7] = 3, 20
    series = make_series(stored, Modality="CR", PhotometricInterpretation="MONOCHROME1", ImagerPixelSpacing=[0.2, 0.1])
    volume = read_series(series, tmp_path, "1.2")
    assert volume.array.shape == (8, 9, 1)
    assert volume.n_dims == 2
    # The largest and the smallest value change places: v becomes 3 + 20 - v.
    assert volume.array[0, 0, 0] == 20
    assert volume.array[7, 8, 0] == 3
    assert volume.array[1, 1, 0] == 16
    np.testing.assert_allclose(volume.affine, np.diag([-0.1, -0.2, 1, 1]))


def test_jpeg_2000_is_decoded(shared_data, tmp_path):
    folder = shared_data / "dicom" / "ct_totalsegmentator_example"
    series = [pydicom.dcmread(path) for path in folder.iterdir()]
    for instance in series:  # anonymised to the point of having no class
        instance.SOPClassUID, instance.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", pydicom.uid.generate_uid()
    assert series[0].file_meta.TransferSyntaxUID == pydicom.uid.JPEG2000Lossless
    volume = read_series(series, tmp_path, "1.2")
    assert volume.array.shape == (512, 512, 20)
    assert volume.array.dtype == np.int16
    itk = SimpleITK.ReadImage(str(min(folder.iterdir())))
    k = round((itk.GetOrigin()[2] - volume.affine[2, 3]) / volume.spacing_mm[2])
    np.testing.assert_array_equal(volume.array[..., k], SimpleITK.GetArrayFromImage(itk)[0].T)


def test_frames_of_an_enhanced_image_are_sorted_and_rescaled_one_by_one(make_enhanced, tmp_path):
    volume = read_series(make_enhanced([2, 0, 3, 1]), tmp_path, "1.2")
    assert volume.array.shape == (8, 10, 4)
    # z * (1 + z)
    np.testing.assert_array_equal(volume.array[0, 0], [0, 12, 42, 90])
    np.testing.assert_allclose(volume.affine, [[-0.25, 0, 0, 5], [0, -0.5, 0, -4], [0, 0, 3, 0], [0, 0, 0, 1]])


def test_frames_of_a_cine_lie_one_mm_apart_and_colour_is_luminance(make_series, tmp_path):
    stored = np.zeros((1, 2 * 8, 8, 3), np.uint8)
    stored[0, :8] = [200, 0, 0]
    stored[0, 8:] = [0, 0, 100]
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    us = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1", "Modality": "US", "NumberOfFrames": 2, "Rows": 8}
    volume = read_series(make_series(stored, PixelSpacing=[0.3, 0.3], **colour, **us), tmp_path, "1.2")
    assert volume.array.shape == (8, 8, 2)
    np.testing.assert_allclose(volume.array[0, 0], [0.299 * 200, 0.114 * 100], rtol=1e-6)
    np.testing.assert_allclose(volume.spacing_mm, (0.3, 0.3, 1))


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_equally_spaced(make_series, tmp_path):
    series = make_series(ramp(9), np.diag([-1.0, -1.0, 0.625, 1.0]))
    for instance in series:
        instance.ImagePositionPatient = [round(float(mm), 1) for mm in instance.ImagePositionPatient]
    assert read_series(series, tmp_path, "1.2").spacing_mm[2] == pytest.approx(0.625)


def _without_slice(series):
    del series[2]


def _twice_the_same_place(series):
    series[2].ImagePositionPatient = series[1].ImagePositionPatient


def _tilted(series):
    for number, instance in enumerate(series):
        instance.ImagePositionPatient = [0, 0.5 * number, 3 * number]


def _another_size(series):
    series[1].Rows, series[1].PixelData = 9, series[1].PixelData[: 9 * 12 * 2]


def _scout(series):
    series[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _no_positions(series):
    for instance in series:
        del instance.ImagePositionPatient


def _half_inverted(series):
    series[3].PhotometricInterpretation = "MONOCHROME1"


def _cut_short(series):
    series[4].PixelData = series[4].PixelData[:100]


def _no_pixels(series):
    del series[1].PixelData


def _skewed(series):
    for instance in series:
        instance.ImageOrientationPatient = [1, 0, 0, 0.5, 0.8, 0]


def _zero_slope(series):
    series[0].RescaleSlope, series[0].RescaleIntercept = 0, 0


def _broken_pixels(series):
    series[0].file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    series[0].PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 no codestream"])
    series[0]["PixelData"].is_undefined_length = True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_slice, r"not equally spaced: 6 mm between slices 2 and 3 of 4, 3 mm elsewhere"),
        (_twice_the_same_place, r"1 of 5 slices lie where another one lies"),
        (_tilted, r"sheared by 9.46 degrees \(a tilted gantry\)"),
        (_another_size, r"5 images of different sizes"),
        (_scout, r"5 images of different orientations"),
        (_no_positions, r"5 images without positions are no volume"),
        (_half_inverted, r"MONOCHROME1 and MONOCHROME2"),
        (_cut_short, r"malformed: 100 bytes of pixels, and 240 by its header"),
        (_no_pixels, r"an instance without pixels \(MR\)"),
        (_skewed, r"not two orthogonal unit vectors"),
        (_zero_slope, r"malformed header.*RescaleSlope 0"),
        (_broken_pixels, r"GDCM cannot decode"),
        (list.clear, r"no images in it"),
    ],
)
def test_what_is_no_regular_volume_is_refused_by_the_uid_of_the_series(make_series, tmp_path, spoil, message):
    series = make_series(ramp(5), STRAIGHT)
    spoil(series)
    with pytest.raises(ImageError, match=message) as caught:
        read_series(series, tmp_path, "1.2.3.44")
    assert "series 1.2.3.44" in str(caught.value)
