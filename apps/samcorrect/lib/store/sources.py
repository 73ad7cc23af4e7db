"""From what a user gives as studies to where images come from and where the state is kept."""

from pathlib import Path

from samcorrect.lib.errors import SettingsError
from samcorrect.lib.store.labels import STATE_NAME
from samcorrect.lib.store.studies import LocalStudies, Studies


def open_studies(studies: str | Path, state_dir: Path | None) -> tuple[Studies, Path]:
    """Where images come from, and the state folder.

    Args:
        studies: A folder.
        state_dir: Defaults to `<studies>/.samcorrect`.

    Raises:
        SettingsError: It is a URL.
    """
    if "://" in str(studies):
        raise SettingsError(f"studies must be a folder on this machine; got the URL {str(studies)[:80]!r}")
    folder = Path(studies)
    state_dir = (state_dir or folder / STATE_NAME).absolute()
    return LocalStudies(folder, passed_over=[state_dir]), state_dir
