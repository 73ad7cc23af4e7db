"""Where images come from: which images there are, what they are called, and a local file of each."""

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from samcorrect.lib.errors import ImageError, RequestError, StoreError
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.volumes import IMAGE_SUFFIXES, read_image, suffix_of, write_atomically

# An id is a relative path without its suffix; nothing that climbs, hides or ends in a dot.
ID_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+()=@-]*(/[A-Za-z0-9_][A-Za-z0-9_ .+()=@-]*)*")
MAX_ID_LENGTH = 255
# The host keeps its labels here (monailabel/datastore/local.py:110).
RESERVED_FOLDERS = frozenset({"labels"})
# Files written within the tick of a folder's time stamp do not change it; FAT, the coarsest, ticks every 2 s.
SETTLED_NS = 2_000_000_000
REASON_LEAVES = "a link that leaves the studies folder"


@dataclass(frozen=True)
class ImageFile:
    """An image: its id, its path relative to where it comes from, and the case (patient) that it is of."""

    id: str
    path: str
    case: str


class Studies(Protocol):
    """A source of images."""

    location: str

    def scan(self) -> tuple[list[ImageFile], list[tuple[str, str]]]:
        """The images in order of id, and (name, reason) for what cannot be used because of its name."""

    def has_changed(self) -> bool:
        """Whether a scan could find something else than the last one, at a fraction of its cost."""

    def find(self, image_id: str) -> ImageFile | None:
        """One image, without a scan; None where there is none. Raises RequestError where the id can name none."""

    def file(self, path: str) -> Path:
        """A file of this machine that holds the image of a path. Raises ImageError where there is none."""

    def add(self, image_id: str, upload: Path) -> ImageFile:
        """Take a copy of a file as a new image. Raises RequestError or ImageError where it cannot be one."""


@dataclass
class _Folder:
    """What a folder held when it was last listed; `changed_ns` is -1 where it may have changed since unseen."""

    changed_ns: int
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


