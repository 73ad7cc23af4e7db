"""From what a user gives as studies to where images come from and where the state is kept."""

from pathlib import Path

from monailabel.config import settings as host_settings

from samcorrect.lib.errors import SettingsError
from samcorrect.lib.store.dicomweb import CASE_KEY_NAME, DicomWebStudies, check_url
from samcorrect.lib.store.labels import STATE_NAME
from samcorrect.lib.store.studies import LocalStudies, Studies


def open_studies(studies: str | Path, state_dir: Path | None) -> tuple[Studies, Path]:
    """Where images come from, and the state folder.

    User, password, search filter and the prefixes of QIDO, WADO and STOW of a PACS are the host's own settings
    (MONAI_LABEL_DATASTORE_USERNAME, MONAI_LABEL_DICOMWEB_SEARCH_FILTER, MONAI_LABEL_QIDO_PREFIX, ...).

    Args:
        studies: A folder, or the URL of a PACS's DICOMweb service.
        state_dir: Defaults to `<studies>/.samcorrect`; a URL has no default.

    Raises:
        SettingsError: The URL cannot be used, or comes without a state folder.
    """
    if "://" not in str(studies):
        folder = Path(studies)
        state_dir = (state_dir or folder / STATE_NAME).absolute()
        return LocalStudies(folder, passed_over=[state_dir]), state_dir
    url = check_url(str(studies))
    if state_dir is None:
        raise SettingsError(
            "studies in a PACS need a folder of this machine for labels, models and ledger: give --state DIR, "
            "--conf state DIR or SAMCORRECT_STATE"
        )
    state_dir = state_dir.absolute()
    # The host's default, CT alone, is nobody's wish; whoever wants it says {"Modality": ["CT"]}.
    search_filter = host_settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    is_wanted = search_filter != type(host_settings).model_fields["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"].default
    source = DicomWebStudies(
        url,
        state_dir / "cache" / "dicom",
        key_file=state_dir / CASE_KEY_NAME,
        search_filter=search_filter if is_wanted else None,
        auth=pacs_login(),
        qido_prefix=host_settings.MONAI_LABEL_QIDO_PREFIX,
        wado_prefix=host_settings.MONAI_LABEL_WADO_PREFIX,
        stow_prefix=host_settings.MONAI_LABEL_STOW_PREFIX,
    )
    return source, state_dir


def pacs_login() -> tuple[str, str] | None:
    """User and password for the PACS, by the host's settings; None where they name nobody."""
    user = host_settings.MONAI_LABEL_DATASTORE_USERNAME or host_settings.MONAI_LABEL_DICOMWEB_USERNAME
    password = host_settings.MONAI_LABEL_DATASTORE_PASSWORD or host_settings.MONAI_LABEL_DICOMWEB_PASSWORD
    return (user, password) if user else None
