"""Where images come from: which images there are, what they are called, and a local file of each."""

import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from samcorrect.lib.errors import ImageError, RequestError, StoreError
from samcorrect.lib.store.confinement import REASON_LEAVES, is_inside, require_inside, upload_target
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.files import write_atomically
from samcorrect.lib.store.image_ids import RESERVED_FOLDERS, case_of, check_image_id
from samcorrect.lib.store.volumes import IMAGE_SUFFIXES, read_image, suffix_of

# Files written within the tick of a folder's time stamp do not change it; FAT, the coarsest, ticks every 2 s.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class ImageFile:
    """An image: its id, its path relative to where it comes from, and the case (patient) that it is of."""

    id: str
    path: str
    case: str


class Studies(Protocol):
    """A source of images."""

    location: str
    # Whether labels that a person approved go there.
    takes_labels: bool

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

    takes_labels = False

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
        for image_id, _, name in sorted(map(_ranked, names)):
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
        # Listed, since a suffix may be spelt in capitals.
        files = [file for file in os.listdir(folder) if file.startswith(name)] if folder.is_dir() else []
        for stem, _, file in sorted(_ranked(file) for file in files if suffix_of(Path(file))):
            if stem == name and (folder / file).is_file() and is_inside(folder / file, self.folder):
                return ImageFile(image_id, f"{at}/{file}".lstrip("/"), case_of(image_id))
        return None

    def file(self, path: str) -> Path:
        """The file of an image. Raises ImageError where it is gone or became a link that leaves the studies folder."""
        file = self.folder / PurePosixPath(path)
        if not file.is_file():
            raise ImageError(f"{path} is gone from the studies folder {self.folder}")
        return require_inside(file, self.folder)

    def add(self, image_id: str, upload: Path) -> ImageFile:
        """Copy a file into the folder as a new image; one that is there is never overwritten.

        Raises:
            RequestError: The id cannot name an image, or is taken.
            ImageError: The file is not a readable image.
            StoreError: The folder cannot be written.
        """
        target = upload_target(self.folder, self._passed_over, image_id, suffix_of(upload))
        if self.find(image_id) is not None:
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
        """List one folder; None where it is a state folder or gone. Raises StoreError where the studies cannot be."""
        is_settled = time.time_ns() - changed_ns > SETTLED_NS
        listed = _Folder(changed_ns if is_settled else -1)
        try:
            entries = sorted(os.scandir(self.folder / at), key=lambda entry: entry.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"cannot be listed: {error.strerror or error}"
            if not at:
                raise StoreError(f"the studies folder {self.folder} {reason}") from error
            # The slash keeps it from having the id of an image.
            listed.refused.append((os.fsencode(at).decode("utf-8", "replace"), f"a folder that {reason}"))
            return listed
        if at and any(entry.name == LEDGER_NAME for entry in entries):
            return None
        for entry in entries:
            is_reserved = not at and entry.name in RESERVED_FOLDERS
            if entry.name.startswith(".") or is_reserved or Path(entry.path) in self._passed_over:
                continue
            if entry.is_dir(follow_symlinks=False):
                listed.folders.append(entry.name)
            elif suffix_of(Path(entry.name)) and _is_file(entry):
                if entry.is_symlink() and not is_inside(Path(entry.path), self.folder):
                    listed.refused.append((f"{at}{entry.name}", REASON_LEAVES))
                else:
                    listed.files.append(entry.name)
        return listed


def require_images(images: list[ImageFile], location: str) -> None:
    """Raises StoreError, naming what is accepted, where there is no image."""
    if not images and "://" in location:
        raise StoreError(f"no image series in the PACS at {location} (under MONAI_LABEL_DICOMWEB_SEARCH_FILTER)")
    if not images:
        raise StoreError(
            f"no images in {location}; samcorrect reads {', '.join(IMAGE_SUFFIXES)}. Convert others (DICOM with "
            "dcm2niix), or give the DICOMweb URL of a PACS"
        )


def _ranked(name: str) -> tuple[str, int, str]:
    """The id of a file, and what says which of several files of one id is the image: the suffix, then the name."""
    suffix = suffix_of(Path(name))
    return name[: -len(suffix)], IMAGE_SUFFIXES.index(suffix), name


def _changed_ns(folder: Path) -> int:
    try:
        stat = folder.stat()
        return max(stat.st_mtime_ns, stat.st_ctime_ns)  # a folder's rights change the second alone
    except OSError:
        return -2


def _is_file(entry: os.DirEntry) -> bool:
    # A link that leads to itself is an error for `DirEntry.is_file` and no file for `Path.is_file`.
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_file())
