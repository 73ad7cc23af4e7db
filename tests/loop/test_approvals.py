"""Which approvals calibrate the scores, and what they say."""

import shutil

import numpy as np
import pytest

from samcorrect.lib.core.selection import WHY_AUDIT, WHY_RANDOM, WHY_WORST
from samcorrect.lib.loop.approvals import approved_pairs
from samcorrect.lib.loop.reviews import reject_label
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.store.image_ids import log_name
from samcorrect.lib.store.schema import QualityRow
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

SHAPE = (96, 80, 1)


def label_of(n_rows: int) -> np.ndarray:
    """`n_rows` x 10 voxels of the structure 7 and 10 voxels of the structure 3."""
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[:n_rows, :10] = 7
    label_map[90, :10] = 3
    return label_map


@pytest.fixture
def own_studies(phantoms, tmp_path):
    """A copy of the phantoms, which may lose images."""
    return shutil.copytree(phantoms.images, tmp_path / "studies")


@pytest.fixture
def live(phantoms, own_studies, tmp_path):
    """A function that lets a machine make and score a label of 4 rows and a person, served for a reason, submit one."""
    workspace = open_workspace(own_studies, phantoms.settings.model_copy(update={"state": tmp_path / "state"}))
    ledger = workspace.store.ledger

    def one(image_id: str, why: str | None, n_rows: int, score: float | None = 0.5, tag: str = "original"):
        made = workspace.store.save_label_map(image_id, label_of(4), tag=tag, maker="sam", affine=LPS_TO_RAS)
        if score is not None:
            rows = [
                QualityRow(label_version_id=made.id, structure_index=i, score=score, created_at=1.0) for i in (0, 7)
            ]
            ledger.set_quality(made.id, rows)
        if why is not None:
            assert ledger.take_lease(image_id, "anna", now=1.0, lease_s=60, why=why)
        write_label_map(tmp_path / "hers.nii.gz", label_of(n_rows), LPS_TO_RAS)
        workspace.store.submit_label(image_id, tmp_path / "hers.nii.gz", tag="final", user="anna")

    yield workspace, one
    ledger.close()


def test_labels_served_at_random_count_with_the_score_they_had(live):
    workspace, one = live
    one("case0", WHY_AUDIT, 4, 0.9)
    one("case1", WHY_RANDOM, 6, 0.3)
    right, left = approved_pairs(workspace)
    # 40 voxels before; 40 and 60 after: Dice 1 and 80 / 100. The structure 3 was not scored.
    np.testing.assert_allclose(right.scores, [0.9, 0.3])
    np.testing.assert_allclose(right.dice, [1.0, 0.8])
    np.testing.assert_array_equal(left.scores, [np.nan, np.nan])
    np.testing.assert_allclose(left.dice, [1.0, 1.0])


def test_scores_of_a_scoring_that_is_not_written_yet_come_before_those_of_the_ledger(live):
    workspace, one = live
    one("case0", WHY_AUDIT, 4, 0.9)
    one("case1", WHY_AUDIT, 6, 0.3)
    seen = workspace.store.ledger.latest_labels()["case0", "original"]
    right, left = approved_pairs(workspace, {seen.id: np.array([0.4, 0.2])})
    np.testing.assert_allclose(right.scores, [0.4, 0.3])
    np.testing.assert_array_equal(left.scores, [0.2, np.nan])


def test_an_empty_label_that_a_person_agrees_with_is_a_right_one(live):
    workspace, one = live
    one("case0", WHY_AUDIT, 0)
    right, _ = approved_pairs(workspace)
    np.testing.assert_allclose(right.dice, [0])
    empty = np.zeros(SHAPE, np.uint8)
    made = workspace.store.save_label_map("case1", empty, tag="original", maker="sam", affine=LPS_TO_RAS)
    workspace.store.ledger.set_quality(
        made.id, [QualityRow(label_version_id=made.id, structure_index=i, score=0.9, created_at=1.0) for i in (0, 7)]
    )
    assert workspace.store.ledger.take_lease("case1", "anna", now=1.0, lease_s=60, why=WHY_AUDIT)
    workspace.store.submit_label("case1", workspace.store.label_path(made), tag="final", user="anna")
    right, _ = approved_pairs(workspace)
    np.testing.assert_allclose(right.dice, [0, 1])


