"""The host's datastore on top of the ledger: what its endpoints, and through them Slicer and OHIF, see of the store."""

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from functools import cache
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from samcorrect.lib.errors import RequestError, StoreError, UnknownLabelError
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.dicomweb import DicomWebStudies
from samcorrect.lib.store.label_names import check_label_info, map_values, name_indices, present_indices
from samcorrect.lib.store.labels import MACHINE_TAGS, LabelStore
from samcorrect.lib.store.publishing import Publisher
from samcorrect.lib.store.records.base import merge_notes
from samcorrect.lib.store.records.listing import META, segmentation_meta
from samcorrect.lib.store.reviewer import take_meta
from samcorrect.lib.store.schema import IMAGE_STATUS_OK, TAG_FINAL, TAG_ORIGINAL, USER, ImageRow, LabelVersionRow
from samcorrect.lib.store.volumes import IMAGE_SUFFIXES, read_image, read_label_map, suffix_of, write_label_map

logger = logging.getLogger(__name__)

TAG_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,31}")
# Looking for new images that took longer than this pauses that many times as long as it took.
QUICK_CHECK_S, CHECK_PAUSE = 0.1, 9
# A PACS that could not list its series is asked again after this.
RETRY_S = 30.0
MAX_SUFFIX = max(map(len, IMAGE_SUFFIXES))
NOTHING_IS_LOST = "samcorrect keeps every image and every version of a label; submit a new label instead"


