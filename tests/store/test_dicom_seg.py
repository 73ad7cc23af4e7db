"""Label maps as DICOM SEG: which segment is which, where it lies, and who made it."""

from io import BytesIO

import highdicom
import numpy as np
import pydicom
import pytest

from samcorrect.lib.errors import GeometryError, LabelError
from samcorrect.lib.store.dicom_image import read_series
from samcorrect.lib.store.dicom_seg import Origin, read_seg, write_seg

ORIGIN = Origin(user="Jörg Müller", key="label 1")
NAMES = {1: "liver", 2: "spleen"}


@pytest.fixture
def series(make_series, oblique_affine):
    """Five oblique slices of 12 x 10 (x, y)."""
    return make_series(np.zeros((5, 10, 12), np.uint16), oblique_affine, StudyDate="20260102", StudyTime="101500")


def headers_of(series):
    return [pydicom.Dataset({e.tag: e for e in instance if e.keyword != "PixelData"}) for instance in series]


def saved(seg):
    """The file as another program reads it."""
    stream = BytesIO()
    seg.save_as(stream)
    stream.seek(0)
    return pydicom.dcmread(stream)


def spleen_alone():
    """One voxel of index 2 at x 3, y 7 of slice 1 of 5."""
    label_map = np.zeros((12, 10, 5), np.uint8)
    label_map[3, 7, 1] = 2
    return label_map


def test_a_mask_of_index_2_alone_is_segment_2_by_its_own_name_for_every_reader(series):
    seg = saved(write_seg(spleen_alone(), NAMES, headers_of(series), ORIGIN))
    assert {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence} == {1: "liver", 2: "spleen"}
    # By pydicom alone: the only frame belongs to segment 2, and row 7, column 3 is set in it.
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    assert frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2
    np.testing.assert_array_equal(np.argwhere(seg.pixel_array), [[7, 3]])
    # By highdicom.
    whole = highdicom.seg.Segmentation.from_dataset(seg)
    assert whole.get_segment_numbers(segment_label="spleen") == [2]
    by_slice = whole.get_pixels_by_source_instance(
        [instance.SOPInstanceUID for instance in series], segment_numbers=[2], assert_missing_frames_are_empty=True
    )
    assert by_slice.sum() == 1


def test_a_voxel_lies_where_it_lies_in_the_patient(series, tmp_path):
    headers = headers_of(series)
    seg = saved(write_seg(spleen_alone(), NAMES, headers, ORIGIN))
    image = read_series(series, tmp_path, "1.2")
    expected_lps = (image.affine @ [3, 7, 1, 1])[:3] * [-1, -1, 1]
    shared, (frame,) = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    to_lps = highdicom.spatial.PixelToReferenceTransformer(
        image_position=frame.PlanePositionSequence[0].ImagePositionPatient,
        image_orientation=shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        pixel_spacing=shared.PixelMeasuresSequence[0].PixelSpacing,
    )
    np.testing.assert_allclose(to_lps(np.array([[3, 7]]))[0], expected_lps, atol=1e-4)
    (source,) = frame.DerivationImageSequence[0].SourceImageSequence
    # Slice 1 along the normal is the fourth of the five that were made, whose axis runs the other way.
    assert source.ReferencedSOPInstanceUID == series[3].SOPInstanceUID


def test_a_label_comes_back_whatever_the_order_of_the_instances(series, rng):
    label_map = rng.integers(0, 3, (12, 10, 5)).astype(np.uint8)
    headers = headers_of(series)
    seg = saved(write_seg(label_map, NAMES, headers, ORIGIN))
    rng.shuffle(headers)
    np.testing.assert_array_equal(read_seg(seg, headers, {"liver": 1, "spleen": 2}), label_map)
    np.testing.assert_array_equal(read_seg(seg, headers, {"liver": 7, "spleen": 3}), np.array([0, 7, 3])[label_map])


def test_indices_with_gaps_are_segments_in_their_order(series):
    label_map = np.zeros((12, 10, 5), np.uint8)
    label_map[0, 0, 0], label_map[1, 1, 1] = 200, 9
    seg = saved(write_seg(label_map, {200: "tumour", 9: "liver"}, headers_of(series), ORIGIN))
    assert {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence} == {1: "liver", 2: "tumour"}
    np.testing.assert_array_equal(read_seg(seg, headers_of(series), {"tumour": 200, "liver": 9}), label_map)


