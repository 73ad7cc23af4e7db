"""Uploads: one file, in a folder that nobody else can read, under a name of ours, gone when its request is over.

The host builds the path of an upload from the client's file name, in the shared temporary folder and under a name that
it has just given up, and leaves it there where the request fails.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile

from samcorrect.lib.errors import RequestError, StoreError
from samcorrect.lib.store.volumes import IMAGE_SUFFIXES, suffix_of


def only_upload(uploads: Sequence[UploadFile], name: str) -> UploadFile:
    """The one file of a request. Raises RequestError where there are several."""
    if len(uploads) != 1:
        raise RequestError(f"`{name}` is one file; got {len(uploads)}")
    return uploads[0]


@contextmanager
def private_upload(upload: UploadFile) -> Iterator[Path]:
    """Write an upload to a private temporary folder for the length of the block.

    Of the client's file name nothing is used but an image suffix: Slicer sends the whole path.

    Raises:
        RequestError: The name has no such suffix.
        StoreError: The temporary folder cannot be written.
    """
    suffix = suffix_of(Path(upload.filename or ""))
    if not suffix:
        raise RequestError(
            f"the name of the upload ends in one of {', '.join(IMAGE_SUFFIXES)}; got {upload.filename!r:.80}"
        )
    with tempfile.TemporaryDirectory(prefix="samcorrect.") as folder:
        path = Path(folder) / f"upload{suffix}"
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(upload.file, file)
        except OSError as error:
            raise StoreError(f"cannot keep the upload in {tempfile.gettempdir()}: {error.strerror}") from error
        yield path


def id_of_upload(upload: UploadFile) -> str:
    """The image id that the name of an upload gives: the name without its suffix.

    Raises:
        RequestError: The name holds folders.
    """
    name = upload.filename or ""
    if "/" in name or "\\" in name:
        raise RequestError(f"give the image an id with `image`: its file name holds folders; got {name!r:.80}")
    return name.removesuffix(name[len(name) - len(suffix_of(Path(name))) :])
