"""Our routes over the host's, on a small store without a protocol and without a server process."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings as host_settings
from monailabel.interfaces.utils import app as host_apps

import samcorrect
from samcorrect.lib.server.errors import add_error_handlers
from samcorrect.lib.server.routes import add_routes
from samcorrect.main import SamCorrect


@pytest.fixture
def samcorrect_app(make_studies, tmp_path, monkeypatch) -> SamCorrect:
    """The app on two images, as the host's endpoints find it."""
    monkeypatch.setattr(host_settings, "MONAI_LABEL_SESSION_PATH", "")
    conf = {"threads": "1", "state": str(tmp_path / "state")}
    app = SamCorrect(str(Path(samcorrect.__file__).parent), str(make_studies("a.png", "ward/b.png")), conf)
    monkeypatch.setattr(host_settings, "MONAI_LABEL_APP_DIR", app.app_dir)
    monkeypatch.setattr(host_settings, "MONAI_LABEL_STUDIES", app.studies)
    monkeypatch.setitem(host_apps.apps, f"{app.app_dir}{app.studies}", app)
    return app


@pytest.fixture
def client(samcorrect_app) -> TestClient:
    """Speaks to our routes alone: what they do not take is 404."""
    application = FastAPI()
    add_error_handlers(application, samcorrect_app.on_refusal)
    add_routes(application)
    return TestClient(application)
