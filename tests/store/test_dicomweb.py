"""A real PACS (Orthanc) as studies: lists that are fresh, images that are whole or not there, faults that are named."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK
from dicomweb_client import DICOMwebClient

from samcorrect.lib.errors import ImageError, RequestError, SettingsError, StoreError
from samcorrect.lib.store import dicomweb
from samcorrect.lib.store.dicom_image import read_series
from samcorrect.lib.store.dicomweb import DicomWebStudies
from samcorrect.lib.store.volumes import read_image

STRAIGHT = np.diag([-1.0, -1.0, 3.0, 1.0])


@pytest.fixture
def make_studies_of(tmp_path):
    """A function that names a PACS as another process would."""

    def make(url, **options):
        return DicomWebStudies(url, tmp_path / "cache", key_file=tmp_path / "case.key", **options)

    return make


def stow(url: str, *series: list[pydicom.Dataset]) -> list[str]:
    """Send series as a modality does; their UIDs."""
    for instances in series:
        reply = DICOMwebClient(url).store_instances(instances)
        assert len(reply.ReferencedSOPSequence) == len(instances)
    return [instances[0].SeriesInstanceUID for instances in series]


def slices(n: int) -> np.ndarray:
    return np.arange(n * 120, dtype=np.uint16).reshape(n, 10, 12)


def test_series_that_are_images_are_listed_with_a_digest_for_their_patient(
    pacs, make_series, make_studies_of, tmp_path
):
    uids = stow(
        pacs,
        make_series(slices(3), STRAIGHT),
        make_series(slices(3), STRAIGHT, Modality="CT"),
        make_series(slices(3), STRAIGHT, PatientID="P-4712"),
        make_series(slices(1), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR"),
        make_series(slices(1), Modality="SEG"),
    )
    images, refused = make_studies_of(pacs).scan()
    assert refused == []
    assert [image.id for image in images] == sorted(uids[:3])
    assert [image.path for image in images] == [f"{image.id}.nii.gz" for image in images]
    case_of = {image.id: image.case for image in images}
    assert case_of[uids[0]] == case_of[uids[1]] != case_of[uids[2]]
    assert "4711" not in str(images)
    (by_another_key, *_), _ = DicomWebStudies(pacs, tmp_path, key_file=tmp_path / "another.key").scan()
    assert by_another_key.case != images[0].case
    (of_ct,), _ = make_studies_of(pacs, search_filter={"Modality": "CT"}).scan()
    assert of_ct.id == uids[1]


def test_lists_longer_than_one_answer_are_whole(pacs, make_series, make_studies_of, monkeypatch):
    uids = stow(pacs, *(make_series(slices(1), STRAIGHT) for _ in range(5)))
    monkeypatch.setattr(dicomweb, "PAGE_SERIES", 2)
    assert [image.id for image in make_studies_of(pacs).scan()[0]] == sorted(uids)


def test_a_new_series_is_seen_at_once_and_one_that_went_too(pacs, make_series, make_studies_of, monkeypatch):
    monkeypatch.setattr(dicomweb, "PROBE_INTERVAL_S", 0)
    studies = make_studies_of(pacs)
    assert studies.has_changed()
    assert studies.scan() == ([], [])
    assert not studies.has_changed()
    (uid,) = stow(pacs, make_series(slices(2), STRAIGHT))
    assert studies.has_changed()
    assert [image.id for image in studies.scan()[0]] == [uid]
    assert not studies.has_changed()
    root = pacs.removesuffix("/dicom-web")
    for name in requests.get(f"{root}/series", timeout=10).json():
        requests.delete(f"{root}/series/{name}", timeout=10).raise_for_status()
    assert studies.has_changed()
    assert studies.scan() == ([], [])


def test_probes_are_throttled(pacs, make_series, make_studies_of):
    studies = make_studies_of(pacs)
    studies.scan()
    stow(pacs, make_series(slices(2), STRAIGHT))
    assert not studies.has_changed()
    time.sleep(dicomweb.PROBE_INTERVAL_S)
    assert studies.has_changed()


def test_one_series_is_found_without_a_scan(pacs, make_series, make_studies_of):
    uid, _ = stow(pacs, make_series(slices(2), STRAIGHT), make_series(slices(1), Modality="SR"))
    studies = make_studies_of(pacs)
    assert studies.find(uid) == studies.scan()[0][0]
    for unknown in ("1.2.3", f"{uid}*", "*", "../x", uid + "/", _):
        assert studies.find(unknown) is None


def test_a_fetched_series_is_the_volume_of_its_instances(pacs, make_series, make_studies_of, oblique_affine, tmp_path):
    instances = make_series(slices(5), oblique_affine, RescaleSlope=2, RescaleIntercept=-1000)
    (uid,) = stow(pacs, instances)
    path = make_studies_of(pacs).file(f"{uid}.nii.gz")
    assert path == tmp_path / "cache" / f"{uid}.nii.gz"
    expected, image = read_series(instances, tmp_path, uid), read_image(path)
    np.testing.assert_array_equal(image.array, expected.array)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)  # NIfTI keeps float32
    itk = SimpleITK.ReadImage(str(path))  # as 3D Slicer reads it
    np.testing.assert_allclose(
        itk.TransformIndexToPhysicalPoint((11, 9, 4)), (expected.affine @ [11, 9, 4, 1])[:3] * [-1, -1, 1], atol=1e-3
    )
    assert image.array.min() == -1000
    assert sorted(path.parent.iterdir()) == [path]  # nothing else is left behind
    assert b"P-4711" not in path.read_bytes()


def test_jpeg_2000_comes_as_it_is_stored(pacs, shared_data, make_studies_of):
    instances = [pydicom.dcmread(path) for path in (shared_data / "dicom" / "ct_totalsegmentator_example").iterdir()]
    for instance in instances:  # anonymised to the point of having no UIDs
        instance.SOPClassUID, instance.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", pydicom.uid.generate_uid()
        instance.StudyInstanceUID, instance.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    stow(pacs, instances)
    image = read_image(make_studies_of(pacs).file("1.2.3.4.nii.gz"))
    assert image.array.shape == (512, 512, 20)
    assert (image.array.min(), image.array.max()) == (-1024, 1839)
    np.testing.assert_allclose(image.spacing_mm, (0.9765625, 0.9765625, 2), atol=1e-5)


def test_what_is_no_volume_is_refused_and_not_kept(pacs, make_series, make_studies_of, tmp_path):
    series = make_series(slices(5), STRAIGHT)
    del series[2]
    (uid,) = stow(pacs, series)
    with pytest.raises(ImageError, match=rf"series {uid}: the slices are not equally spaced"):
        make_studies_of(pacs).file(f"{uid}.nii.gz")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(ImageError, match=r"has no image series '1.2.3'"):
        make_studies_of(pacs).file("1.2.3.nii.gz")
    for path in ("../x.nii.gz", "1.2.3", "x.nii.gz"):
        with pytest.raises(ImageError, match=r"names no series"):
            make_studies_of(pacs).file(path)


def test_a_series_that_grew_is_fetched_again(pacs, make_series, make_studies_of):
    series = make_series(slices(4), STRAIGHT)
    (uid,) = stow(pacs, series[:3])
    studies = make_studies_of(pacs)
    studies.scan()
    assert read_image(studies.file(f"{uid}.nii.gz")).array.shape == (12, 10, 3)
    stow(pacs, series[3:])
    for later in (studies, make_studies_of(pacs)):
        later.scan()
        assert read_image(later.file(f"{uid}.nii.gz")).array.shape == (12, 10, 4)


def test_a_part_of_a_series_is_never_taken_for_all_of_it(pacs, make_series, make_studies_of, monkeypatch, tmp_path):
    (uid,) = stow(pacs, make_series(slices(4), STRAIGHT))
    studies = make_studies_of(pacs)
    whole = studies._client.iter_series
    monkeypatch.setattr(studies._client, "iter_series", lambda *a, **k: list(whole(*a, **k))[:3])
    with pytest.raises(StoreError, match=rf"sent [23] of the 4 images of series {uid}|not equally spaced"):
        studies.file(f"{uid}.nii.gz")
    assert list((tmp_path / "cache").iterdir()) == []


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import nibabel
    from samcorrect.lib.store.dicomweb import DicomWebStudies

    def save_half(image, path):
        nibabel.Nifti1Image.to_filename(image, path)
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    if len(sys.argv) > 4:
        nibabel.save = save_half
    print(DicomWebStudies(sys.argv[1], Path(sys.argv[2]), key_file=Path(sys.argv[2]) / "case.key").file(sys.argv[3]))
"""


