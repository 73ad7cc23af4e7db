"""The trainer: what it accepts, and what it tells the clients of the host."""

from datetime import timedelta

import pytest

from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop import promotion
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.store.volumes import LPS_TO_RAS, read_label_map
from samcorrect.lib.trainers import student
from samcorrect.lib.trainers.student import StudentTrainer, parse_steps


@pytest.fixture
def trainer(phantoms, tmp_path) -> StudentTrainer:
    """The trainer of four phantoms with true labels."""
    settings = phantoms.settings.model_copy(update={"state": tmp_path / "state"})
    workspace = open_workspace(phantoms.images, settings, cache_dir=phantoms.cache)
    for image_id in ("case0", "case1", "case2", "case3"):
        label_map = read_label_map(phantoms.labels / f"{image_id}.png").array
        workspace.store.save_label_map(image_id, label_map, tag="original", maker="test", affine=LPS_TO_RAS)
    yield StudentTrainer(workspace)
    workspace.store.ledger.close()


def slicer_progress(stats: dict) -> float:
    """Per cent of the bar: MONAILabel.py of the host's plug-in for Slicer, monitorTraining."""
    current = 0 if stats.get("total_time") else stats.get("epoch", 1)
    return max(1, 100 * current / stats.get("total_epochs", 1))


def test_slicer_sees_how_far_a_training_is_and_then_its_accuracy_and_time(trainer, monkeypatch):
    monkeypatch.setattr(promotion, "MIN_GATE_DICE", -1.0)
    monkeypatch.setattr("samcorrect.lib.loop.progress.WRITE_EVERY_S", 0.0)
    assert trainer.stats() == {}
    seen = []
    log = student.log_progress

    def look(stage: str, done: int, total: int) -> None:
        seen.append(trainer.stats())
        log(stage, done, total)

    monkeypatch.setattr(student, "log_progress", look)
    told = trainer({"steps": "4"}, None)

    # It looks before each step is noted: at no training, at each of four images read, then at steps 1 to 3 of 4.
    assert [slicer_progress(stats) for stats in seen if stats] == [1, 1, 1, 1, 25, 50, 75, 100]
    assert all(stats["best_metric"] == 0 and "current_time" in stats for stats in seen if stats)
    stats = trainer.stats()
    assert stats["best_metric"] == stats["eval"]["best_metric"] == told["dice"]
    assert (stats["epoch"], stats["total_epochs"], stats["n_restarts"]) == (4, 4, 0)
    assert stats["train"]["metrics"]["train_loss"] == told["losses"][-1][1]
    assert stats["total_time"] == str(timedelta(seconds=round(sum_of_stages(trainer))))
    assert stats["digest"] == told["digest"]


def sum_of_stages(trainer: StudentTrainer) -> float:
    """Seconds of the stages of the last training."""
    folder = trainer.workspace.store.state_dir / "training"
    return sum(student.read_progress(folder)["seconds"].values())


@pytest.mark.parametrize(("value", "steps"), [(None, None), (12, 12), ("12", 12)])
def test_steps(value, steps):
    assert parse_steps(value) == steps


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, 10**6, [3], "", "²"])
def test_bad_steps(value):
    with pytest.raises(RequestError, match="`steps` is a number from 1 to 100000"):
        parse_steps(value)
