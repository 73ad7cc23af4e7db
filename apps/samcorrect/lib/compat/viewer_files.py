"""Host fault: OHIF's files in folders are never found, and a path that climbs to a folder is a 500.

`monailabel/endpoints/ohif.py` turns `/` into the separator of search paths, and asks whether the result exists only.
"""

import os
from pathlib import Path

from monailabel.endpoints import ohif

from samcorrect.lib.errors import RequestError

VIEWER_DIR = Path(ohif.__file__).resolve().parent / "static" / "ohif"


def viewer_file(path: str, folder: Path = VIEWER_DIR) -> Path:
    """The file of the viewer that a browser asks for; its routes, which are no files, get the start page.

    Args:
        path: Below the viewer's folder.
        folder: The viewer.

    Raises:
        RequestError: The path leaves the folder.
    """
    root = folder.resolve()
    try:
        file = (root / path).resolve()
    except (ValueError, OSError) as error:
        raise RequestError(f"{path[:80]!r} is not a path of the viewer: {error}") from error
    if not file.is_relative_to(root):
        raise RequestError(f"{path[:80]!r} leaves the viewer's folder")
    # Unlike Path.is_file it takes a name that is too long.
    return file if os.path.isfile(file) else root / "index.html"
