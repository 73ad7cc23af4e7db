"""Fetching a weights file when a person asks for it: with progress, going on where it was cut, checked by its hash."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import requests

from samcorrect.lib.errors import StoreError, WeightsError
from samcorrect.lib.networks.exports import file_sha256

# What a cut connection loses at most.
_BLOCK_BYTES = 2**16
_TIMEOUT_S = 60
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416

# (bytes done, bytes in all)
Told = Callable[[int, int], None]


def download(url: str, path: Path, sha256: str, *, progress: Told = lambda _done, _total: None) -> None:
    """Fetch a file; it gets its name only when its hash is right.

    What an earlier try left in `<path>.part` is kept, and only the rest is asked for.

    Args:
        url: http or https.
        path: Where to put it.
        sha256: Hexadecimal, lower case.
        progress: Told about every block.

    Raises:
        WeightsError: The URL cannot be fetched, the connection was cut (the part stays), or the hash is another's (the
            part is dropped).
        StoreError: The disk is full or may not be written.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise WeightsError(f"{url} cannot be fetched; http and https can. A file on this machine is given by its path")
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress)
        digest = file_sha256(part)
        if digest != sha256:
            part.unlink()
            raise WeightsError(f"{url} gave a file with the SHA-256 {digest}; wanted {sha256}. It was not kept")
        os.replace(part, path)
    except requests.RequestException as error:  # an OSError too, so it comes first
        kept = f"{part.stat().st_size} bytes are kept; the same command goes on" if part.is_file() else "try again"
        raise WeightsError(f"{url} cannot be fetched: {type(error).__name__}: {error!s:.200}; {kept}") from error
    except OSError as error:
        raise StoreError(f"cannot write {part}: {error.strerror or error}") from error


def _fetch(url: str, part: Path, progress: Told) -> None:
    """Append to `part` what it lacks, or write it anew where the server gives no ranges."""
    n_done = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={n_done}-"} if n_done else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as reply:
        if n_done and reply.status_code == _RANGE_NOT_SATISFIABLE:
            return  # it is whole already, or its hash will tell
        reply.raise_for_status()
        if reply.status_code != _PARTIAL:
            n_done = 0
        n_all = n_done + int(reply.headers.get("Content-Length", 0))
        with part.open("ab" if n_done else "wb") as handle:
            for block in reply.iter_content(_BLOCK_BYTES):
                handle.write(block)
                n_done += len(block)
                progress(n_done, max(n_all, n_done))
