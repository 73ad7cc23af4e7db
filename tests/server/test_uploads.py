import io
import stat
import tempfile

import pytest
from fastapi import UploadFile

from samcorrect.lib.errors import LabelError, RequestError, StoreError
from samcorrect.lib.server.uploads import id_of_upload, only_upload, private_upload


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def upload(name, content=b"content"):
    return UploadFile(io.BytesIO(content), filename=name)


@pytest.mark.parametrize("name", ["label.nii.gz", "/home/ann/label.nii.gz", "..\\..\\label.NII.GZ", "a.b.nii.gz"])
def test_an_upload_lies_in_a_folder_of_its_own_under_a_name_of_ours(temporary, name):
    with private_upload(upload(name)) as path:
        assert path.name == "upload.nii.gz"
        assert path.read_bytes() == b"content"
        assert path.parent.parent == temporary
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(temporary.iterdir()) == []


def test_a_refused_upload_is_gone(temporary):
    with pytest.raises(LabelError, match="refused"), private_upload(upload("a.png")):
        raise LabelError("refused")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a", "a.exe", "a.png.exe", "a.png\0", "a.nii.gz/x"])
def test_other_file_types_are_refused_before_anything_is_written(temporary, name):
    with pytest.raises(RequestError, match="ends in one of"), private_upload(upload(name)):
        pass
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_named(temporary):
    class Full(io.BytesIO):
        def read(self, *_args):
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"), private_upload(UploadFile(Full(), filename="a.png")):
        pass
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("name", "image_id"), [("a.png", "a"), ("a.b.nii.gz", "a.b"), ("a", "a")])
def test_the_id_of_an_upload_is_its_name(name, image_id):
    assert id_of_upload(upload(name)) == image_id


@pytest.mark.parametrize("name", ["../a.png", "C:\\a.png", "/a.png"])
def test_a_name_with_folders_is_no_id(name):
    with pytest.raises(RequestError, match="give the image an id"):
        id_of_upload(upload(name))


def test_one_file_is_taken():
    one = upload("a.png")
    assert only_upload([one], "file") is one
    with pytest.raises(RequestError, match="`file` is one file; got 2"):
        only_upload([one, one], "file")
