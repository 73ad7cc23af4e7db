"""Scoring what changed by the peers of the last scoring."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import shift

from samcorrect.lib.core.calibration import MIN_APPROVED
from samcorrect.lib.core.selection import WHY_AUDIT
from samcorrect.lib.loop import rescoring, students
from samcorrect.lib.loop.approvals import approved_pairs
from samcorrect.lib.loop.cohort import best_labels
from samcorrect.lib.loop.peer_context import CONTEXT_NAME
from samcorrect.lib.loop.rescoring import is_too_much, score_store
from samcorrect.lib.loop.workspace import Workspace, open_workspace
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

FEW = {"shares_trainings": False, "student_steps": 12}
CHANGED = ("case1", "case4", "case7")
COLUMNS = ("id", "score", "expected_dice", "expected_dice_low", "expected_dice_high", "posterior_good", "n_approved")


@pytest.fixture(autouse=True)
def share(monkeypatch):
    """Three of ten labels may change."""
    monkeypatch.setattr(rescoring, "MAX_CHANGED_SHARE", 0.3)


@pytest.fixture
def n_trainings(monkeypatch) -> list[int]:
    """One entry for every training that is begun."""
    begun: list[int] = []
    train = students.train_network

    def counted(*arguments, **options):
        begun.append(1)
        return train(*arguments, **options)

    monkeypatch.setattr(students, "train_network", counted)
    return begun


def quality_of(workspace: Workspace) -> dict[str, dict[int, tuple]]:
    """Image id to the columns, features and reasons of its best label's quality, by structure index."""
    rows = {i: workspace.store.ledger.quality(label.id) for i, label in best_labels(workspace).items()}
    return {
        image_id: {k: (*(getattr(q, c) for c in COLUMNS), q.features, q.reasons) for k, q in of.items()}
        for image_id, of in rows.items()
    }


def change(workspace: Workspace, image_id: str, by_vox: int) -> None:
    """Enter the best label of an image once more, moved along the second axis."""
    store = workspace.store
    moved = shift(store.read_label(store.ledger.best_label(image_id)), (0, by_vox, 0), order=0)
    store.save_label_map(image_id, moved, tag="corrected", maker="test", affine=LPS_TO_RAS)


def test_only_what_changed_is_scored_and_nothing_is_trained(labelled, n_trainings):
    workspace = labelled(**FEW)
    told = score_store(workspace)
    assert (told["n_scored"], told["n_rescored"], told["is_full"]) == (10, 10, True)
    assert len(n_trainings) == 4
    before = quality_of(workspace)
    for image_id in CHANGED:
        change(workspace, image_id, 25)

    told = score_store(workspace)

    assert (told["n_scored"], told["n_rescored"], told["is_full"], told["has_peers"]) == (10, 3, False, True)
    assert len(n_trainings) == 4
    after = quality_of(workspace)
    assert {i for i in after if after[i] == before[i]} == set(before) - set(CHANGED)
    assert all(set(after[i]) == {0, 3, 7} for i in CHANGED)
    for image_id in CHANGED:  # 25 of 80 columns away nothing overlaps as it did
        old, new = (np.array([of[image_id][k][-2]["peer_dice"] for k in (3, 7)], float) for of in (before, after))
        assert (new <= old).all()
        assert (new < old).any()
    whole = [of[0][1] for of in after.values()]
    assert told["mean_score"] == pytest.approx(np.mean(whole), abs=1e-4)


def test_nothing_new_scores_nothing_and_full_scores_all(labelled, n_trainings):
    workspace = labelled(**FEW)
    first = score_store(workspace)
    before = quality_of(workspace)
    told = score_store(workspace)
    assert (told["n_rescored"], told["is_full"]) == (0, False)
    assert {k: told[k] for k in ("mean_score", "doubtful_structures")} == {
        k: first[k] for k in ("mean_score", "doubtful_structures")
    }
    assert quality_of(workspace) == before
    told = score_store(workspace, full=True)
    assert (told["n_rescored"], told["is_full"]) == (10, True)
    assert len(n_trainings) == 4  # by the same seed of the same labels: kept


def test_a_label_that_is_entered_again_unchanged_scores_as_it_did(labelled):
    workspace = labelled(**FEW)
    score_store(workspace)
    before = quality_of(workspace)
    for image_id in CHANGED:
        change(workspace, image_id, 0)
    assert score_store(workspace)["n_rescored"] == 3
    after = quality_of(workspace)
    for image_id in CHANGED:
        for index in (0, 3, 7):
            old, new = before[image_id][index], after[image_id][index]
            assert new[1:6] == pytest.approx(old[1:6], abs=0.02)
            assert new[-2] == pytest.approx(old[-2], abs=1e-4)


def test_small_changes_add_up_to_a_full_scoring(labelled):
    workspace = labelled(**FEW)
    score_store(workspace)
    for image_id in ("case1", "case4", "case7"):
        change(workspace, image_id, 5)
        assert not score_store(workspace)["is_full"]
    change(workspace, "case1", 5)  # the same image once more: no further label that the peers did not learn
    assert not score_store(workspace)["is_full"]
    change(workspace, "case8", 5)
    assert score_store(workspace)["is_full"]
    # From here on the peers have learnt all of them.
    change(workspace, "case2", 5)
    assert not score_store(workspace)["is_full"]


