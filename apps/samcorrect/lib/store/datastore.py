"""The host's datastore on top of the ledger: what its endpoints, and through them Slicer and OHIF, see of the store."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from samcorrect.lib.compat.uploads import discard_upload_on_error
from samcorrect.lib.errors import ImageError, RequestError, SettingsError, UnknownImageError, UnknownLabelError
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.label_names import check_label_info, map_values, name_indices, present_indices
from samcorrect.lib.store.labels import MACHINE_TAGS, LabelStore
from samcorrect.lib.store.ledger import TAG_FINAL, TAG_ORIGINAL, TAGS, best_of
from samcorrect.lib.store.schema import ImageRow, LabelVersionRow
from samcorrect.lib.store.studies import RESERVED_FOLDERS, ImageFile, check_image_id
from samcorrect.lib.store.volumes import read_image, read_label_map, suffix_of, write_atomically, write_label_map

TAG_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,31}")
NOTHING_IS_LOST = "samcorrect keeps every image and every version of a label; submit a new label instead"


def check_tag(tag: object) -> str:
    """Return `tag` if it can name a label's tag.

    Raises:
        RequestError: It cannot.
    """
    if not isinstance(tag, str) or not TAG_PATTERN.fullmatch(tag):
        raise RequestError(f"{str(tag)[:40]!r} is not a tag: 1 to 32 of a-z, 0-9, '_' and '-', beginning with a letter")
    return str(tag.value if isinstance(tag, DefaultLabelTag) else tag)


def local_studies(studies: str) -> Path:
    """The studies folder that the host was given.

    Raises:
        SettingsError: It is a URL; DICOMweb and the host's other remote stores are not served yet.
    """
    if "://" in studies:
        raise SettingsError(f"studies must be a folder on this machine; got the URL {studies[:80]!r}")
    return Path(studies)


class LedgerDatastore(Datastore):
    """Images and labels for the host. A label's id is its image's id, as in the host's own local datastore.

    Slicer asks for the tag `original` by itself at every next sample, so `original` hands out the best label, in the
    protocol's numbering and on the image's grid; every other tag hands out its newest version as it was submitted.
    """

    def __init__(self, store: LabelStore, protocol: Protocol | None):
        """Serve the images of `store`; `protocol` names the values of labels."""
        self._store = store
        self._protocol = protocol
        self._name = "samcorrect"
        self._description = ""
        self._folder_times = _folder_times(store)

    # What the host asks about itself

    def name(self) -> str:
        """The name of the datastore."""
        return self._name

    def set_name(self, name: str) -> None:
        """Set the name until the server stops."""
        self._name = name

    def description(self) -> str:
        """The description of the datastore."""
        return self._description

    def set_description(self, description: str) -> None:
        """Set the description until the server stops."""
        self._description = description

    def refresh(self) -> None:
        """Note images that were added to the studies folder."""
        self._folder_times = _folder_times(self._store)
        self._store.rescan()

    def status(self) -> dict[str, Any]:
        """Counts; `completed` are the images that a person approved."""
        self._refresh_if_changed()
        counts = self._store.ledger.counts()
        tags = {key.removeprefix("tag_"): n for key, n in counts.items() if key.startswith("tag_")}
        return {"total": counts["images"], "completed": counts["approved"], "label_tags": tags}

    def json(self) -> dict[str, Any]:
        """Per image what Slicer reads at each next sample: the names in its best label."""
        self._refresh_if_changed()
        labels = self._store.ledger.latest_labels()
        objects: dict[str, Any] = {}
        for image in self._store.ledger.images():
            best = best_of(labels.get((image.id, tag)) for tag in TAGS)
            found = (
                {} if best is None else {TAG_ORIGINAL: {"info": {"params": {"label_names": self.label_names(best)}}}}
            )
            objects[image.id] = {"image": {"ext": suffix_of(Path(image.path))}, "labels": found}
        return {"name": self._name, "description": self._description, "objects": objects}

    def datalist(self) -> list[dict[str, str]]:
        """Image and label file of every approved image."""
        labels = self._store.ledger.latest_labels()
        images = {image.id: image for image in self._store.ledger.images()}
        return [
            {"image": images[image_id].path, "label": str(self._store.label_path(row))}
            for (image_id, tag), row in sorted(labels.items())
            if tag == TAG_FINAL and image_id in images
        ]

    def get_dataset_archive(self, limit_cases: int | None = None) -> str:
        """Raises RequestError: `samcorrect export` writes data sets, with their provenance."""
        raise RequestError("the server does not pack data sets; use `samcorrect export --out DIR --format nifti`")

    # Images

    def list_images(self) -> list[str]:
        """Ids of all usable images."""
        self._refresh_if_changed()
        return [image.id for image in self._store.ledger.images()]

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images that have a label with `label_tag`, by default `final`."""
        tag = check_tag(label_tag or TAG_FINAL)
        latest = self._store.ledger.latest_labels()
        return [image_id for image_id in self.list_images() if (image_id, tag) in latest]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images that have no label with `label_tag`, by default `final`."""
        labeled = set(self.get_labeled_images(label_tag))
        return [image_id for image_id in self.list_images() if image_id not in labeled]

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """The voxels of an image, (H, W, D) float32."""
        return read_image(Path(self.get_image_uri(image_id))).array

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image. Raises RequestError, UnknownImageError or ImageError."""
        row = self._image(image_id)
        if row.path == row.id:
            raise ImageError(f"{row.id} is quarantined: {row.reason}")
        return row.path

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What clients noted about an image."""
        return dict(self._image(image_id).info)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Merge notes into an image's info."""
        self._image(image_id)
        with self._store.ledger.session(writes=True) as session:
            row = session.get_one(ImageRow, image_id)
            row.info = {**row.info, **_mapping(info, "info")}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy an upload into the studies folder; an image that is there is never overwritten.

        Raises:
            RequestError: The id cannot name an image, or is taken.
            ImageError: The upload is not a readable image.
        """
        upload = Path(image_filename)
        with discard_upload_on_error(upload):
            if check_image_id(image_id).split("/")[0] in RESERVED_FOLDERS:
                raise RequestError(
                    f"the folder {image_id.split('/')[0]!r} is the host's own; give the image another id"
                )
            self.refresh()
            target = self._store.studies / f"{image_id}{suffix_of(upload)}"
            if target.exists() or self._has_image(image_id):
                raise RequestError(
                    f"there is an image {image_id!r} already, and images are never overwritten; give another id"
                )
            read_image(upload)
            write_atomically(target, lambda temporary: shutil.copyfile(upload, temporary))
        self._store.ledger.sync_images([ImageFile(image_id, target)])
        self.update_image_info(image_id, _mapping(image_info, "params"))
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Raises RequestError: nothing is deleted through the API."""
        raise RequestError(f"the image {image_id[:80]!r} is not deleted: {NOTHING_IS_LOST}")

    # Labels

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tag to label id of the labels that an image has."""
        self._image(image_id)
        return {tag: image_id for (labeled_id, tag) in self._store.ledger.latest_labels() if labeled_id == image_id}

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """The label id. Raises UnknownLabelError where there is no such label."""
        return self._label(image_id, tag).image_id

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        """A label map with the protocol's indices on the image's grid, (H, W, D) uint8."""
        return self._store.read_label(self._label(label_id, label_tag))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The file of a label: for `original` the best in the protocol's numbering, else the version as submitted."""
        row = self._label(label_id, label_tag)
        path = self._store.label_path(row)
        is_canonical = row.tag in MACHINE_TAGS and not row.maker.startswith("user:")
        if label_tag != TAG_ORIGINAL or is_canonical:
            return str(path)
        canonical = self._store.state_dir / "cache" / "canonical" / f"{row.id}.{row.content_sha256[:16]}.nii.gz"
        if not canonical.exists():
            image = self._store.read_image(row.image_id)
            write_label_map(canonical, self._store.read_label(row, image), image.affine)
        return str(canonical)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Names in a label and where it comes from."""
        row = self._label(label_id, label_tag)
        return {
            "params": {"label_names": self.label_names(row)},
            "tag": row.tag,
            "maker": row.maker,
            "round": row.round,
            "model_digest": row.model_digest,
            "content_sha256": row.content_sha256,
            "created_at": row.created_at,
            "viewer": row.info.get("viewer", {}),
        }

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Merge notes of a viewer into a label's info; provenance cannot be changed."""
        row = self._label(label_id, label_tag)
        self._store.ledger.update_label_info(
            row.id, {"viewer": {**row.info.get("viewer", {}), **_mapping(info, "info")}}
        )

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a submitted label byte for byte as a new version.

        Args:
            image_id: Its image.
            label_filename: The file.
            label_tag: `final` approves the image.
            label_info: The request's params: `label_info: [{name, idx}]` says what the values are, `user` or
                `client_id` who submits.

        Returns:
            The label's id.

        Raises:
            RequestError: The id, the tag or the params are malformed.
            LabelError: The file is not a label map, or a value has no name of the protocol's.
            GeometryError: It lies on another grid than its image.
            UnknownImageError: No such image.
        """
        path = Path(label_filename)
        with discard_upload_on_error(path):
            params, tag = _mapping(label_info, "params"), check_tag(label_tag)
            self._image(image_id)
            entries = check_label_info(params.get("label_info"))
            present = present_indices(read_label_map(path).array)
            value_to_index = map_values(present, entries, self._protocol)
            info = {"label_info": entries, "value_to_index": {str(k): v for k, v in value_to_index.items()}}
            user = str(params.get("user") or params.get("client_id") or "unknown")[:200]
            return self._store.submit_label(image_id, path, tag=tag, user=user, info=info).image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Raises RequestError: nothing is deleted through the API."""
        raise RequestError(f"the label {label_tag[:40]!r} of {label_id[:80]!r} is not deleted: {NOTHING_IS_LOST}")

    def label_names(self, row: LabelVersionRow) -> dict[str, int]:
        """Name to index of the structures that are present in a label, in index order."""
        return name_indices(row.info["present_indices"], self._protocol, row.info.get("label_info", ()))

    def _image(self, image_id: str) -> ImageRow:
        return self._store.ledger.image(check_image_id(image_id))

    def _has_image(self, image_id: str) -> bool:
        try:
            self._image(image_id)
        except UnknownImageError:
            return False
        return True

    def _label(self, image_id: str, tag: str) -> LabelVersionRow:
        self._image(image_id)
        if check_tag(tag) != TAG_ORIGINAL:
            return self._store.label(image_id, tag)
        best = self._store.ledger.best_label(image_id)
        if best is None:
            raise UnknownLabelError(f"{image_id} has no label yet; infer with the model sam makes one")
        return best

    def _refresh_if_changed(self) -> None:
        if any(_modified_at(folder) != time_ns for folder, time_ns in self._folder_times.items()):
            self.refresh()


def _folder_times(store: LabelStore) -> dict[Path, int]:
    """Time of change of every folder of images: a new file or folder changes the folder that it is in."""
    times = {}
    for name, subfolders, _ in os.walk(store.studies):
        folder = Path(name)
        is_passed_over = {sub for sub in subfolders if sub.startswith(".") or folder / sub == store.state_dir}
        subfolders[:] = [sub for sub in subfolders if sub not in is_passed_over | RESERVED_FOLDERS]
        times[folder] = _modified_at(folder)
    return times


def _modified_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return -1


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"`{name}` is a JSON object; got {value!r:.80}")
    return value
