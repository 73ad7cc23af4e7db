"""Folders and files that cannot be a ledger."""

import errno
import re
import shutil
from pathlib import Path

import pytest

from samcorrect.lib.errors import StoreError
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records.base import TURN_NAME
from samcorrect.lib.store.studies import ImageFile


def test_a_file_that_is_no_ledger_is_a_store_error_and_is_left_as_it_is(tmp_path):
    path = tmp_path / LEDGER_NAME
    path.write_bytes(b"I am a text file, not a database. " * 100)
    with pytest.raises(StoreError, match=r"cannot open the ledger in .*: file is not a database\. Give .* --state"):
        Ledger(tmp_path)
    assert path.read_bytes().startswith(b"I am a text file")


def test_a_state_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for state in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/samcorrect")):
        with pytest.raises(StoreError, match=f"cannot open the ledger in {state}"):
            Ledger(state)


def test_a_folder_in_the_place_of_the_ledger_is_a_store_error(tmp_path):
    (tmp_path / LEDGER_NAME).mkdir()
    with pytest.raises(StoreError, match="unable to open database file"):
        Ledger(tmp_path)


@pytest.mark.parametrize("name", ["what?mode=ro", "100%25", "a b#c", "ü"])
def test_any_name_of_the_state_folder_will_do(tmp_path, name):
    ledger = Ledger(tmp_path / name)
    ledger.sync_images([ImageFile("a", "a.png", "a")])
    ledger.close()
    assert (tmp_path / name / LEDGER_NAME).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_who_may_not_write_the_state_folder_is_told_who_may(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "state")
    lock, open_file = tmp_path / "state" / TURN_NAME, Path.open

    def refuse(path, *args, **options):  # root, who may run this, is refused nothing
        if path == lock:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    told = f"cannot write {lock}: Permission denied. Run this as {tmp_path.owner()}, who owns the state folder"
    with pytest.raises(StoreError, match=f"^{re.escape(told)}$"):
        ledger.sync_images([ImageFile("a", "a.png", "a")])
    assert ledger.image_ids() == []


def test_a_ledger_that_breaks_while_it_is_open_is_a_store_error(tmp_path):
    ledger = Ledger(tmp_path / "state")
    ledger.close()
    shutil.rmtree(ledger.state_dir)
    with pytest.raises(StoreError, match=f"the ledger in {ledger.state_dir} cannot be used"):
        ledger.images()