def test_more_changes_than_the_share_are_a_full_scoring(labelled):
    workspace = labelled(**FEW)
    score_store(workspace)
    for image_id in (*CHANGED, "case8"):
        change(workspace, image_id, 5)
    assert score_store(workspace)["is_full"]


@pytest.mark.parametrize(("n_labels", "most"), [(8, 2), (39, 9), (40, 10), (100, 10), (124, 12), (10000, 1000)])
def test_ten_submits_are_not_too_much_from_forty_labels_on(monkeypatch, n_labels, most):
    monkeypatch.undo()  # the share that the other tests of this file work with
    assert not is_too_much(most, n_labels)
    assert is_too_much(most + 1, n_labels)


def test_a_few_changes_in_a_small_store_are_no_full_scoring(labelled, monkeypatch):
    monkeypatch.setattr(rescoring, "MAX_CHANGED_SHARE", 0.1)
    workspace = labelled(**FEW)
    score_store(workspace)
    for image_id in CHANGED[:2]:  # more than a tenth, and less than a quarter
        change(workspace, image_id, 5)
    assert not score_store(workspace)["is_full"]
    change(workspace, CHANGED[2], 5)
    assert score_store(workspace)["is_full"]


@pytest.fixture
def own_studies(phantoms, tmp_path):
    """A workspace over a copy of the phantoms with true labels, scored, and the folder of its images."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for source in phantoms.images.iterdir():
        (studies / source.name).write_bytes(source.read_bytes())
    given = phantoms.settings.model_copy(update={"state": tmp_path / "state", "student_steps": 12})
    workspace = open_workspace(studies, given)
    for row in workspace.store.ledger.images():
        add_true_label(workspace, phantoms.labels / f"{row.id}.png", row.id)
    score_store(workspace)
    yield workspace, studies
    workspace.store.ledger.close()


def test_a_new_image_is_scored_by_students_that_do_not_know_it(own_studies, phantoms, n_trainings):
    workspace, studies = own_studies
    n_before = len(n_trainings)
    (studies / "new.png").write_bytes((phantoms.test_images / "test0.png").read_bytes())
    workspace.store.rescan()
    add_true_label(workspace, phantoms.test_labels / "test0.png", "new")

    told = score_store(workspace)

    assert (told["n_scored"], told["n_rescored"], told["is_full"]) == (11, 1, False)
    assert len(n_trainings) == n_before
    assert quality_of(workspace)["new"][0][1] is not None


def test_what_changed_and_cannot_be_read_is_quarantined_and_the_rest_stays(own_studies):
    workspace, studies = own_studies
    change(workspace, "case1", 5)
    (studies / "case1.png").write_bytes(b"")
    before = quality_of(workspace)
    told = score_store(workspace)
    assert (told["n_scored"], told["n_rescored"], told["is_full"]) == (9, 0, False)
    assert [name for name, _ in workspace.store.ledger.quarantined()] == ["case1"]
    assert quality_of(workspace) == {image_id: of for image_id, of in before.items() if image_id != "case1"}


def add_true_label(workspace: Workspace, path, image_id: str) -> None:
    label_map = np.asarray(Image.open(path)).T[:, :, None]
    workspace.store.save_label_map(image_id, label_map, tag="original", maker="test", affine=LPS_TO_RAS)


@pytest.mark.parametrize("fault", ["torn", "no archive", "missing student", "torn student"])
def test_without_a_usable_context_all_is_scored_and_the_log_says_so_once(labelled, caplog, fault):
    workspace = labelled(**FEW)
    score_store(workspace)
    change(workspace, "case1", 5)
    context = workspace.store.state_dir / CONTEXT_NAME
    if fault == "torn":
        context.write_bytes(context.read_bytes()[:-40])
    elif fault == "no archive":
        context.write_bytes(b"peers")
    else:
        student = next((workspace.store.state_dir / "models").glob("*.pt"))
        student.write_bytes(b"x") if fault == "torn student" else student.unlink()

    told = score_store(workspace)

    assert (told["is_full"], told["n_rescored"]) == (True, 10)
    assert caplog.text.count("of the last scoring cannot be used") == 1
    assert not score_store(workspace)["is_full"]


def test_a_context_of_other_settings_is_not_used(labelled, caplog):
    workspace = labelled(**FEW)
    score_store(workspace)
    # How long the student learns decides no score.
    assert not score_store(workspace.with_settings(student_steps=99, judge_steps=12))["is_full"]
    assert score_store(workspace.with_settings(student_steps=13))["is_full"]
    assert "another protocol, model or other settings" in caplog.text


def test_scores_by_the_loss_leave_no_context_behind(labelled):
    workspace = labelled(**FEW)
    score_store(workspace)
    by_loss = workspace.with_settings(preset="huang2023")
    for _ in range(2):
        assert score_store(by_loss)["is_full"]
        assert not (workspace.store.state_dir / CONTEXT_NAME).exists()


def test_enough_audited_approvals_calibrate_the_labels_that_keep_their_scores(labelled, monkeypatch, phantoms):
    monkeypatch.setattr(rescoring, "MAX_CHANGED_SHARE", 1.0)
    workspace = labelled(**FEW)
    score_store(workspace)
    before = quality_of(workspace)
    for number in range(MIN_APPROVED):
        image_id = f"case{number}"
        assert workspace.store.ledger.take_lease(image_id, "anna", now=1.0, lease_s=60, why=WHY_AUDIT)
        workspace.store.submit_label(image_id, phantoms.labels / f"{image_id}.png", tag="final", user="anna")

    told = score_store(workspace)

    assert (told["n_rescored"], told["is_full"]) == (MIN_APPROVED, False)
    old, new = before["case9"], quality_of(workspace)["case9"]
    for index in (0, 3, 7):
        row, was = (dict(zip((*COLUMNS, "features", "reasons"), of[index], strict=True)) for of in (new, old))
        assert (was["n_approved"], row["n_approved"]) == (0, MIN_APPROVED)
        # Eight true labels had a Dice of 1, or nearly: the prior of 12 training steps was far below.
        assert row["expected_dice"] > was["expected_dice"]
        kept = ("id", "score", "posterior_good", "features", "reasons")
        assert [row[name] for name in kept] == [was[name] for name in kept]


def test_new_scores_of_labels_that_people_replaced_are_in_the_log(labelled, phantoms):
    workspace = labelled(**FEW)
    ledger = workspace.store.ledger
    score_store(workspace)
    seen = ledger.best_label("case0")
    assert ledger.take_lease("case0", "anna", now=1.0, lease_s=60, why=WHY_AUDIT)
    # Another label teaches the peers of the next scoring.
    workspace.store.submit_label("case0", phantoms.labels / "case1.png", tag="final", user="anna")
    before = ledger.quality(seen.id)[0].score

    score_store(workspace, full=True)

    assert ledger.quality(seen.id)[0].score != before
    verdict = ledger.verify_audit()
    assert (verdict.differences, verdict.is_whole) == ((), True)


def test_an_approval_that_is_submitted_again_calibrates_anew(labelled, monkeypatch, phantoms, tmp_path):
    monkeypatch.setattr(rescoring, "MAX_CHANGED_SHARE", 1.0)
    workspace = labelled(**FEW)
    score_store(workspace)
    for number in range(MIN_APPROVED):
        image_id = f"case{number}"
        assert workspace.store.ledger.take_lease(image_id, "anna", now=1.0, lease_s=60, why=WHY_AUDIT)
        workspace.store.submit_label(image_id, phantoms.labels / f"{image_id}.png", tag="final", user="anna")
    score_store(workspace)
    before = quality_of(workspace)["case9"]
    write_label_map(tmp_path / "line.nii.gz", np.eye(96, 80, dtype=np.uint8)[:, :, None] * 7, LPS_TO_RAS)
    workspace.store.submit_label("case0", tmp_path / "line.nii.gz", tag="final", user="anna")

    assert not score_store(workspace)["is_full"]

    after = quality_of(workspace)["case9"]
    for index in (0, 3, 7):
        row, was = (dict(zip(COLUMNS, of[index], strict=False)) for of in (after, before))
        assert row["n_approved"] == was["n_approved"] == MIN_APPROVED
        assert row["expected_dice"] != was["expected_dice"]


def test_a_label_that_a_person_replaced_is_scored_by_new_students_too(labelled, phantoms):
    workspace = labelled(**FEW)
    score_store(workspace)
    ledger, store = workspace.store.ledger, workspace.store
    agreed, replaced, ordinary = (ledger.best_label(f"case{number}") for number in (0, 5, 6))
    before = [ledger.quality(label.id)[7] for label in (agreed, replaced, ordinary)]
    for label, path in ((agreed, store.label_path(agreed)), (replaced, phantoms.labels / "case5.png")):
        assert ledger.take_lease(label.image_id, "anna", now=1.0, lease_s=60, why=WHY_AUDIT)
        store.submit_label(label.image_id, path, tag="final", user="anna")

    score_store(workspace.with_settings(seed=1), full=True)

    after = [ledger.quality(label.id)[7] for label in (agreed, replaced, ordinary)]
    final = ledger.quality(ledger.best_label("case0").id)
    # The same mask by the same students, once as the machine's and once as a person's.
    assert after[0].score == final[7].score != before[0].score
    assert after[0].features == final[7].features
    assert ledger.quality(agreed.id)[0].score == final[0].score
    assert [row.score for row in after[1:]] != [row.score for row in before[1:]]
    # What was expected of it when a person saw it stays on record.
    assert [row.expected_dice for row in after[:2]] == [row.expected_dice for row in before[:2]]
    right, _ = approved_pairs(workspace)
    assert right.scores.tolist() == [row.score for row in after[:2]]