def check_tag(tag: object) -> str:
    """Return `tag` if it can name a label's tag.

    Raises:
        RequestError: It cannot.
    """
    if not isinstance(tag, str) or not TAG_PATTERN.fullmatch(tag):
        raise RequestError(f"{str(tag)[:40]!r} is not a tag: 1 to 32 of a-z, 0-9, '_' and '-', beginning with a letter")
    return str(tag.value if isinstance(tag, DefaultLabelTag) else tag)


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
        self._next_check_at, self._is_list_old = 0.0, False
        is_in_pacs = isinstance(store.studies, DicomWebStudies)
        self._publisher = Publisher(store, store.studies, protocol) if is_in_pacs else None
        # What `json_bytes` has put together: image id to its text, up to a revision, and all of it.
        self._listing = threading.Lock()
        self._objects: dict[str, str] = {}
        self._revision, self._listed = 0, b""

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
        """Note images that were added to the studies, or are gone from them; send the PACS what it did not take yet."""
        self._store.rescan()
        if self._publisher is not None:
            self._publisher.publish_pending()

    def status(self) -> dict[str, Any]:
        """Counts; `completed` are the images that a person approved."""
        self._refresh_if_changed()
        counts = self._store.ledger.counts()
        tags = {key.removeprefix("tag_"): n for key, n in counts.items() if key.startswith("tag_")}
        return {"total": counts["images"], "completed": counts["approved"], "label_tags": tags}

    def json(self) -> dict[str, Any]:
        """Per image what Slicer and its Reviewer read: the names in its best label, and what people did and thought."""
        return json.loads(self.json_bytes())

    def json_bytes(self) -> bytes:
        """`json` as text; only images that changed since the last call are read, so that it can be asked for often."""
        self._refresh_if_changed()
        with self._listing:
            # Of many images few differ in suffix, or in the structures that their labels hold.
            suffix_at_end, original_of = cache(lambda end: suffix_of(Path(end))), cache(self._original_text)
            changed = self._store.ledger.listings(self._revision)
            for image_id, path, added_at, present, shown, status, revision in changed:
                self._revision = revision
                if status != IMAGE_STATUS_OK:
                    self._objects.pop(image_id, None)
                    continue
                suffix, quoted = suffix_at_end(path[-MAX_SUFFIX:]), encode_basestring_ascii(image_id)
                original = original_of(present) if present else ""
                labels = f"{original},{shown[1:-1]}" if original and shown else original or shown[1:-1]
                name = f'{quoted[:-1].replace("/", "_")}{suffix}"'
                # Slicer parses all of this at every sample; the Reviewer shows the time where there is a submit.
                since = f',"ts":{int(added_at)}' if shown else ""
                self._objects[image_id] = (
                    f'{quoted}:{{"image":{{"info":{{"name":{name}{since}}}}},"labels":{{{labels}}}}}'
                )
            if changed or not self._listed:
                about = f'"name":{json.dumps(self._name)},"description":{json.dumps(self._description)}'
                self._listed = f'{{{about},"objects":{{{",".join(self._objects.values())}}}}}'.encode()
            return self._listed

    def datalist(self) -> list[dict[str, str]]:
        """Image and label file of every approved image."""
        labels = self._store.ledger.latest_labels()
        images = {image.id: image for image in self._store.ledger.images()}
        return [
            {"image": str(self._store.image_path(images[image_id])), "label": str(self._store.label_path(row))}
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
        return self._store.ledger.image_ids()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images that have a label with `label_tag`, by default `final`."""
        labeled = self._store.ledger.image_ids_with(check_tag(label_tag or TAG_FINAL))
        return [image_id for image_id in self.list_images() if image_id in labeled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images that have no label with `label_tag`, by default `final`."""
        labeled = set(self.get_labeled_images(label_tag))
        return [image_id for image_id in self.list_images() if image_id not in labeled]

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """The voxels of an image, (H, W, D) float32."""
        return read_image(Path(self.get_image_uri(image_id))).array

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image. Raises RequestError, UnknownImageError or ImageError."""
        return str(self._store.image_path(self._image(image_id)))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What clients noted about an image."""
        return dict(self._image(image_id).info)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Merge notes into an image's info. Raises RequestError where they grow beyond MAX_NOTES_BYTES."""
        self._store.ledger.update_image_info(self._image(image_id).id, _mapping(info, "info"))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy an upload into the studies; an image that is there is never overwritten.

        Raises:
            RequestError: The id cannot name an image, or is taken, or the params are malformed.
            ImageError: The upload is not a readable image.
        """
        info = merge_notes({}, _mapping(image_info, "params"))
        image = self._store.studies.add(image_id, Path(image_filename))
        self._store.ledger.sync_images([image])
        self._store.ledger.update_image_info(image.id, info)
        return image.id

    def remove_image(self, image_id: str) -> None:
        """Raises RequestError: nothing is deleted through the API."""
        raise RequestError(f"the image {image_id[:80]!r} is not deleted: {NOTHING_IS_LOST}")

    # Labels

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tag to label id of the labels that an image has."""
        return dict.fromkeys(self._store.ledger.tags(self._image(image_id).id), image_id)

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
        is_canonical = row.tag in MACHINE_TAGS and not row.maker.startswith(USER)
        if label_tag == TAG_ORIGINAL:
            self._store.require_same_image(row)
        if label_tag != TAG_ORIGINAL or is_canonical:
            return str(path)
        canonical = self._store.state_dir / "cache" / "canonical" / f"{row.id}.{row.content_sha256[:16]}.nii.gz"
        if not canonical.exists():
            image = self._store.read_image(row.image_id)
            write_label_map(canonical, self._store.read_label(row, image), image.affine)
        return str(canonical)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Names in a label, with the values of the file that `get_label_uri` gives, and where it comes from."""
        row = self._label(label_id, label_tag)
        names, entries = self.label_names(row), row.info.get("label_info")
        if label_tag != TAG_ORIGINAL and entries:
            names = name_indices(map(int, row.info["value_to_index"]), None, entries)
        review = self._store.ledger.last_review(row.id)
        return {
            "params": {"label_names": names},
            "tag": row.tag,
            "version": row.id,
            "state": row.state,
            "reason": review.reason if row.is_rejected and review is not None else None,
            META: segmentation_meta(row, review),
            "maker": row.maker,
            "round": row.round,
            "model_digest": row.model_digest,
            "content_sha256": row.content_sha256,
            "created_at": row.created_at,
            "viewer": row.info.get("viewer", {}),
        }

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Merge notes of a viewer into a label's info; `segmentationMeta` approves, rejects or comments, and nothing
        else of a label can be changed. What it approves goes to the PACS.
        """
        label, notes = self._label(label_id, label_tag), _mapping(info, "info")
        row = label
        if META in notes:
            user = str(notes.get("user") or "unknown")
            row = take_meta(self._store, label, self._store.ledger.last_review(label.id), notes[META], user)
        self._store.ledger.update_label_notes(row.id, notes)
        if row is not label:
            self.publish_label(row.image_id)

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
        params, tag = _mapping(label_info, "params"), check_tag(label_tag)
        self._image(image_id)
        entries = check_label_info(params.get("label_info"))
        present = present_indices(read_label_map(path).array)
        value_to_index = map_values(present, entries, self._protocol)
        info = {"label_info": entries, "value_to_index": {str(k): v for k, v in value_to_index.items()}}
        user = str(params.get("user") or params.get("client_id") or "unknown")[:200]
        return self._store.submit_label(image_id, path, tag=tag, user=user, info=info).image_id

    def publish_label(self, image_id: str) -> dict[str, Any]:
        """Send an image's final label to the PACS where its image comes from one.

        Returns:
            What the reply of a submit or an approval says of it: `pacs` with `state` and `reason`.
        """
        told = self._publisher.publish(image_id) if self._publisher is not None else {}
        return {"pacs": told} if told else {}

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Raises RequestError: nothing is deleted through the API."""
        raise RequestError(f"the label {label_tag[:40]!r} of {label_id[:80]!r} is not deleted: {NOTHING_IS_LOST}")

    def label_names(self, row: LabelVersionRow) -> dict[str, int]:
        """Name to index of the structures that are present in a label, in index order."""
        return name_indices(row.info["present_indices"], self._protocol, row.info.get("label_info", ()))

    def _original_text(self, present: str) -> str:
        told = json.loads(present)
        names = name_indices(told["present_indices"], self._protocol, told["label_info"])
        info = {"params": {"label_names": names}} | ({META: told[META]} if META in told else {})
        return json.dumps({TAG_ORIGINAL: {"info": info}}, separators=(",", ":"))[1:-1]

    def _image(self, image_id: str) -> ImageRow:
        return self._store.find_image(image_id)

    def _label(self, image_id: str, tag: str) -> LabelVersionRow:
        self._image(image_id)
        if check_tag(tag) != TAG_ORIGINAL:
            return self._store.label(image_id, tag)
        best = self._store.ledger.best_label(image_id, with_rejected=True)
        if best is None:
            raise UnknownLabelError(f"{image_id} has no label yet; infer with the model sam makes one")
        return best

    def _refresh_if_changed(self) -> None:
        """Look for new and removed images; in large studies that takes at most a tenth of the time.

        Where a PACS cannot be asked, the images known so far are served, and the log says so once.
        """
        started_s = time.monotonic()
        if started_s < self._next_check_at:
            return
        pause_s = 0.0
        try:
            if self._store.studies.has_changed():
                self.refresh()
            self._is_list_old = False
        except StoreError as error:
            if self._publisher is None:
                raise
            if not self._is_list_old:
                logger.warning("the list of images is old until the PACS can be asked again: %s", error)
            self._is_list_old, pause_s = True, RETRY_S
        ended_s = time.monotonic()
        if ended_s - started_s > QUICK_CHECK_S:
            pause_s = max(pause_s, CHECK_PAUSE * (ended_s - started_s))
        self._next_check_at = ended_s + pause_s


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"`{name}` is a JSON object; got {value!r:.80}")
    return value
