"""An app as any app of the host is: its own class, its local datastore and a task."""

import os
import tempfile

import nibabel as nib
import numpy as np
import pytest
from monailabel.config import settings as host_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.tasks.activelearning.random import Random


class EchoTask:
    """An infer task that notes the path it was given and returns a new temporary mask."""

    description = ""

    def __init__(self):
        self.seen = []

    def __call__(self, request):
        self.seen.append(request["image"])
        handle, name = tempfile.mkstemp(suffix=".nii.gz")
        os.close(handle)
        nib.save(nib.Nifti1Image(np.ones((2, 2, 1), np.uint8), np.eye(4)), name)
        return name, {}


class HostApp(MONAILabelApp):
    """The host's own app class and local datastore with one task, as any app of the host has them."""

    def init_infers(self):
        return {"echo": EchoTask()}

    def init_scoring_methods(self):
        return {"slow": None}

    def init_strategies(self):
        return {"random": Random()}

    def async_scoring(self, method, params=None):
        self.n_scorings = getattr(self, "n_scorings", 0) + 1


@pytest.fixture
def echo_task() -> EchoTask:
    """An infer task of its own."""
    return EchoTask()


@pytest.fixture
def host_app(tmp_path, monkeypatch) -> HostApp:
    """The host's own app on one image, `a`."""
    monkeypatch.setattr(host_settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(host_settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    studies = tmp_path / "studies"
    studies.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 1), np.uint8), np.eye(4)), studies / "a.nii.gz")
    return HostApp(str(tmp_path), str(studies), {})
