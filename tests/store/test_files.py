"""Files are written whole or not at all, and hashed where they changed."""

import hashlib
import os
from pathlib import Path

import pytest

from samcorrect.lib.errors import ImageError, StoreError
from samcorrect.lib.store.files import image_sha256, write_atomically, write_bytes_atomically


def test_a_writer_that_fails_leaves_nothing_behind_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "folder" / "a.bin"
    write_bytes_atomically(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half of the new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_full_disk_is_a_store_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes_atomically(path, b"old")

    def write_to_full_disk(_temporary: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"new")

    with pytest.raises(StoreError, match=r"cannot write a\.bin in .*: No space left on device"):
        write_atomically(path, write_to_full_disk)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write a\.bin"):
        write_bytes_atomically(tmp_path / "file" / "a.bin", b"new")


def test_a_scratch_folder_holds_the_half_written_file(tmp_path):
    scratch, path = tmp_path / "scratch", tmp_path / "folder" / "a.bin"
    scratch.mkdir()

    def write(temporary: Path) -> None:
        assert temporary.parent == scratch
        assert list(path.parent.iterdir()) == []
        temporary.write_bytes(b"new")

    write_atomically(path, write, scratch_dir=scratch)
    assert path.read_bytes() == b"new"
    assert list(scratch.iterdir()) == []


def test_an_image_is_hashed_again_only_where_its_size_or_time_of_change_are_others(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    state = path.stat()
    assert image_sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert image_sha256(path) == hashlib.sha256(b"one").hexdigest()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    assert image_sha256(path) == hashlib.sha256(b"two").hexdigest()
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.png cannot be read: No such file"):
        image_sha256(path)
