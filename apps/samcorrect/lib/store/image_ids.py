"""What images are called, what their names say, and what logs call them."""

import hashlib
import re

from samcorrect.lib.errors import RequestError

# An id is a relative path without its suffix; nothing that climbs, hides or ends in a dot.
ID_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+()=@-]*(/[A-Za-z0-9_][A-Za-z0-9_ .+()=@-]*)*")
MAX_ID_LENGTH = 255
# The host keeps its labels here (monailabel/datastore/local.py:110).
RESERVED_FOLDERS = frozenset({"labels"})


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


def case_of(image_id: str) -> str:
    """The case that an image of a folder belongs to: its subfolder, or itself where it lies in none."""
    return image_id.rpartition("/")[0] or image_id


def log_name(image_id: str) -> str:
    """What logs call an image: file names can hold the names of patients, a digest does not."""
    return hashlib.sha256(image_id.encode()).hexdigest()[:10]