class LocalStudies:
    """The images below a folder; an id is a path below it without the suffix, and a subfolder is a case.

    Hidden files and folders, the host's `labels` folder, linked folders and state folders (which hold a ledger, and
    label files that are no images) are passed over.

    Attributes:
        folder: The folder, absolute.
        location: The same as text.
    """

    def __init__(self, folder: Path, *, passed_over: Iterable[Path] = ()):
        """Read the images of `folder`.

        Args:
            folder: The folder.
            passed_over: Folders below it that hold no images.
        """
        self.folder = folder.absolute()
        self.location = str(self.folder)
        self._passed_over = {path.absolute() for path in passed_over}
        self._listed: dict[str, _Folder] = {}
        self._lock = threading.Lock()

    def scan(self) -> tuple[list[ImageFile], list[tuple[str, str]]]:
        """The images in order of id, and (name, reason) for files that cannot be used because of their names.

        Only folders that changed since the last scan are listed again.

        Raises:
            StoreError: The folder is missing.
        """
        if not self.folder.is_dir():
            raise StoreError(f"the studies folder {self.folder} does not exist; give the folder that holds the images")
        with self._lock:
            self._listed = dict(self._walk(self._listed))
            names = [f"{at}{name}" for at, listed in self._listed.items() for name in listed.files]
            refused = [fault for listed in self._listed.values() for fault in listed.refused]
        images: dict[str, ImageFile] = {}
        for name in sorted(names):
            image_id = name[: -len(suffix_of(Path(name)))]
            try:
                check_image_id(image_id)
            except RequestError as error:
                # A name that is not UTF-8 could not be stored or printed.
                refused.append((os.fsencode(name).decode("utf-8", "replace"), str(error)))
                continue
            if image_id in images:
                refused.append((name, f"has the same id as {images[image_id].path}; rename one of them"))
            else:
                images[image_id] = ImageFile(image_id, name, case_of(image_id))
        return sorted(images.values(), key=lambda image: image.id), sorted(refused)

    def has_changed(self) -> bool:
        """Whether a folder changed since the last scan; a new file or folder changes the folder that it is in."""
        with self._lock:
            return any(_changed_ns(self.folder / at) != listed.changed_ns for at, listed in self._listed.items())

    def find(self, image_id: str) -> ImageFile | None:
        """One image, looked up by its name. Raises RequestError."""
        at, _, name = check_image_id(image_id).rpartition("/")
        folder = self.folder / at
        is_passed_over = any(parent in self._passed_over for parent in (folder, *folder.parents))
        if is_passed_over or image_id.split("/")[0] in RESERVED_FOLDERS or folder.resolve() != self._root() / at:
            return None
        for suffix in IMAGE_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file() and not _leaves(folder / f"{name}{suffix}", self._root()):
                return ImageFile(image_id, f"{image_id}{suffix}", case_of(image_id))
        return None

    def file(self, path: str) -> Path:
        """The file of an image. Raises ImageError where it is gone or became a link that leaves the studies folder."""
        file = self.folder / PurePosixPath(path)
        if not file.is_file():
            raise ImageError(f"{path} is gone from the studies folder {self.folder}")
        if _leaves(file, self._root()):
            raise ImageError(f"{path} is {REASON_LEAVES}")
        return file

    def add(self, image_id: str, upload: Path) -> ImageFile:
        """Copy a file into the folder as a new image; one that is there is never overwritten.

        Raises:
            RequestError: The id cannot name an image, or is taken.
            ImageError: The file is not a readable image.
            StoreError: The folder cannot be written.
        """
        at = check_image_id(image_id).rpartition("/")[0]
        target = self.folder / f"{image_id}{suffix_of(upload)}"
        if image_id.split("/")[0] in RESERVED_FOLDERS:
            raise RequestError(f"the folder {image_id.split('/')[0]!r} is the host's own; give the image another id")
        if (self.folder / at).resolve() != self._root() / at:
            raise RequestError(f"the folder {at!r} is {REASON_LEAVES}; give the image another id")
        if target.exists() or self.find(image_id) is not None:
            raise RequestError(
                f"there is an image {image_id!r} already, and images are never overwritten; give another id"
            )
        read_image(upload)
        write_atomically(target, lambda temporary: shutil.copyfile(upload, temporary))
        return ImageFile(image_id, f"{image_id}{suffix_of(upload)}", case_of(image_id))

    def _root(self) -> Path:
        return self.folder.resolve()

    def _walk(self, known: dict[str, _Folder]) -> Iterator[tuple[str, _Folder]]:
        waiting = [""]
        while waiting:
            at = waiting.pop()
            changed_ns = _changed_ns(self.folder / at)
            listed = known.get(at)
            if listed is None or listed.changed_ns != changed_ns:
                listed = self._list(at, changed_ns)
            if listed is not None:
                yield at, listed
                waiting += (f"{at}{name}/" for name in listed.folders)

    def _list(self, at: str, changed_ns: int) -> _Folder | None:
        """List one folder; None where it is a state folder or gone."""
        is_settled = time.time_ns() - changed_ns > SETTLED_NS
        listed = _Folder(changed_ns if is_settled else -1)
        try:
            entries = sorted(os.scandir(self.folder / at), key=lambda entry: entry.name)
        except FileNotFoundError:
            return None
        if at and any(entry.name == LEDGER_NAME for entry in entries):
            return None
        for entry in entries:
            is_reserved = not at and entry.name in RESERVED_FOLDERS
            if entry.name.startswith(".") or is_reserved or Path(entry.path) in self._passed_over:
                continue
            if entry.is_dir(follow_symlinks=False):
                listed.folders.append(entry.name)
            elif suffix_of(Path(entry.name)) and _is_file(entry):
                if entry.is_symlink() and _leaves(Path(entry.path), self._root()):
                    listed.refused.append((f"{at}{entry.name}", REASON_LEAVES))
                else:
                    listed.files.append(entry.name)
        return listed


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


def require_images(images: list[ImageFile], location: str) -> None:
    """Raises StoreError, naming the accepted file types, where there is no image."""
    if not images:
        raise StoreError(f"no images in {location}; samcorrect reads {', '.join(IMAGE_SUFFIXES)}")


def _changed_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -2


def _is_file(entry: os.DirEntry) -> bool:
    # A link that leads to itself is an error for `DirEntry.is_file` and no file for `Path.is_file`.
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_file())


def _leaves(path: Path, root: Path) -> bool:
    return not path.resolve().is_relative_to(root)
