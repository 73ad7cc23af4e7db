"""The curves of trainings, for people to look at: TensorBoard's files, or an MLflow server."""

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from torch.utils.tensorboard import SummaryWriter

from samcorrect.lib.errors import DependencyError, TrackingError

logger = logging.getLogger(__name__)

EXPERIMENT = "samcorrect"
# By trainings side by side.
_EXPERIMENT_MADE_ONCE = threading.Lock()
CONNECT_TIMEOUT_S = 5
DEFAULT_PORTS = {"http": 80, "https": 443}


class Tracker(Protocol):
    """Takes the values of one training."""

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Values after so many steps."""
        ...

    def close(self) -> None:
        """The training is over."""
        ...


class _Guarded:
    """A tracker that says once that its curve gets lost, and stops no training."""

    errors: tuple[type[Exception], ...] = (OSError,)
    _has_warned = False

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except self.errors as error:
            if not self._has_warned:
                logger.warning("the curve of a training is not tracked: %s", str(error)[:200])
            self._has_warned = True


class TensorBoard(_Guarded):
    """Event files in a folder of the training's own."""

    def __init__(self, folder: Path):
        """Write into `folder` from the first value on."""
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Write values after so many steps."""
        self._try(lambda: self._write(step, values))

    def close(self) -> None:
        """Flush the file."""
        if self._writer is not None:
            self._try(self._writer.close)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self._writer = self._writer or SummaryWriter(str(self._folder))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


class MLflow(_Guarded):
    """A run of the experiment `samcorrect` on a tracking server or database."""

    def __init__(self, uri: str, name: str, parameters: Mapping[str, object]):
        """Begin the run.

        Raises:
            DependencyError: mlflow is not installed.
            TrackingError: Nobody answers at `uri`, or mlflow cannot use it.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it tells its makers, as it is imported
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise DependencyError(
                "the setting `tracking mlflow` needs the package mlflow: pip install mlflow"
            ) from error
        _check_answers(uri)
        self.errors = (MlflowException, OSError)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            with _EXPERIMENT_MADE_ONCE:
                experiment = self._client.get_experiment_by_name(EXPERIMENT)
                experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
            self._run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
            for key, value in parameters.items():
                self._client.log_param(self._run_id, key, value)
        except MlflowException as error:
            raise TrackingError(f"mlflow cannot use the tracking_uri {uri}: {str(error)[:200]}") from error

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Send values after so many steps."""
        for name, value in values.items():
            self._try(lambda name=name, value=value: self._client.log_metric(self._run_id, name, value, step=step))

    def close(self) -> None:
        """End the run."""
        self._try(lambda: self._client.set_terminated(self._run_id))


def _check_answers(uri: str) -> None:
    """mlflow itself tries for minutes to reach a server that is not there."""
    parts = urlsplit(uri)
    if parts.scheme not in DEFAULT_PORTS:
        return
    try:
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"nobody answers at the tracking_uri {uri} ({error}); start the server, correct the setting, or set "
            "`tracking tensorboard`"
        ) from error
