"""What is missing on this machine, and what to do about it."""

import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from samcorrect.lib.errors import ProtocolError, SamCorrectError, SettingsError, StoreError
from samcorrect.lib.loop.sam_models import configured_model
from samcorrect.lib.loop.workspace import PROTOCOL_NAME, count_cores, open_workspace, protocol_path
from samcorrect.lib.networks.registry import load_model
from samcorrect.lib.networks.runtimes import has_fast_bf16
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.schema import PACS_PENDING, PACS_REFUSED
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.studies import require_images

MIN_FREE_GB = 2


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    name: str
    is_ok: bool
    message: str


def check_installation(settings: Settings, studies: str | None) -> list[Check]:
    """Check packages, weights, the processor, and, where a studies folder is given, the folder, its state and its
    protocol.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: sys.version.split()[0]),
        ("host", _check_host),
        ("SAM weights", lambda: _check_sam(studies, settings)),
        ("processor", _check_processor),
    ]
    if studies is not None:
        checks += [
            ("studies", lambda: _check_studies(studies, settings)),
            ("protocol", lambda: _check_protocol(protocol_path(open_studies(studies, settings.state)[0], settings))),
            ("state", lambda: _check_state(studies, settings)),
        ]
    elif settings.protocol is not None:
        checks.append(("protocol", lambda: _check_protocol(settings.protocol)))
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (SamCorrectError, importlib.metadata.PackageNotFoundError) as error:
        return Check(name, False, str(error))


def _check_host() -> str:
    version, pydicom = importlib.metadata.version("monailabel"), importlib.metadata.version("pydicom")
    if int(pydicom.split(".")[0]) >= 3:
        raise SettingsError(
            f"pydicom {pydicom} stops monailabel {version} from starting; pip install 'pydicom>=2.4.4,<3'"
        )
    return f"monailabel {version}, pydicom {pydicom}"


def _check_sam(studies: str | None, settings: Settings) -> str:
    state_dir = settings.state if studies is None else open_studies(studies, settings.state)[1]
    sam = load_model(configured_model(settings, state_dir), runtime=settings.sam_runtime)
    return f"{sam.name}, SHA-256 {sam.digest[:12]}..., loads; runs as {sam.runtime}"


def _check_processor() -> str:
    precision = "bf16 in hardware" if has_fast_bf16() else "no fast bf16: fp32"
    return f"{count_cores()} core(s), {precision}"


def _check_studies(given: str, settings: Settings) -> str:
    studies, _ = open_studies(given, settings.state)
    images, refused = studies.scan()
    require_images(images, studies.location)
    passed_over = f"; {len(refused)} file(s) cannot be used because of their names" if refused else ""
    return f"{len(images)} image(s){passed_over}"


def _check_protocol(path: Path | None) -> str:
    if path is None:
        raise ProtocolError(f"no protocol: give --protocol FILE, or put a {PROTOCOL_NAME} into the studies folder")
    protocol = load_protocol(path)
    return f"{path}: {', '.join(protocol.names)}"


def _check_state(studies: str, settings: Settings) -> str:
    store = open_workspace(studies, settings).store
    free_gb = shutil.disk_usage(store.state_dir).free / 1024**3
    if free_gb < MIN_FREE_GB:
        raise StoreError(f"{store.state_dir} has {free_gb:.1f} GB free; at least {MIN_FREE_GB} GB are needed")
    counts = store.ledger.counts()
    approved = f"{counts['approved']} of {counts['images']} image(s) approved"
    published = store.ledger.count_publications()
    if n_waiting := published.get(PACS_PENDING, 0):
        raise StoreError(f"{n_waiting} approved label(s) wait for the PACS; they go there with the next submit")
    if n_refused := published.get(PACS_REFUSED, 0):
        approved += f"; of {n_refused} label(s) DICOM SEG cannot hold, which stay here alone"
    return f"{store.state_dir}: {approved}, {free_gb:.0f} GB free"