def test_labels_that_had_been_corrected_are_told_apart(live):
    workspace, one = live
    one("case0", WHY_AUDIT, 4)
    one("case1", WHY_AUDIT, 6, tag="corrected")
    right, left = approved_pairs(workspace)
    assert right.is_corrected.tolist() == left.is_corrected.tolist() == [False, True]


def test_labels_served_worst_first_imported_or_never_scored_do_not_count(live):
    workspace, one = live
    one("case0", WHY_WORST, 4)
    one("case1", None, 4)
    one("case2", WHY_AUDIT, 4, score=None)
    assert [(len(pairs.scores), len(pairs.dice)) for pairs in approved_pairs(workspace)] == [(0, 0), (0, 0)]


def test_labels_whose_image_is_gone_or_cannot_be_read_are_left_out(live, own_studies, caplog):
    workspace, one = live
    for image_id, n_rows in (("case0", 4), ("case1", 6), ("case2", 4)):
        one(image_id, WHY_AUDIT, n_rows)
    (own_studies / "case0.png").unlink()
    (own_studies / "case2.png").write_bytes(b"")
    workspace.store.rescan()
    right, left = approved_pairs(workspace)
    np.testing.assert_allclose(right.dice, [0.8])
    assert [len(values) for values in (left.dice, left.scores, left.is_corrected)] == [1, 1, 1]
    version = workspace.store.ledger.latest_label("case2", "final").id
    told = f"the approved label {version} of image {log_name('case2')} calibrates nothing: ImageError"
    assert [record.getMessage() for record in caplog.records] == [told]


def submit(workspace, image_id: str, n_rows: int, tmp_path) -> None:
    write_label_map(tmp_path / "again.nii.gz", label_of(n_rows), LPS_TO_RAS)
    workspace.store.submit_label(image_id, tmp_path / "again.nii.gz", tag="final", user="ben")


def test_what_a_person_submits_again_counts_once_and_as_it_is_now(live, tmp_path):
    workspace, one = live
    one("case0", WHY_AUDIT, 9, 0.9)
    submit(workspace, "case0", 6, tmp_path)
    right, _ = approved_pairs(workspace)
    np.testing.assert_allclose(right.scores, [0.9])
    np.testing.assert_allclose(right.dice, [0.8])


def test_a_rejected_label_counts_no_more_until_another_is_submitted(live, tmp_path):
    workspace, one = live
    one("case0", WHY_AUDIT, 0, 0.9)
    one("case1", WHY_AUDIT, 4)
    reject_label(workspace, "case0", reviewer="ben", reason="empty by accident")
    right, _ = approved_pairs(workspace)
    np.testing.assert_allclose((right.scores, right.dice), [[0.5], [1.0]])
    submit(workspace, "case0", 6, tmp_path)
    right, _ = approved_pairs(workspace)
    # With the score that the machine's label had when it was served at random.
    np.testing.assert_allclose((right.scores, right.dice), [[0.9, 0.5], [0.8, 1.0]])


def test_labels_of_an_image_that_is_another_one_by_now_do_not_count(live, monkeypatch):
    workspace, one = live
    one("case0", WHY_AUDIT, 4)
    one("case1", WHY_AUDIT, 6)
    studies = workspace.store.studies
    file_of = studies.file
    monkeypatch.setattr(studies, "file", lambda path: file_of(path.replace("case0", "case2")))
    right, _ = approved_pairs(workspace)
    np.testing.assert_allclose(right.dice, [0.8])
