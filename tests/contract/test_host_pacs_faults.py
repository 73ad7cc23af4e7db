"""Faults of MONAI Label 0.8.5 with a PACS, shown on a real one; lib/store has code of its own for each."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import nifti_to_dicom_seg

STRAIGHT = np.diag([-1.0, -1.0, 3.0, 1.0])


@pytest.fixture
def series(make_series):
    return make_series(np.zeros((4, 10, 12), np.uint16), STRAIGHT)


def test_the_host_does_not_list_a_series_that_came_after_it_was_asked(pacs, series, tmp_path):
    datastore = DICOMWebDatastore(DICOMwebClient(pacs), {"Modality": "MR"}, str(tmp_path))
    assert datastore.list_images() == []
    DICOMwebClient(pacs).store_instances(series)
    assert datastore.list_images() == []


def test_the_host_takes_what_a_killed_download_left_for_the_whole_series(pacs, series, tmp_path):
    DICOMwebClient(pacs).store_instances(series)
    uid = series[0].SeriesInstanceUID
    datastore = DICOMWebDatastore(DICOMwebClient(pacs), {"Modality": "MR"}, str(tmp_path))
    left = Path(datastore._datastore.image_path()) / uid
    left.mkdir()
    for number, instance in enumerate(series[:2]):
        instance.save_as(left / f"{number}.dcm", write_like_original=False)
    assert nib.load(datastore.get_image_uri(uid)).shape == (12, 10, 2)


def test_the_host_names_a_segment_by_its_place(series, tmp_path):
    for number, instance in enumerate(series):
        instance.PatientBirthDate = instance.PatientSex = instance.AccessionNumber = instance.StudyID = ""
        instance.StudyDate = instance.StudyTime = ""
        instance.save_as(tmp_path / f"{number}.dcm", write_like_original=False)
    label_map = np.zeros((12, 10, 4), np.uint8)
    label_map[3, 4, 1] = 2
    nib.save(nib.Nifti1Image(label_map, STRAIGHT), tmp_path / "label.nii.gz")
    names = [{"name": "spleen", "idx": 1}, {"name": "tumour", "idx": 2}]
    seg = nifti_to_dicom_seg(str(tmp_path), str(tmp_path / "label.nii.gz"), names, "*.dcm", use_itk=False)
    assert [item.SegmentLabel for item in pydicom.dcmread(seg).SegmentSequence] == ["spleen"]
    Path(seg).unlink()
