"""`samcorrect serve`: the host's server with our app, our defaults and nothing written into the package."""

import ipaddress
import json
import logging
import os
from pathlib import Path
from typing import Any

import uvicorn
from monailabel.app import app
from monailabel.config import settings as host_settings

import samcorrect
from samcorrect.lib.compat.background_tasks import ensure_pythonpath
from samcorrect.lib.compat.shutdown import background_processes_end_with_the_server
from samcorrect.lib.errors import SettingsError
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.server.loop_runs import server_ends
from samcorrect.lib.settings import Settings

logger = logging.getLogger(__name__)

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
LOG_FORMAT = "[%(asctime)s] [%(process)s] [%(levelname)s] (%(name)s) - %(message)s"
LOG_BYTES, N_LOG_FILES = 10 * 2**20, 10


def serve(settings: Settings, studies: str, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> None:
    """Serve a studies folder until the process is told to stop.

    Args:
        settings: Handed on to the app and to its background processes.
        studies: Folder of the images.
        host: Address to listen on; other machines are served only where MONAI_LABEL_AUTH_ENABLE is on.
        port: 0 takes a free one.

    Raises:
        SettingsError: `host` would serve other machines without a login.
        StoreError: The studies folder is missing or has no images, or the state folder cannot be written.
        ProtocolError: The protocol is faulty.
    """
    check_host(host, is_auth_on=host_settings.MONAI_LABEL_AUTH_ENABLE)
    # Opened here first: a fault is then one message and not a traceback from inside the host.
    store = open_workspace(studies, settings).store
    images = store.require_images()
    store.ledger.close()
    configure_host(settings, store.studies.location, store.state_dir, port)
    logger.info("serving %d images of %s on http://%s:%d", len(images), store.studies.location, host, port)
    with background_processes_end_with_the_server():
        try:
            uvicorn.run(app, host=host, port=port, log_config=log_config(store.state_dir / "logs"), access_log=False)
        finally:
            server_ends.set()


def check_host(host: str, *, is_auth_on: bool) -> None:
    """Raises SettingsError where `host` lets other machines in and nobody has to log in."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback and not is_auth_on:
        raise SettingsError(
            f"--host {host} lets other machines in, and without a login everybody is an administrator: listen on "
            f"{DEFAULT_HOST} behind a proxy that asks for a login (with MONAI_LABEL_AUTH_ENABLE=true monailabel asks "
            "for one itself, which up to 0.8.5 lets nobody in)"
        )


def configure_host(settings: Settings, studies: str, state_dir: Path, port: int) -> None:
    """Set the host's settings, here and in the environment of the background processes that it starts."""
    given = settings.model_dump(exclude_none=True)
    host_settings.MONAI_LABEL_APP_DIR = str(Path(samcorrect.__file__).parent)
    host_settings.MONAI_LABEL_STUDIES = studies
    host_settings.MONAI_LABEL_APP_CONF = {key: str(value) for key, value in given.items()} | {"state": str(state_dir)}
    host_settings.MONAI_LABEL_SERVER_PORT = port
    for name in ("APP_DIR", "STUDIES", "APP_CONF", "SERVER_PORT"):
        value = getattr(host_settings, f"MONAI_LABEL_{name}")
        os.environ[f"MONAI_LABEL_{name}"] = json.dumps(value) if isinstance(value, dict) else str(value)
    ensure_pythonpath()


def log_config(folder: Path) -> dict[str, Any]:
    """A logging configuration that writes to the console and to `app.log` in `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    file_handler = {
        "class": "logging.handlers.RotatingFileHandler",
        "formatter": "line",
        "filename": str(folder / "app.log"),
        "maxBytes": LOG_BYTES,
        "backupCount": N_LOG_FILES,
        "encoding": "utf-8",
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": LOG_FORMAT}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}, "file": file_handler},
        "root": {"level": "INFO", "handlers": ["console", "file"]},
        # The host logs whole requests, image ids and all, at INFO.
        "loggers": {"monailabel": {"level": "WARNING"}},
    }
