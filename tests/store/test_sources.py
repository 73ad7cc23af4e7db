"""What a user gives as studies: a folder, or a PACS with the host's own settings."""

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from monailabel.config import settings as host_settings

from samcorrect.lib.errors import SettingsError, StoreError
from samcorrect.lib.store.dicomweb import DicomWebStudies
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.studies import LocalStudies


def test_a_folder_keeps_its_state_in_itself(tmp_path):
    studies, state_dir = open_studies(tmp_path, None)
    assert isinstance(studies, LocalStudies)
    assert state_dir == tmp_path / ".samcorrect"


def test_a_url_needs_a_state_folder_and_leaves_it_alone_until_it_is_used(tmp_path):
    with pytest.raises(SettingsError, match=r"give --state DIR, --conf state DIR or SAMCORRECT_STATE"):
        open_studies("http://pacs/dicom-web/", None)
    studies, state_dir = open_studies("http://pacs/dicom-web/", tmp_path / "state")
    assert isinstance(studies, DicomWebStudies)
    assert studies.location == "http://pacs/dicom-web"
    assert state_dir == tmp_path / "state"
    assert not state_dir.exists()


@pytest.mark.parametrize("prefix", ["MONAI_LABEL_DATASTORE", "MONAI_LABEL_DICOMWEB"])
def test_user_and_password_are_the_hosts_settings(orthanc, tmp_path, monkeypatch, prefix):
    with orthanc(users={"sam": "s3cret"}) as url:
        with pytest.raises(StoreError, match=r"HTTP 401"):
            open_studies(url, tmp_path)[0].scan()
        monkeypatch.setattr(host_settings, f"{prefix}_USERNAME", "sam")
        monkeypatch.setattr(host_settings, f"{prefix}_PASSWORD", "s3cret")
        assert open_studies(url, tmp_path)[0].scan() == ([], [])


def test_the_search_filter_is_the_hosts_setting_but_for_its_default(pacs, make_series, tmp_path, monkeypatch):
    for modality in ("CT", "MR", "PT"):
        series = make_series(np.zeros((1, 10, 12), np.uint16), np.eye(4), Modality=modality)
        DICOMwebClient(pacs).store_instances(series)
    assert host_settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "CT"}
    assert len(open_studies(pacs, tmp_path)[0].scan()[0]) == 3
    for wanted, n_images in (({"Modality": ["CT"]}, 1), ({"Modality": ["CT", "PT"]}, 2), ({"PatientID": "nobody"}, 0)):
        monkeypatch.setattr(host_settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", wanted)
        assert len(open_studies(pacs, tmp_path)[0].scan()[0]) == n_images


def test_the_key_of_the_patients_digests_stays(pacs, make_series, tmp_path):
    DICOMwebClient(pacs).store_instances(make_series(np.zeros((1, 10, 12), np.uint16), np.eye(4)))
    cases = {open_studies(pacs, tmp_path / "state")[0].scan()[0][0].case for _ in range(2)}
    assert len(cases) == 1
    assert (tmp_path / "state" / "case.key").stat().st_mode & 0o077 == 0
