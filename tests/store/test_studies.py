"""Which files of a studies folder are images, and what they are called."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from samcorrect.lib.errors import RequestError, StoreError
from samcorrect.lib.store import studies as studies_module
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.image_ids import check_image_id
from samcorrect.lib.store.studies import LocalStudies, require_images

# Longer than the tick of a file system's time stamps.
TICK_S = 0.05


def test_images_are_listed_by_their_path_without_the_suffix_in_order_of_id(make_studies):
    studies = make_studies("b.png", "a.jpg", "sub/deeper/c.jpeg", "sub.png", "a b.PNG")
    (studies / "notes.txt").write_text("no image")
    (studies / "v.nii.gz").write_bytes(b"x")
    (studies / "w.nii").write_bytes(b"x")
    (studies / "x.nrrd").write_bytes(b"x")
    found, refused = LocalStudies(studies).scan()
    assert [image.id for image in found] == ["a", "a b", "b", "sub", "sub/deeper/c", "v", "w", "x"]
    assert found[4].path == "sub/deeper/c.jpeg"
    assert refused == []


def test_an_empty_folder_holds_no_images_and_that_is_said_with_the_file_types(tmp_path):
    assert LocalStudies(tmp_path).scan() == ([], [])
    with pytest.raises(StoreError, match=r"no images in .*reads \.nii\.gz, \.nii, \.nrrd, \.png, \.jpg, \.jpeg"):
        require_images([], str(tmp_path))


@pytest.mark.parametrize("name", ["gone", "file"])
def test_a_missing_folder_and_a_file_in_its_place_are_store_errors(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=f"studies folder .*{name} does not exist"):
        LocalStudies(tmp_path / name).scan()


def test_hidden_folders_the_hosts_labels_and_the_state_folder_are_passed_over(make_studies):
    studies = make_studies(
        "a.png", ".hidden/b.png", ".c.png", "labels/final/a.png", "x/state/labels/a/1.png", "x/.y/d.png"
    )
    (studies / "x" / "state" / LEDGER_NAME).touch()
    found, refused = LocalStudies(studies).scan()
    assert [image.id for image in found] == ["a"]
    assert refused == []


def test_a_folder_that_cannot_be_listed_is_refused_and_the_others_are_read(make_studies, monkeypatch):
    """`lost+found` of a data disk; root may list every folder, so the refusal is played."""
    folder = make_studies("a.png", "lost+found/b.png", "ward/c.png")
    list_folder, closed = os.scandir, {folder / "lost+found"}

    def scandir(path):
        if Path(path) in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(studies_module, "SETTLED_NS", 0)
    time.sleep(TICK_S)
    studies = LocalStudies(folder)
    for _ in range(2):
        found, refused = studies.scan()
        assert [image.id for image in found] == ["a", "ward/c"]
        assert refused == [("lost+found/", "a folder that cannot be listed: Permission denied")]
    assert not studies.has_changed()
    time.sleep(TICK_S)
    closed.clear()
    (folder / "lost+found").chmod(0o755)
    assert studies.has_changed()
    assert [image.id for image in studies.scan()[0]] == ["a", "lost+found/b", "ward/c"]
    closed.add(folder)
    with pytest.raises(StoreError, match=f"the studies folder {folder} cannot be listed: Permission denied"):
        LocalStudies(folder).scan()


def test_a_folder_named_labels_further_down_is_an_ordinary_one(make_studies):
    found, _ = LocalStudies(make_studies("case/labels/a.png")).scan()
    assert [image.id for image in found] == ["case/labels/a"]


def test_links_that_leave_the_folder_are_refused_and_links_within_are_images(make_studies, tmp_path):
    studies = make_studies("a.png", "sub/b.png")
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(studies / "a.png", outside / "secret.png")
    (studies / "link.png").symlink_to(outside / "secret.png")
    (studies / "relative.png").symlink_to("../outside/secret.png")
    (studies / "folder").symlink_to(outside)
    (studies / "dangling.png").symlink_to("nowhere.png")
    (studies / "loop.png").symlink_to("loop.png")
    (studies / "within.png").symlink_to("sub/b.png")
    found, refused = LocalStudies(studies).scan()
    assert [image.id for image in found] == ["a", "sub/b", "within"]
    assert refused == [(name, "a link that leaves the studies folder") for name in ("link.png", "relative.png")]


def test_of_two_files_with_one_id_the_first_by_suffix_is_the_image_in_a_scan_and_by_its_name(make_studies):
    studies = make_studies("a.jpg", "a.png", "b.PNG", "b.png", "sub/c.JPG", "sub/c c.png", "d.Png")
    (studies / "a.nii.gz").write_bytes(b"x")
    (studies / "sub" / "c.NRRD").write_bytes(b"x")
    local = LocalStudies(studies)
    found, refused = local.scan()
    assert [image.path for image in found] == ["a.nii.gz", "b.PNG", "d.Png", "sub/c.NRRD", "sub/c c.png"]
    assert refused == [
        ("a.jpg", "has the same id as a.nii.gz; rename one of them"),
        ("a.png", "has the same id as a.nii.gz; rename one of them"),
        ("b.png", "has the same id as b.PNG; rename one of them"),
        ("sub/c.JPG", "has the same id as sub/c.NRRD; rename one of them"),
    ]
    assert [local.find(image.id) for image in found] == found
    assert local.find("sub") is local.find("sub/cc") is local.find("nowhere/a") is None


def test_names_with_spaces_and_common_signs_are_images_and_others_are_refused_by_name(make_studies):
    studies = make_studies(
        "left lung (1).png", "p@1+2=x.png", "lunge_ü.png", "肺.png", "a..b.png", "end .png", "-dash.png", "q'.png"
    )
    (studies / os.fsdecode(b"latin_\xfc.png")).write_bytes(b"x")
    (studies / "line\nbreak.png").write_bytes(b"x")
    found, refused = LocalStudies(studies).scan()
    assert [image.id for image in found] == ["left lung (1)", "p@1+2=x"]
    names = {name for name, _ in refused}
    assert names == {
        "lunge_ü.png",
        "肺.png",
        "a..b.png",
        "end .png",
        "-dash.png",
        "q'.png",
        "latin_\ufffd.png",
        "line\nbreak.png",
    }
    assert all("is not an image id" in reason for _, reason in refused)


@pytest.mark.parametrize("image_id", ["a", "A_9", "sub/case 1", "x.nii", "a" * 255])
def test_an_id_that_can_name_an_image_is_given_back(image_id):
    assert check_image_id(image_id) == image_id


@pytest.mark.parametrize(
    "image_id",
    [
        "",
        "..",
        "../x",
        "a/../x",
        "a/..",
        "/etc/passwd",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a.",
        "a ",
        "a\n",
        "a\x00b",
        "a\\b",
        "a:b",
        "%2e%2e/x",
        "~root",
        "a" * 256,
        "ü",
    ],
)
def test_an_id_that_climbs_hides_or_is_malformed_is_refused(image_id):
    with pytest.raises(RequestError, match="is not an image id"):
        check_image_id(image_id)


def test_the_order_does_not_depend_on_the_order_of_creation(make_studies):
    names = [f"case_{number}.png" for number in (10, 9, 2, 1)]
    found, _ = LocalStudies(make_studies(*names)).scan()
    assert [image.id for image in found] == ["case_1", "case_10", "case_2", "case_9"]
    assert LocalStudies(make_studies(*names[::-1])).scan()[0] == found
