"""Trainings of the loop that are killed, tracked, held out of, warm, or of volumes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from samcorrect.lib.loop import trainings
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.students import _hold_out, _training_data, out_of_fold_probs, predict_cohort, train_on

FEW = np.arange(4)


def two_of_each(cohort, patient_of):
    """The images of a cohort twice, each of the patient of its number."""
    return replace(
        cohort,
        images=[replace_case(row, f"patient{patient_of(n)}") for n, row in enumerate([*cohort.images] * 2)],
        labels=cohort.labels * 2,
        spans=[slice(n, n + 1) for n in range(2 * len(cohort))],
        frames=torch.cat([cohort.frames] * 2),
        targets=torch.cat([cohort.targets] * 2),
    )


@pytest.fixture
def cohort_of(labelled):
    def of(**settings):
        workspace = labelled(is_bad=lambda _: False, shares_trainings=False, **{"student_steps": 4, **settings})
        return workspace, load_cohort(workspace, best_labels(workspace))

    return of


def test_a_killed_training_goes_on_to_the_same_file_and_leaves_no_state_behind(cohort_of, monkeypatch):
    workspace, cohort = cohort_of()
    models = workspace.store.state_dir / "models"
    undisturbed = train_on(workspace, cohort, FEW, name="a", seed=1)
    files = {path.name: path.read_bytes() for path in models.iterdir()}
    for path in models.iterdir():
        path.unlink()
    monkeypatch.setattr(trainings, "CHECKPOINT_EVERY_S", 0.0)

    def kill(_stage: str, done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on(workspace, cohort, FEW, name="a", seed=1, progress=kill)
    # Hidden: a backup leaves it out.
    assert [path.name for path in models.iterdir()] == [f".{next(iter(files)).split('.')[0]}.checkpoint"]
    told: list[int] = []
    resumed = train_on(
        workspace, cohort, FEW, name="a", seed=1, progress=lambda _stage, done, _total: told.append(done)
    )

    assert told == [3, 4, 4]
    assert resumed.student.digest == undisturbed.student.digest
    assert {path.name: path.read_bytes() for path in models.iterdir()} == files


def test_a_short_training_writes_no_state(cohort_of, monkeypatch):
    workspace, cohort = cohort_of()
    monkeypatch.setattr(trainings.CheckpointFile, "write", lambda *_: pytest.fail("a state was written"))
    train_on(workspace, cohort, FEW, name="a", seed=1)


def test_the_curve_is_kept_beside_the_student_and_in_tensorboards_files(cohort_of):
    workspace, cohort = cohort_of()
    trained = train_on(workspace, cohort, FEW, name="out-of-fold student A", seed=1)
    state = workspace.store.state_dir
    told = json.loads((state / trained.path).with_suffix(".json").read_text(encoding="utf-8"))
    assert [tuple(pair) for pair in told["losses"]] == trained.losses
    assert (told["n_restarts"], told["fault"], told["started_from"]) == (0, "", None)
    (folder,) = (state / "tensorboard").iterdir()
    assert folder.name.startswith("out-of-fold-student-A-")
    assert len(list(folder.iterdir())) == 1


def test_without_tracking_there_are_no_files(cohort_of):
    workspace, cohort = cohort_of(tracking="none")
    train_on(workspace, cohort, FEW, name="a", seed=1)
    assert not (workspace.store.state_dir / "tensorboard").exists()


def test_a_tenth_of_the_trusted_cases_is_held_out_whole(cohort_of):
    _, cohort = cohort_of()
    # Ten patients with two images each.
    twice = two_of_each(cohort, lambda number: number // 2)
    rows = twice.images
    sampling = np.where(np.arange(20) < 4, 0.1, 1.0)  # nobody trusts the first two patients
    data = _training_data(twice, np.arange(20), sampling, None)

    held_out = _hold_out(twice, np.arange(20), data, seed=0).held_out

    (first, second) = held_out.nonzero()[:, 0].tolist()
    assert rows[first].case_id == rows[second].case_id
    assert first >= 4
    assert torch.equal(held_out, _hold_out(twice, np.arange(20), data, seed=0).held_out)
    assert _hold_out(twice, np.arange(7), _training_data(twice, np.arange(7), None, None), seed=0).held_out is None


def test_few_patients_of_a_fold_are_patients_all_the_same(cohort_of):
    _, cohort = cohort_of()
    # Four patients in all, of whom a fold has two, with five images each.
    twice = two_of_each(cohort, lambda number: number % 4)
    rows = twice.images
    fold = np.flatnonzero(np.arange(20) % 4 < 2)

    held_out = _hold_out(twice, fold, _training_data(twice, fold, None, None), seed=0).held_out

    assert {rows[n].case_id for n in fold[held_out.numpy()]}.isdisjoint(
        {rows[n].case_id for n in fold[~held_out.numpy()]}
    )
    assert held_out.sum() == 5


def replace_case(row, case_id: str):
    """A row of the ledger of another case."""
    return type(row)(id=row.id, case_id=case_id)


def test_early_stop_makes_another_training(cohort_of):
    workspace, cohort = cohort_of()
    stopping = workspace.with_settings(student_early_stop=True)
    everything = np.arange(len(cohort))
    one, other = (train_on(of, cohort, everything, name="a", seed=1) for of in (workspace, stopping))
    assert one.path != other.path
    assert [step for step, _ in other.curve.held_out_dice] == [4]


def test_a_retraining_begins_with_the_student_in_use_if_that_is_wanted_and_fits(labelled, monkeypatch, caplog):
    workspace = labelled(shares_trainings=False, student_steps=4, student_start="promoted")
    monkeypatch.setattr("samcorrect.lib.loop.promotion.MIN_GATE_DICE", -1.0)
    first = train_student(workspace)
    assert first["started_from"] is None
    assert "not from those of the student in use: there is none yet" in caplog.text
    assert first["status"] == "promoted"
    second = train_student(workspace)
    assert second["started_from"] == first["digest"]
    assert second["digest"] != first["digest"]
    assert train_student(workspace.with_settings(student_dims="2.5d"))["started_from"] is None
    assert "it has other structures or another architecture" in caplog.text


@pytest.mark.parametrize("dims", ["2.5d", "3d"])
def test_the_loop_trains_and_applies_students_of_volumes(cohort_of, dims):
    workspace, cohort = cohort_of(student_dims=dims, student_steps=2)
    assert cohort.config.dims == dims
    probs, pair = out_of_fold_probs(workspace, cohort, seed=3)
    assert probs.shape == (10, 3, 32, 32)
    trained = train_on(workspace, cohort, np.arange(10), name="a", seed=1)
    assert trained.student.config.dims == dims
    assert torch.allclose(predict_cohort([trained], cohort).sum(1), torch.ones(10, 32, 32), atol=1e-4)
    assert all((workspace.store.state_dir / student.path).is_file() for student in pair)
