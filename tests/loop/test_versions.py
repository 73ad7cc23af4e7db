"""The history of a label: listing it, going back, and what lies between two versions."""

import numpy as np
import pytest

from samcorrect.lib.errors import LabelError, RequestError, UnknownImageError, UnknownLabelError
from samcorrect.lib.loop.versions import diff_versions, list_versions, restore_version
from samcorrect.lib.store.schema import QualityRow
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

SHAPE = (96, 80, 1)


def label_of(n_columns: int, *, index: int = 7) -> np.ndarray:
    """A block of index `index`, `n_columns` x 10 voxels."""
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[:n_columns, :10] = index
    return label_map


@pytest.fixture
def workspace(phantom_workspace):
    return phantom_workspace()


def save(workspace, label_map, tag="original", score=None, **more):
    row = workspace.store.save_label_map("case0", label_map, tag=tag, maker="sam:test", affine=LPS_TO_RAS, **more)
    if score is not None:
        quality = QualityRow(label_version_id=row.id, structure_index=0, score=score, created_at=1.0)
        workspace.store.ledger.set_quality(row.id, [quality])
    return row


def submit(workspace, tmp_path, label_map, user, tag="final"):
    write_label_map(tmp_path / f"{user}.nii.gz", label_map, LPS_TO_RAS)
    return workspace.store.submit_label("case0", tmp_path / f"{user}.nii.gz", tag=tag, user=user)


def test_every_version_is_listed_with_what_made_it(workspace, tmp_path):
    first = save(
        workspace, label_of(4), score=0.5, model_digest="d1", runtime="torch-bf16", prompts={"box": [1, 2, 3, 4]}
    )
    second = save(workspace, label_of(5), "corrected", parent_id=first.id, round_number=2)
    third = submit(workspace, tmp_path, label_of(6), "anna")
    told = list_versions(workspace, "case0")
    assert [row["version"] for row in told] == [first.id, second.id, third.id]
    assert [row["is_best"] for row in told] == [False, False, True]
    assert [row["parent"] for row in told] == [None, first.id, second.id]
    assert [row["score"] for row in told] == [0.5, None, None]
    keys = ("tag", "maker", "model_digest", "runtime", "prompts", "round")
    assert [told[0][key] for key in keys] == ["original", "sam:test", "d1", "torch-bf16", {"box": [1, 2, 3, 4]}, 0]
    assert (told[1]["round"], told[2]["maker"]) == (2, "user:anna")
    assert list_versions(workspace, "case1") == []


def test_a_wrong_correction_is_undone_and_nothing_is_taken_away(workspace):
    first = save(workspace, label_of(4), score=0.5, runtime="torch-bf16")
    save(workspace, label_of(5), "corrected", score=0.9)
    restored = restore_version(workspace, "case0", first.id, user="anna")
    best = workspace.store.ledger.best_label("case0")
    assert (best.id, best.parent_id, best.tag, best.maker) == (restored.id, first.id, "original", "sam:test")
    assert (best.runtime, best.info["restored_by"]) == ("torch-bf16", "anna")
    assert np.array_equal(workspace.store.read_label(best), label_of(4))
    assert workspace.store.ledger.quality(best.id)[0].score == 0.5
    assert workspace.store.ledger.image("case0").queue_score == 0.5
    assert len(list_versions(workspace, "case0")) == 3


def test_a_person_goes_back_to_a_persons_label_and_nothing_of_a_machine_outranks_it(workspace, tmp_path):
    machine = save(workspace, label_of(4))
    annas = submit(workspace, tmp_path, label_of(5), "anna")
    bens = submit(workspace, tmp_path, label_of(6), "ben")
    with pytest.raises(LabelError, match=f"nothing outranks version {bens.id}, which ben approved"):
        restore_version(workspace, "case0", machine.id, user="carl")
    assert workspace.store.ledger.best_label("case0").id == bens.id
    restored = restore_version(workspace, "case0", annas.id, user="carl")
    best = workspace.store.ledger.best_label("case0")
    assert (best.id, best.tag, best.maker, best.parent_id) == (restored.id, "final", "user:carl", annas.id)
    assert workspace.store.label_path(best).read_bytes() == (tmp_path / "anna.nii.gz").read_bytes()


def test_a_version_with_a_tag_of_a_viewers_own_cannot_be_the_best_label(workspace, tmp_path):
    viewers = submit(workspace, tmp_path, label_of(5), "anna", tag="version_1")
    with pytest.raises(LabelError, match=f"version {viewers.id} has the tag 'version_1', a viewer's own"):
        restore_version(workspace, "case0", viewers.id, user="anna")
    assert [row["version"] for row in list_versions(workspace, "case0")] == [viewers.id]


def test_nobody_without_a_name_restores_a_version(workspace, tmp_path):
    annas = submit(workspace, tmp_path, label_of(5), "anna")
    with pytest.raises(RequestError, match="the name has 1 to 200 characters; got 0"):
        restore_version(workspace, "case0", annas.id, user=" ")
    assert workspace.store.ledger.best_label("case0").id == annas.id


def test_a_version_whose_file_was_changed_is_not_restored(workspace):
    first = save(workspace, label_of(4))
    save(workspace, label_of(5))
    workspace.store.label_path(first).write_bytes(b"x")
    with pytest.raises(OSError, match="was changed on the disk; restore it from a backup"):
        restore_version(workspace, "case0", first.id, user="anna")


def test_the_difference_of_two_versions_by_hand(workspace):
    before = label_of(4)
    after = label_of(6)
    after[70:72, :5] = 3
    one, other = save(workspace, before), save(workspace, after)
    # 40 voxels in both, 60 after: Dice 80 / 100. Pixels of a PNG are 1 mm.
    expected = {"structure": "right blob", "index": 7, "dice": 0.8, "n_added_vox": 20, "n_removed_vox": 0}
    new = {"structure": "left blob", "index": 3, "dice": 0.0, "n_added_vox": 10, "n_removed_vox": 0}
    assert diff_versions(workspace, "case0", one.id, other.id) == [
        new | {"changed_mm3": 10.0},
        expected | {"changed_mm3": 20.0},
    ]
    assert diff_versions(workspace, "case0", other.id, one.id)[1]["n_removed_vox"] == 20
    assert [row["dice"] for row in diff_versions(workspace, "case0", one.id, one.id)] == [1.0]
    empty = save(workspace, np.zeros(SHAPE, np.uint8))
    assert diff_versions(workspace, "case0", empty.id, empty.id) == []


def test_versions_of_other_images_and_unknown_ones_are_refused_by_name(workspace):
    mine = save(workspace, label_of(4))
    other = workspace.store.save_label_map("case1", label_of(4), tag="original", maker="x", affine=LPS_TO_RAS)
    with pytest.raises(
        LabelError, match=rf"version {other.id} is not of the image 'case0'; its versions are {mine.id}"
    ):
        restore_version(workspace, "case0", other.id, user="anna")
    with pytest.raises(UnknownLabelError, match="no label version 999"):
        diff_versions(workspace, "case0", mine.id, 999)
    with pytest.raises(UnknownImageError, match="no image 'nobody'"):
        list_versions(workspace, "nobody")