def fetching(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), *words], stdout=subprocess.PIPE)


def test_a_fetch_that_was_killed_leaves_no_half_image(pacs, make_series, make_studies_of, tmp_path):
    (uid,) = stow(pacs, make_series(slices(4), STRAIGHT))
    cache = tmp_path / "cache"
    killed = fetching(pacs, str(cache), f"{uid}.nii.gz", "kill")
    assert killed.wait(60) == -signal.SIGKILL
    assert not (cache / f"{uid}.nii.gz").exists()
    assert any(path.stat().st_size for path in cache.iterdir())  # a half file lies there, under another name
    assert read_image(make_studies_of(pacs).file(f"{uid}.nii.gz")).array.shape == (12, 10, 4)


def test_instances_left_by_a_killed_fetch_are_cleared_away(pacs, make_series, make_studies_of, tmp_path):
    (uid,) = stow(pacs, make_series(slices(4), STRAIGHT))
    cache = tmp_path / "cache"
    for folder in (cache / ".fetch-old", cache / ".fetch-of-another-process"):
        folder.mkdir(parents=True)
        (folder / "0.dcm").write_bytes(b"x")
    (cache / ".half.nii.gz").write_bytes(b"x")
    for left in (cache / ".fetch-old", cache / ".half.nii.gz"):
        os.utime(left, (0, 0))
    make_studies_of(pacs).file(f"{uid}.nii.gz")
    assert {path.name for path in cache.iterdir()} == {".fetch-of-another-process", f"{uid}.nii.gz"}


