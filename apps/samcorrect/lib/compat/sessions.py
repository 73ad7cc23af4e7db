"""Host fault: images of an upload session are kept in the home folder of the server's user (`~/.cache`)."""

from pathlib import Path

from monailabel.config import settings as host_settings


def keep_sessions_in(state_dir: Path) -> None:
    """Keep sessions in the state folder unless MONAI_LABEL_SESSION_PATH is set; call before the app's constructor."""
    if not host_settings.MONAI_LABEL_SESSION_PATH:
        host_settings.MONAI_LABEL_SESSION_PATH = str(state_dir / "sessions")
