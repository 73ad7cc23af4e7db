"""Curves arrive where people look at them, and what cannot take them says so or stops no training."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samcorrect.lib.errors import TrackingError
from samcorrect.lib.networks.tracking import EXPERIMENT, MLflow, TensorBoard


def test_tensorboard_reads_the_curve(tmp_path):
    tracker = TensorBoard(tmp_path / "student")
    tracker.note(1, {"loss": 2.0, "learning_rate": 0.25})
    tracker.note(11, {"loss": 0.5, "held_out_dice": 0.75})
    tracker.close()

    events = EventAccumulator(str(tmp_path / "student")).Reload()

    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (11, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("held_out_dice")] == [(11, 0.75)]
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate", "held_out_dice"}


def test_a_folder_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    tracker = TensorBoard(tmp_path / "file" / "student")

    tracker.note(1, {"loss": 2.0})
    tracker.note(2, {"loss": 1.0})
    tracker.close()

    assert caplog.text.count("the curve of a training is not tracked") == 1


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("http://127.0.0.1:9", "nobody answers at the tracking_uri http://127.0.0.1:9"),
        ("nowhere://x", "mlflow cannot use"),
    ],
)
def test_mlflow_without_a_server_is_a_clear_error(uri, match):
    with pytest.raises(TrackingError, match=match):
        MLflow(uri, "student", {})


@pytest.mark.slow
def test_mlflow_keeps_the_curve_in_a_database(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    from mlflow.telemetry.utils import is_telemetry_disabled
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflow(uri, "student-1", {"student_steps": 3})
    assert is_telemetry_disabled()
    tracker.note(1, {"loss": 2.0})
    tracker.close()

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == ("student-1", "FINISHED", {"student_steps": "3"})
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(1, 2.0)]