def test_two_processes_that_fetch_at_once_both_end_right(pacs, make_series, tmp_path):
    (uid,) = stow(pacs, make_series(slices(40), STRAIGHT))
    processes = [fetching(pacs, str(tmp_path / "cache"), f"{uid}.nii.gz") for _ in range(2)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert read_image(type(tmp_path)(out.decode().strip())).array.shape == (12, 10, 40)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{uid}.nii.gz"]


def test_a_pacs_that_is_down_is_named_and_what_is_known_is_served(
    orthanc, make_series, make_studies_of, caplog, monkeypatch
):
    monkeypatch.setattr(dicomweb, "PROBE_INTERVAL_S", 0)
    with orthanc() as url:
        fetched, other = stow(url, *(make_series(slices(2), STRAIGHT) for _ in range(2)))
        studies = make_studies_of(url)
        studies.scan()
        path = studies.file(f"{fetched}.nii.gz")
    assert studies.file(f"{fetched}.nii.gz") == path
    assert not studies.has_changed()
    assert "the list of images may be old: cannot reach the PACS at" in caplog.text
    for ask in (studies.scan, lambda: studies.find(other), lambda: studies.file(f"{other}.nii.gz")):
        with pytest.raises(
            StoreError, match=rf"cannot reach the PACS at {url} \(ConnectionError\): check that it runs"
        ):
            ask()
    with orthanc():
        assert len(studies.scan()[0]) == 2


def test_a_pacs_that_wants_a_login_is_told_from_one_that_is_down(orthanc, make_studies_of):
    with orthanc(users={"sam": "s3cret"}) as url:
        with pytest.raises(
            StoreError, match=r"refused to list its series \(HTTP 401\); set MONAI_LABEL_DATASTORE_USER"
        ):
            make_studies_of(url).scan()
        with pytest.raises(StoreError, match=r"HTTP 401") as caught:
            make_studies_of(url, auth=("sam", "wr0ng")).scan()
        assert "wr0ng" not in str(caught.value)
        assert make_studies_of(url, auth=("sam", "s3cret")).scan() == ([], [])


def test_another_service_at_the_url_is_told_from_a_pacs(pacs, make_studies_of):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Sign in</html>")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(StoreError, match=r"does not answer as a DICOMweb service; check the URL"):
            make_studies_of(f"http://127.0.0.1:{server.server_port}").scan()
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(StoreError, match=r"could not list its series \(HTTP 404\); check the URL"):
        make_studies_of(pacs.replace("dicom-web", "nothing")).scan()


@pytest.mark.parametrize("url", ["http://sam:s3cret@pacs/dicom-web", "https://s3cret@pacs"])
def test_credentials_in_the_url_are_refused_and_not_repeated(url, make_studies_of):
    with pytest.raises(SettingsError, match=r"MONAI_LABEL_DATASTORE_PASSWORD") as caught:
        make_studies_of(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://pacs/x", "http:///x", "http://pacs/x?key=1"])
def test_urls_of_other_kinds_are_refused(url, make_studies_of):
    with pytest.raises(SettingsError, match=r"http\(s\)://host"):
        make_studies_of(url)


def test_a_label_is_stored_once_and_a_refused_one_is_told(pacs, make_series, make_studies_of):
    studies = make_studies_of(pacs)
    (instance,) = make_series(slices(1), STRAIGHT, Modality="SEG")
    for _ in range(2):
        studies.store(instance)
    assert requests.get(f"{pacs.removesuffix('/dicom-web')}/statistics", timeout=10).json()["CountInstances"] == 1
    (homeless,) = make_series(slices(1), STRAIGHT, Modality="SEG", StudyInstanceUID="")
    with pytest.raises(StoreError, match=r"did not take the label"):
        studies.store(homeless)


def test_headers_hold_no_pixels(pacs, make_series, make_studies_of):
    (uid,) = stow(pacs, make_series(slices(3), STRAIGHT))
    headers = make_studies_of(pacs).headers(uid)
    assert {header.SeriesInstanceUID for header in headers} == {uid}
    assert len({header.SOPInstanceUID for header in headers}) == 3
    assert not any("PixelData" in header for header in headers)


def test_images_enter_a_pacs_by_dicom_alone(make_studies_of, tmp_path):
    with pytest.raises(RequestError, match=r"send it the image by DICOM"):
        make_studies_of("http://127.0.0.1:1/x").add("new", tmp_path / "a.png")


def test_neither_logs_nor_the_console_name_a_patient(pacs, make_series, make_studies_of, caplog, recwarn):
    series = make_series(slices(3), STRAIGHT, PatientName="Onename", PatientBirthDate="not a date")
    (uid,) = stow(pacs, series)
    caplog.clear()
    recwarn.clear()
    caplog.set_level("INFO")
    studies = make_studies_of(pacs)
    studies.scan()
    studies.file(f"{uid}.nii.gz")
    studies.headers(uid)
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "3 instances" in said
    for identifier in ("Onename", "P-4711", "not a date", uid):
        assert identifier not in said


def test_a_pacs_that_takes_a_connection_and_never_answers_is_given_up(make_studies_of, monkeypatch):
    monkeypatch.setattr(dicomweb, "READ_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StoreError, match=r"cannot reach the PACS at .* \(ReadTimeout\)"):
            make_studies_of(url).scan()
