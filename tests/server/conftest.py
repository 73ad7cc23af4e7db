"""Our routes over the host's, on a small store without a protocol and without a server process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings as host_settings
from monailabel.interfaces.utils import app as host_apps

import samcorrect
from samcorrect.lib.server.errors import add_error_handlers
from samcorrect.lib.server.routes import add_routes
from samcorrect.main import SamCorrect


@pytest.fixture
def open_app(tmp_path, monkeypatch) -> Callable[[str], SamCorrect]:
    """A function that opens the app on studies, as the host's endpoints find it."""

    def open_on(studies: str) -> SamCorrect:
        monkeypatch.setattr(host_settings, "MONAI_LABEL_SESSION_PATH", "")
        conf = {"threads": "1", "state": str(tmp_path / "state")}
        app = SamCorrect(str(Path(samcorrect.__file__).parent), studies, conf)
        monkeypatch.setattr(host_settings, "MONAI_LABEL_APP_DIR", app.app_dir)
        monkeypatch.setattr(host_settings, "MONAI_LABEL_STUDIES", app.studies)
        monkeypatch.setitem(host_apps.apps, f"{app.app_dir}{app.studies}", app)
        return app

    return open_on


@pytest.fixture
def samcorrect_app(open_app, make_studies) -> SamCorrect:
    """The app on two images."""
    return open_app(str(make_studies("a.png", "ward/b.png")))


@pytest.fixture
def client_of() -> Callable[[SamCorrect], TestClient]:
    """A function that speaks to our routes alone on an app: what they do not take is 404."""

    def speak_to(app: SamCorrect) -> TestClient:
        application = FastAPI()
        add_error_handlers(application, app.on_refusal)
        add_routes(application)
        return TestClient(application)

    return speak_to


@pytest.fixture
def client(client_of, samcorrect_app) -> TestClient:
    """Speaks to our routes on two images."""
    return client_of(samcorrect_app)


@pytest.fixture
def series(pacs, make_series) -> str:
    """The UID of the one series of a real PACS: 3 slices of 10 x 12."""
    instances = make_series(np.zeros((3, 10, 12), np.uint16), np.diag([-1.0, -1.0, 3.0, 1.0]))
    DICOMwebClient(pacs).store_instances(instances)
    return instances[0].SeriesInstanceUID


@pytest.fixture
def pacs_app(open_app, pacs, series) -> SamCorrect:
    """The app on a real PACS."""
    return open_app(pacs)


@pytest.fixture
def pacs_client(client_of, pacs_app) -> TestClient:
    """Speaks to our routes on a real PACS."""
    return client_of(pacs_app)