def test_an_empty_label_says_that_nothing_is_there(series):
    empty = np.zeros((12, 10, 5), np.uint8)
    seg = saved(write_seg(empty, NAMES, headers_of(series), ORIGIN))
    assert len(seg.SegmentSequence) == 2
    np.testing.assert_array_equal(read_seg(seg, headers_of(series), {"liver": 1, "spleen": 2}), empty)


def test_it_says_who_made_it_of_whom_and_how(series):
    drawn = saved(write_seg(spleen_alone(), NAMES, headers_of(series), ORIGIN))
    assert str(drawn.ContentCreatorName) == "Jörg Müller^"
    assert (drawn.PatientID, str(drawn.PatientName), drawn.StudyDate) == ("P-4711", "Doe^Jane", "20260102")
    assert drawn.StudyInstanceUID == series[0].StudyInstanceUID
    assert drawn.SeriesInstanceUID != series[0].SeriesInstanceUID
    assert [item.SegmentAlgorithmType for item in drawn.SegmentSequence] == ["MANUAL", "MANUAL"]
    origin = Origin(user="a^b\\c=d", key="label 2", algorithm="sam:lite_medsam", algorithm_version="79d8c9dc")
    edited = saved(write_seg(spleen_alone(), NAMES, headers_of(series), origin))
    assert str(edited.ContentCreatorName) == "a b c d^"
    assert {item.SegmentAlgorithmType for item in edited.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert edited.SegmentSequence[0].SegmentAlgorithmName == "sam:lite_medsam"


def test_the_same_version_is_the_same_instance_and_another_one_is_not(series):
    uids = [
        write_seg(spleen_alone(), NAMES, headers_of(series), Origin("a", key)).SOPInstanceUID for key in ("x", "x", "y")
    ]
    assert uids[0] == uids[1] != uids[2]


def test_a_radiograph_without_positions_has_a_seg(make_series):
    cr = make_series(np.zeros((1, 9, 8), np.uint16), SOPClassUID="1.2.840.10008.5.1.4.1.1.1", Modality="CR")
    cr[0].FrameOfReferenceUID = "1.2.3"
    label_map = np.zeros((8, 9, 1), np.uint8)
    label_map[5, 2, 0] = 1
    seg = saved(write_seg(label_map, {1: "heart"}, headers_of(cr), ORIGIN))
    np.testing.assert_array_equal(read_seg(seg, headers_of(cr), {"heart": 1}), label_map)


def test_frames_of_an_enhanced_image_are_referenced_by_their_numbers(make_enhanced, rng):
    headers = headers_of(make_enhanced([2, 0, 3, 1]))
    label_map = rng.integers(0, 2, (8, 10, 4)).astype(np.uint8)
    label_map[..., 3] = 0
    label_map[0, 0, 2] = 1
    seg = saved(write_seg(label_map, {1: "heart"}, headers, ORIGIN))
    np.testing.assert_array_equal(read_seg(seg, headers, {"heart": 1}), label_map)
    # z = 6 was stored as the first frame.
    frames = {
        float(item.PlanePositionSequence[0].ImagePositionPatient[2]): item.DerivationImageSequence[0]
        .SourceImageSequence[0]
        .ReferencedFrameNumber
        for item in seg.PerFrameFunctionalGroupsSequence
    }
    assert frames[6.0] == 1


def test_what_cannot_be_a_seg_is_refused(series, make_series):
    with pytest.raises(GeometryError, match=r"the series was changed in the PACS"):
        write_seg(np.zeros((12, 10, 4), np.uint8), NAMES, headers_of(series), ORIGIN)
    with pytest.raises(LabelError, match=r"the indices \[2\] without a name"):
        write_seg(spleen_alone(), {1: "liver"}, headers_of(series), ORIGIN)
    cine = make_series(np.zeros((1, 16, 8), np.uint16), NumberOfFrames=2, Rows=8)
    with pytest.raises(LabelError, match=r"no SEG for this MR Image Storage"):
        write_seg(np.zeros((8, 8, 2), np.uint8), NAMES, headers_of(cine), ORIGIN)
    seg = saved(write_seg(spleen_alone(), NAMES, headers_of(series), ORIGIN))
    with pytest.raises(LabelError, match=r"cannot be read on this series"):
        read_seg(seg, headers_of(series), {"liver": 1})
