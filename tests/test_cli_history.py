"""The commands that show, compare and bring back what was: versions, restore, diff, backup, restore-backup."""

import json

import numpy as np
import pytest

from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS


@pytest.fixture
def studies(make_studies):
    """Two versions, 1 and 2, of the label of ward/anna: 16 voxels, then 24."""
    folder = make_studies("ward/anna.png", "b.png")
    store = LabelStore(*open_studies(folder, None))
    for n_rows in (4, 6):
        label_map = np.zeros((16, 12, 1), np.uint8)
        label_map[:n_rows, :4] = 1
        store.save_label_map("ward/anna", label_map, tag="original", maker="sam:test", affine=LPS_TO_RAS)
    store.ledger.close()
    return folder


def test_versions_are_listed_for_people_and_for_programs(run, studies):
    code, told, _ = run("versions", "ward/anna", "--studies", studies)
    assert code == 0
    lines = [line.split() for line in told.splitlines()]
    assert lines[0][:2] == ["version", "tag"]
    assert lines[1][:5] == ["1", "original", "not", "scored", "sam:test"]
    assert lines[2][:3] == ["2", "best", "original"]
    rows = json.loads(run("versions", "ward/anna", "--json", "--studies", studies)[1])
    assert [(row["version"], row["is_best"]) for row in rows] == [(1, False), (2, True)]
    assert run("versions", "b", "--studies", studies)[:2] == (0, "b has no label yet\n")


def test_an_old_version_is_compared_and_brought_back(run, studies):
    # 16 voxels in both, 24 after: Dice 32 / 40.
    code, told, _ = run("diff", "ward/anna", "1", "2", "--studies", studies)
    assert (code, told.split()) == (
        0,
        ["label", "1", "Dice", "0.800", "8", "voxels", "added,", "0", "removed", "(8", "mm3)"],
    )
    rows = json.loads(run("diff", "ward/anna", "2", "1", "--json", "--studies", studies)[1])
    assert [(row["n_added_vox"], row["n_removed_vox"]) for row in rows] == [(0, 8)]
    code, told, _ = run("restore", "ward/anna", "1", "--by", "Dr. Who", "--studies", studies)
    assert (code, told) == (0, "version 1 of ward/anna is the best label again, as version 3 (original)\n")
    assert run("diff", "ward/anna", "1", "3", "--studies", studies)[1].split()[3] == "1.000"


def test_a_backup_and_its_return(run, studies, tmp_path):
    code, told, _ = run("backup", tmp_path / "b.tar", "--studies", studies)
    assert (code, told) == (
        0,
        f"2 label file(s), the ledger and the models are in {tmp_path / 'b.tar'}; the images are not\n",
    )
    code, told, _ = run("restore-backup", tmp_path / "b.tar", "--studies", studies, "--state", tmp_path / "new")
    assert (code, told) == (0, f"2 label file(s), the ledger and the models are back in {tmp_path / 'new'}\n")
    again = json.loads(run("versions", "ward/anna", "--json", "--studies", studies, "--state", tmp_path / "new")[1])
    assert again == json.loads(run("versions", "ward/anna", "--json", "--studies", studies)[1])


def test_a_damaged_label_is_named_and_the_exit_code_says_so(run, studies, tmp_path):
    file = next((studies / ".samcorrect" / "labels").rglob("*.nii.gz"))
    file.write_bytes(b"x")
    code, told, _ = run("backup", tmp_path / "b.tar", "--studies", studies)
    assert code == 3
    assert f"set aside: labels/ward/anna/{file.name}: gone or changed on the disk" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["versions", "nobody"], "no image 'nobody' in the store"),
        (["versions", "../../etc/passwd"], "'../../etc/passwd' is not an image id"),
        (["restore", "ward/anna", "99", "--by", "x"], "no label version 99 in the ledger"),
        (["restore", "b", "1", "--by", "x"], "version 1 is not of the image 'b'; its versions are none"),
        (["diff", "ward/anna", "1", "7"], "no label version 7 in the ledger"),
        (["restore-backup", "nowhere.tar"], "is not empty, and nothing is overwritten: give another --state"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(run, studies, words, message):
    code, told, said = run(*words, "--studies", studies)
    assert (code, told) == (1, "")
    assert message in said
    assert len(said.splitlines()) == 1
