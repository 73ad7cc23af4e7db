"""The label store: label versions as files under the state folder, named by their content, and their ledger rows."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.errors import ImageError, LabelError, StoreError, UnknownImageError, UnknownLabelError
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.files import image_sha256, write_atomically
from samcorrect.lib.store.image_ids import check_image_id
from samcorrect.lib.store.label_names import present_indices, require_same_indices
from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.records.audit import MAX_NAME, shown_name
from samcorrect.lib.store.records.reviews import check_text
from samcorrect.lib.store.schema import TAG_CORRECTED, TAG_FINAL, TAG_ORIGINAL, TAGS, USER, ImageRow, LabelVersionRow
from samcorrect.lib.store.studies import LocalStudies, Studies, require_images
from samcorrect.lib.store.volumes import (
    Grid,
    Volume,
    align_label_map,
    check_grid,
    read_grid,
    read_image,
    read_label_map,
    suffix_of,
    write_label_map,
)

STATE_NAME = ".samcorrect"
SCRATCH_NAME = "scratch"
# No write takes as long; what is older was left by a process that was killed.
SCRATCH_S = 3600
# Of its SHA-256 in the name of a label file.
NAME_DIGITS = 16
MACHINE_TAGS = (TAG_ORIGINAL, TAG_CORRECTED)


class LabelStore:
    """Images of a studies folder and every version of their labels.

    Attributes:
        studies: Where the images come from.
        state_dir: Folder of ledger, label files, models and caches.
        ledger: The database.
    """

    def __init__(self, studies: Studies, state_dir: Path, ledger_url: str | None = None):
        """Open the store of some studies and note their images.

        Args:
            studies: Where the images come from.
            state_dir: Made where it is missing.
            ledger_url: Of a PostgreSQL database; None keeps the ledger in the state folder.

        Raises:
            StoreError: The studies cannot be read, or the state folder or the database cannot be used or is of others.
        """
        self.studies = studies
        self.state_dir = state_dir.absolute()
        found, refused = studies.scan()
        self._sweep_scratch()
        self.ledger = Ledger(self.state_dir, ledger_url)
        self.ledger.sends_finals = studies.takes_labels
        self.ledger.sync_images(found, refused)

    def rescan(self) -> None:
        """Note images that were added to the studies, or are gone from them, since."""
        self.ledger.sync_images(*self.studies.scan())

    def require_protocol_fits(self, protocol: Protocol) -> None:
        """See that a protocol means by each name what it meant when people submitted the labels of today.

        Raises:
            ProtocolError: A structure of such a label has another index now.
        """
        for version, label_info, value_to_index in self.ledger.names_in_finals():
            of = f"version {version} of the label of {self.ledger.label_version(version).image_id}"
            require_same_indices(protocol, of, label_info, value_to_index)

    def require_images(self) -> list[ImageRow]:
        """All usable images. Raises StoreError where there is none."""
        images = self.ledger.images()
        if not images:
            require_images([], self.studies.location)
        return images

    def find_image(self, image_id: str) -> ImageRow:
        """The row of an image, which may have come since the last scan.

        Raises:
            RequestError: The id can name no image.
            UnknownImageError: There is none of that id.
        """
        check_image_id(image_id)
        try:
            return self.ledger.image(image_id)
        except UnknownImageError:
            found = self.studies.find(image_id)
            if found is None:
                raise
        self.ledger.sync_images([found])
        return self.ledger.image(image_id)

    def image_path(self, row: ImageRow) -> Path:
        """A file that holds an image. Raises ImageError where it is gone or was refused for its name."""
        if row.path == row.id:
            raise ImageError(f"{row.id} is quarantined: {row.reason}")
        return self.studies.file(row.path)

    def read_image(self, image_id: str) -> Volume:
        """Read an image. Raises UnknownImageError or ImageError."""
        return read_image(self.image_path(self.ledger.image(image_id)))

    def read_grid(self, image_id: str) -> Grid:
        """Where the voxels of an image lie. Raises UnknownImageError or ImageError."""
        return read_grid(self.image_path(self.ledger.image(image_id)))

    def label_path(self, row: LabelVersionRow) -> Path:
        """Where a label version lies."""
        return self.state_dir / row.path

    def require_same_image(self, row: LabelVersionRow) -> None:
        """See that a label was made on the image that is there now; labels of older releases do not say on which.

        Raises:
            LabelError: The file of the image is another one.
            ImageError: It is gone.
        """
        made_on = row.info.get("image_sha256")
        if made_on and self._image_sha256(row.image_id) not in ("", made_on):
            raise LabelError(
                f"version {row.id} of the label of {row.image_id} was made on another image than the one that is there "
                "now under this name: put the old file back, or label the new one"
            )

    def _image_sha256(self, image_id: str) -> str:
        """Empty in a PACS: another image has another id there, and a file is made anew whenever it is fetched."""
        if not isinstance(self.studies, LocalStudies):
            return ""
        return image_sha256(self.image_path(self.ledger.image(image_id)))

    def read_label(self, row: LabelVersionRow, image: Volume | None = None) -> np.ndarray:
        """A label version as (H, W, D) uint8 on its image's grid, with the values of the protocol.

        A viewer numbers segments as it likes; `value_to_index`, kept at the submit, says which structure each value is.

        Raises:
            StoreError: The file is gone or is no longer the one that the ledger knows.
            LabelError, ImageError: The image is another one than the label was made on, or is gone.
        """
        self._require_unchanged(row.path, row.content_sha256)
        label = read_label_map(self.label_path(row))
        grid = self.read_grid(row.image_id) if image is None else image.grid
        label_map = align_label_map(label, grid, name=f"label {row.id} of {row.image_id}")
        self.require_same_image(row)
        value_to_index = row.info.get("value_to_index")
        return label_map if not value_to_index else renumber(label_map, {int(k): v for k, v in value_to_index.items()})

    def save_label_map(
        self,
        image_id: str,
        label_map: np.ndarray,
        *,
        tag: str,
        maker: str,
        affine: np.ndarray,
        run_id: int | None = None,
        round_number: int = 0,
        model_digest: str = "",
        runtime: str = "",
        prompts: Mapping[str, Any] | None = None,
        parent_id: int | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> LabelVersionRow:
        """Write a label that a model made and enter it in the ledger.

        Args:
            image_id: Its image.
            label_map: (H, W, D) integer on the image's grid.
            tag: `original` or `corrected`; `final` is a person's.
            maker: What made it, for example "sam:lite_medsam" or "correction:samcorrect".
            affine: The image's.
            run_id, round_number: Of the loop, where it made it.
            model_digest, runtime: The model's weights and how it ran, for example "torch-bf16".
            prompts: What the model was prompted with.
            parent_id: The version that it was made from.
            info: Kept with the version.

        Raises:
            LabelError: The tag is `final` or unknown, or a value is not a whole number from 0 to 255.
            GeometryError: The label is not on its image's grid.
            UnknownImageError: No such image.
            ImageError: The image is gone.
            StoreError: The file cannot be written.
        """
        if tag not in MACHINE_TAGS:
            allowed = ", ".join(MACHINE_TAGS)
            raise LabelError(f"a model may write the tags {allowed}; got {tag[:40]!r} ({TAG_FINAL} is a person's)")
        grid = Grid(label_map.shape, affine)
        check_grid(grid, self.read_grid(image_id), name=f"the label for {image_id} of {maker}")
        with tempfile.TemporaryDirectory(dir=self._scratch_dir()) as folder:
            path = Path(folder) / "label.nii.gz"
            write_label_map(path, label_map, affine)
            return self._enter(
                image_id,
                path,
                tag=tag,
                maker=maker,
                run_id=run_id,
                round=round_number,
                model_digest=model_digest,
                runtime=runtime,
                prompts=dict(prompts or {}),
                parent_id=parent_id,
                info={**(info or {}), "present_indices": present_indices(label_map)},
            )

    def submit_label(
        self, image_id: str, path: Path, *, tag: str, user: str, info: Mapping[str, Any] | None = None
    ) -> LabelVersionRow:
        """Keep a label file that a person or another tool hands in, byte for byte, as a new version.

        Args:
            image_id: Its image.
            path: The file; it stays where it is.
            tag: Any tag; `final` approves the image.
            user: Who submits.
            info: Kept with the version; `label_info: [{name, idx}]` and `value_to_index` say what the values mean.

        Raises:
            LabelError: The file is not a label map.
            GeometryError: It lies on another grid than its image.
            UnknownImageError: No such image.
        """
        label_map = align_label_map(read_label_map(path), self.read_grid(image_id), name=f"the label for {image_id}")
        info = dict(info or {})
        value_to_index = info.get("value_to_index") or {}
        if value_to_index:
            label_map = renumber(label_map, {int(k): v for k, v in value_to_index.items()})
        info["present_indices"] = present_indices(label_map)
        best = self.ledger.best_label(image_id, with_rejected=True)
        of = {"maker": f"{USER}{shown_name(user)}", "parent_id": best.id if best else None}
        return self._enter(image_id, path, tag=tag, info=info, prompts={}, **of)

    def make_best(self, label: LabelVersionRow) -> LabelVersionRow:
        """Enter a machine's label once more, as the newest version, unless the image's best label is equal or final.

        Returns:
            The best label where it is equal, the new version, or the label itself where a person's outranks it.
        """
        best = self.ledger.best_label(label.image_id)
        if best is not None and best.content_sha256 == label.content_sha256:
            return best
        if best is None or best.tag == TAG_FINAL:
            return label
        return self.ledger.add_copy(label)

    def restore_label(self, label: LabelVersionRow, *, user: str) -> LabelVersionRow:
        """Enter an old version once more, so that it is the image's best label again; nothing is taken away.

        Args:
            label: A version with one of TAGS.
            user: Who restores it; a person's label is theirs from then on.

        Raises:
            RequestError: The name is blank, too long, or holds control characters.
            LabelError: Its tag is a viewer's own, it was made on another image, or it is a machine's and a person's
                label of the image outranks it.
            StoreError: Its file is gone or was changed.
        """
        user = check_text("name", user, MAX_NAME)
        if label.tag not in TAGS:
            raise LabelError(
                f"version {label.id} has the tag {label.tag!r}, a viewer's own, which no best label has: load it in a "
                f"viewer and submit it, or restore a version with one of the tags {', '.join(TAGS)}"
            )
        self._require_unchanged(label.path, label.content_sha256)
        self.require_same_image(label)
        best = self.ledger.best_label(label.image_id)
        if label.tag != TAG_FINAL and best is not None and best.tag == TAG_FINAL:
            raise LabelError(
                f"version {label.id} is a machine's ({label.tag}), and nothing outranks version {best.id}, which "
                f"{best.maker.removeprefix(USER)} approved: load version {label.id} in a viewer and submit it, "
                f"or restore a version with the tag {TAG_FINAL!r}"
            )
        maker = f"{USER}{user}" if label.tag == TAG_FINAL else label.maker
        return self.ledger.add_copy(label, restored_by=user, maker=maker)

    def approve_label(
        self,
        label: LabelVersionRow,
        *,
        user: str,
        comment: str = "",
        expected_best: int | None = None,
        even_rejected: bool = False,
    ) -> LabelVersionRow:
        """Enter a version once more as `user`'s final label, without a change, which approves its image.

        Args:
            label: Any version.
            user: Who approves.
            comment: Kept with the approval.
            expected_best: The best version that they saw; by default `label`.
            even_rejected: They know that the version was rejected; the rejection stays on it, and not on the new one.

        Raises:
            RequestError: The name is blank, or it or the comment is too long or holds control characters.
            ConflictError: The version is rejected, or somebody else's final label is newer than what they saw.
            LabelError, ImageError: The image is another one than the label was made on, or is gone.
            StoreError: Its file is gone or was changed.
        """
        self._require_unchanged(label.path, label.content_sha256)
        self.require_same_image(label)
        return self.ledger.approve(
            label.id, reviewer=user, comment=comment, expected_best=expected_best, even_rejected=even_rejected
        )

    def label(self, image_id: str, tag: str) -> LabelVersionRow:
        """The newest label of one tag, a rejected one before none. Raises UnknownImageError or UnknownLabelError."""
        row = self.ledger.latest_label(self.ledger.image(image_id).id, tag, with_rejected=True)
        if row is None:
            raise UnknownLabelError(f"{image_id} has no label with the tag {tag[:40]!r}")
        return row

    def _enter(self, image_id: str, path: Path, **columns: Any) -> LabelVersionRow:
        content_sha256 = _sha256(path)
        relative = Path("labels") / image_id / f"{content_sha256[:NAME_DIGITS]}{suffix_of(path)}"
        target = self.state_dir / relative
        # A damaged file is written anew; one whose hash is that of its name is never touched.
        if not (target.is_file() and _sha256(target).startswith(content_sha256[:NAME_DIGITS])):
            copy = partial(shutil.copyfile, path)
            write_atomically(target, copy, scratch_dir=self._scratch_dir())
        self._require_unchanged(relative.as_posix(), content_sha256)
        row = LabelVersionRow(image_id=image_id, path=relative.as_posix(), content_sha256=content_sha256, **columns)
        if "image_sha256" not in row.info:  # else it says what the image was when it was read
            row.info = {**row.info, "image_sha256": self._image_sha256(image_id)}
        row.created_at = time.time()
        return self.ledger.add_label(row)

    def _scratch_dir(self) -> Path:
        """Where files are until they are whole: one folder, so that what killed processes leave is found again."""
        folder = self.state_dir / SCRATCH_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write in {self.state_dir}: {error.strerror or error}") from error
        return folder

    def _sweep_scratch(self) -> None:
        for left in (self.state_dir / SCRATCH_NAME).glob("*"):
            try:
                if time.time() - left.stat().st_mtime > SCRATCH_S:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            except (FileNotFoundError, PermissionError):
                continue  # another process sweeps too, and this one may not everywhere

    def _require_unchanged(self, relative: str, content_sha256: str) -> None:
        path = self.state_dir / relative
        if not path.is_file():
            raise StoreError(f"the stored label {relative} is gone from {self.state_dir}; restore it from a backup")
        if _sha256(path) != content_sha256:
            raise StoreError(f"the stored label {relative} was changed on the disk; restore it from a backup")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def renumber(label_map: np.ndarray, value_to_index: Mapping[int, int]) -> np.ndarray:
    """Map the values of a label map; values that are not named become background."""
    table = np.zeros(256, np.uint8)
    for value, index in value_to_index.items():
        table[value] = index
    return table[label_map]
