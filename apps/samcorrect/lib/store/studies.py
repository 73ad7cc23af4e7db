"""The studies folder: which files in it are images, and what they are called."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from samcorrect.lib.errors import RequestError, StoreError
from samcorrect.lib.store.volumes import IMAGE_SUFFIXES, suffix_of

# An id is a relative path without its suffix; nothing that climbs, hides or ends in a dot.
ID_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+()=@-]*(/[A-Za-z0-9_][A-Za-z0-9_ .+()=@-]*)*")
# What marks a folder as the state of a store.
LEDGER_NAME = "ledger.sqlite"
MAX_ID_LENGTH = 255
# The host keeps its labels here (monailabel/datastore/local.py:110).
RESERVED_FOLDERS = frozenset({"labels"})


@dataclass(frozen=True)
class ImageFile:
    """An image in the studies folder; `id` is its path below that folder without the suffix, `path` with it."""

    id: str
    path: Path


def check_image_id(image_id: str) -> str:
    """Return `image_id` if it can name an image.

    Raises:
        RequestError: It is empty, too long, or holds anything that a path below the studies folder should not.
    """
    is_named_well = ID_PATTERN.fullmatch(image_id) and not image_id.endswith((".", " ")) and ".." not in image_id
    if len(image_id) > MAX_ID_LENGTH or not is_named_well:
        raise RequestError(
            f"{image_id[:80]!r} is not an image id: 1 to {MAX_ID_LENGTH} letters, digits and any of '_ .+()=@-', "
            "folders divided by '/', no leading dot and no '..'"
        )
    return image_id


def scan_studies(studies: Path) -> tuple[list[ImageFile], list[tuple[str, str]]]:
    """List the images below a studies folder in order of their ids.

    Hidden files and folders, the host's `labels` folder, linked folders and state folders (which hold a ledger, and
    label files that are no images) are passed over.

    Args:
        studies: The folder.

    Returns:
        The images, and (file, reason) for those that cannot be used because of their names.

    Raises:
        StoreError: The folder is missing.
    """
    if not studies.is_dir():
        raise StoreError(f"the studies folder {studies} does not exist; give the folder that holds the images")
    root = studies.resolve()
    images: dict[str, ImageFile] = {}
    refused: list[tuple[str, str]] = []
    paths = sorted(studies.rglob("*"))
    state_dirs = {path.parent for path in paths if path.name == LEDGER_NAME} - {studies}
    for path in paths:
        relative = path.relative_to(studies)
        if any(part.startswith(".") for part in relative.parts) or relative.parts[0] in RESERVED_FOLDERS:
            continue
        if not state_dirs.isdisjoint(path.parents):
            continue
        suffix = suffix_of(path)
        if not suffix or not path.is_file():
            continue
        name = relative.as_posix()
        image_id = name[: -len(suffix)]
        try:
            check_image_id(image_id)
        except RequestError as error:
            # A name that is not UTF-8 could not be stored or printed.
            refused.append((os.fsencode(name).decode("utf-8", "replace"), str(error)))
            continue
        if not path.resolve().is_relative_to(root):
            refused.append((name, "a link that leaves the studies folder"))
        elif image_id in images:
            refused.append((name, f"has the same id as {images[image_id].path.name}; rename one of them"))
        else:
            images[image_id] = ImageFile(image_id, path)
    return sorted(images.values(), key=lambda image: image.id), refused


def case_of(image_id: str) -> str:
    """The case (patient) that an image belongs to: its folder below the studies folder, or itself where it has none."""
    return image_id.rpartition("/")[0] or image_id


def log_name(image_id: str) -> str:
    """What logs call an image: file names can hold the names of patients, a digest does not."""
    return hashlib.sha256(image_id.encode()).hexdigest()[:10]


def require_images(images: list[ImageFile], studies: Path) -> None:
    """Raises StoreError, naming the accepted file types, where there is no image."""
    if not images:
        raise StoreError(f"no images in {studies}; samcorrect reads {', '.join(IMAGE_SUFFIXES)}")
