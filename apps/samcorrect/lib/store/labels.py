"""The label store: label versions as files under the state folder, named by their content, and their ledger rows."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.errors import LabelError, StoreError, UnknownLabelError
from samcorrect.lib.store.label_names import present_indices
from samcorrect.lib.store.ledger import TAG_CORRECTED, TAG_FINAL, TAG_ORIGINAL, Ledger
from samcorrect.lib.store.schema import ImageRow, LabelVersionRow
from samcorrect.lib.store.studies import require_images, scan_studies
from samcorrect.lib.store.volumes import (
    Volume,
    align_label_map,
    read_image,
    read_label_map,
    suffix_of,
    write_atomically,
    write_label_map,
)

STATE_NAME = ".samcorrect"
MACHINE_TAGS = (TAG_ORIGINAL, TAG_CORRECTED)


class LabelStore:
    """Images of a studies folder and every version of their labels.

    Attributes:
        studies: Folder of the images; only read.
        state_dir: Folder of ledger, label files, models and caches.
        ledger: The database.
    """

    def __init__(self, studies: Path, state_dir: Path | None = None):
        """Open the store of a studies folder and note its images.

        Args:
            studies: Folder of the images.
            state_dir: Defaults to `<studies>/.samcorrect`.

        Raises:
            StoreError: A folder is missing or cannot be written.
        """
        # The ledger keeps the paths of images: they must hold whatever folder the next command is started from.
        self.studies = studies.absolute()
        self.state_dir = (state_dir or studies / STATE_NAME).absolute()
        found, refused = scan_studies(self.studies)
        self.ledger = Ledger(self.state_dir)
        self.ledger.sync_images(found, refused)

    def rescan(self) -> None:
        """Note images that were added to the studies folder since."""
        self.ledger.sync_images(*scan_studies(self.studies))

    def require_images(self) -> list[ImageRow]:
        """All usable images. Raises StoreError where there is none."""
        images = self.ledger.images()
        if not images:
            require_images([], self.studies)
        return images

    def read_image(self, image_id: str) -> Volume:
        """Read an image. Raises UnknownImageError or ImageError."""
        return read_image(Path(self.ledger.image(image_id).path))

    def image_name(self, path: Path) -> str:
        """What a boxes file calls an image: its path below the studies folder, or its name where it lies elsewhere."""
        return path.relative_to(self.studies).as_posix() if path.is_relative_to(self.studies) else path.name

    def label_path(self, row: LabelVersionRow) -> Path:
        """Where a label version lies."""
        return self.state_dir / row.path

    def read_label(self, row: LabelVersionRow, image: Volume | None = None) -> np.ndarray:
        """A label version as (H, W, D) uint8 on its image's grid, with the values of the protocol.

        A viewer numbers segments as it likes; `value_to_index`, kept at the submit, says which structure each value is.

        Raises:
            StoreError: The file is gone or is no longer the one that the ledger knows.
        """
        self._require_unchanged(row.path, row.content_sha256)
        label = read_label_map(self.label_path(row))
        grid = image if image is not None else self.read_image(row.image_id)
        label_map = align_label_map(label, grid, name=f"label {row.id} of {row.image_id}")
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

        Raises:
            LabelError: The tag is `final` or unknown, or a value is not a whole number from 0 to 255.
            UnknownImageError: No such image.
            StoreError: The file cannot be written.
        """
        if tag not in MACHINE_TAGS:
            allowed = ", ".join(MACHINE_TAGS)
            raise LabelError(f"a model may write the tags {allowed}; got {tag[:40]!r} ({TAG_FINAL} is a person's)")
        self.ledger.image(image_id)
        with tempfile.TemporaryDirectory() as folder:
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
        label_map = align_label_map(read_label_map(path), self.read_image(image_id), name=f"the label for {image_id}")
        info = dict(info or {})
        value_to_index = info.get("value_to_index") or {}
        if value_to_index:
            label_map = renumber(label_map, {int(k): v for k, v in value_to_index.items()})
        info["present_indices"] = present_indices(label_map)
        best = self.ledger.best_label(image_id)
        parent_id = best.id if best else None
        return self._enter(image_id, path, tag=tag, maker=f"user:{user}", parent_id=parent_id, info=info, prompts={})

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
        columns = {c.key: getattr(label, c.key) for c in LabelVersionRow.__table__.columns if c.key != "id"}
        return self.ledger.add_label(LabelVersionRow(**columns | {"parent_id": label.id, "created_at": time.time()}))

    def label(self, image_id: str, tag: str) -> LabelVersionRow:
        """The newest label of one tag. Raises UnknownImageError or UnknownLabelError."""
        row = self.ledger.latest_label(self.ledger.image(image_id).id, tag)
        if row is None:
            raise UnknownLabelError(f"{image_id} has no label with the tag {tag[:40]!r}")
        return row

    def _enter(self, image_id: str, path: Path, **columns: Any) -> LabelVersionRow:
        content_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        relative = Path("labels") / image_id / f"{content_sha256[:16]}{suffix_of(path)}"
        target = self.state_dir / relative
        if not target.exists():
            write_atomically(target, lambda temporary: shutil.copyfile(path, temporary))
        self._require_unchanged(relative.as_posix(), content_sha256)
        row = LabelVersionRow(image_id=image_id, path=relative.as_posix(), content_sha256=content_sha256, **columns)
        row.created_at = time.time()
        return self.ledger.add_label(row)

    def _require_unchanged(self, relative: str, content_sha256: str) -> None:
        path = self.state_dir / relative
        if not path.is_file():
            raise StoreError(f"the stored label {relative} is gone from {self.state_dir}; restore it from a backup")
        if hashlib.sha256(path.read_bytes()).hexdigest() != content_sha256:
            raise StoreError(f"the stored label {relative} was changed on the disk; restore it from a backup")


def renumber(label_map: np.ndarray, value_to_index: Mapping[int, int]) -> np.ndarray:
    """Map the values of a label map; values that are not named become background."""
    table = np.zeros(256, np.uint8)
    for value, index in value_to_index.items():
        table[value] = index
    return table[label_map]
