"""Where in the studies folder a client may read and write: through no link that leaves it, and over no other file."""

from collections.abc import Iterable
from pathlib import Path

from samcorrect.lib.errors import ImageError, RequestError
from samcorrect.lib.store.image_ids import RESERVED_FOLDERS, check_image_id

# Of one name in a folder, on all file systems that we know of.
MAX_NAME_BYTES = 255
REASON_LEAVES = "a link that leaves the studies folder"


def is_inside(path: Path, studies: Path) -> bool:
    """Whether a path, whatever links are in it, ends in the studies folder."""
    return path.resolve().is_relative_to(studies.resolve())


def require_inside(path: Path, studies: Path) -> Path:
    """Return the path of an image. Raises ImageError where a link takes it out of the studies folder."""
    if not _resolve(path).is_relative_to(studies.resolve()):
        raise ImageError(f"{path.name} is {REASON_LEAVES}; replace it by the file itself")
    return path


def upload_target(studies: Path, passed_over: Iterable[Path], image_id: str, suffix: str) -> Path:
    """Where an uploaded image goes.

    Args:
        studies: The studies folder.
        passed_over: Folders in it that are not for images: the state folder.
        image_id: What the client calls the image.
        suffix: Of the file, with the dot.

    Raises:
        RequestError: The id cannot name a new image: it is malformed, too long or taken, names a file as a folder, or
            leads into a folder of the host, into the state folder or out of the studies folder.
    """
    target = studies / f"{check_image_id(image_id)}{suffix}"
    parent = _resolve(target.parent)
    first = image_id.split("/")[0].lower()
    if "/" in image_id and first in RESERVED_FOLDERS:
        raise RequestError(f"the folder {first!r} is the host's own; give the image another id")
    if len(target.name) > MAX_NAME_BYTES:
        raise RequestError(f"{image_id[:80]!r} is too long: a file name has at most {MAX_NAME_BYTES} bytes")
    is_passed_over = any(parent.is_relative_to(folder.resolve()) for folder in passed_over)
    if not parent.is_relative_to(studies.resolve()) or is_passed_over:
        raise RequestError(f"the folder of {image_id[:80]!r} is a link out of the studies, or the state folder")
    if any(folder.exists() and not folder.is_dir() for folder in (parent, *parent.parents)):
        raise RequestError(f"{image_id[:80]!r} names a file as a folder; give the image another id")
    if target.exists() or target.is_symlink():
        raise RequestError(f"there is an image {image_id!r} already, and images are never overwritten")
    return target


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ImageError(f"{path.name}: a link in its path leads nowhere; remove the link") from error
