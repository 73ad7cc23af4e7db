"""Host fault: a refused upload stays in the temporary folder for ever.

The host deletes uploads in a background task of the reply (`monailabel/endpoints/datastore.py`), which does not run
where the request fails: images and labels of patients are left in /tmp.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samcorrect.lib.errors import SamCorrectError


@contextmanager
def discard_upload_on_error(path: Path) -> Iterator[None]:
    """Delete an upload that the block refuses; a file outside the temporary folder is never deleted."""
    try:
        yield
    except SamCorrectError:
        if path.resolve().parent == Path(tempfile.gettempdir()).resolve():
            path.unlink(missing_ok=True)
        raise
