"""All images of a store with one label each, in the student's frame: what scoring, correction and training work on."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from samcorrect.lib.core.pseudo_label import merge_structures
from samcorrect.lib.errors import ImageError, LabelError
from samcorrect.lib.loop.scratch import Scratch
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.samples import SLICES_AT_ONCE
from samcorrect.lib.networks.student import StudentConfig
from samcorrect.lib.store.image_ids import log_name
from samcorrect.lib.store.records.labels import best_of
from samcorrect.lib.store.schema import TAG_FINAL, TAG_ORIGINAL, TAGS, ImageRow, LabelVersionRow
from samcorrect.lib.transforms.frame import content_size, labels_to_frame, normalise_intensity, to_frame

logger = logging.getLogger(__name__)

STAGE_READ = "reading images"
NO_LABELS = "no image has a label yet; run `samcorrect pseudo-label` or `samcorrect import-labels` first"


@dataclass(frozen=True)
class Cohort:
    """N slices of n images.

    Attributes:
        images: Rows of the n images.
        labels: The label of each image.
        affines: (4, 4) of each image.
        shapes: (H, W, D) of each image.
        spans: The slices of each image among the N.
        frames: (N, side, side) float32 in [0, 1].
        targets: (N, side, side) uint8 channel numbers.
        config: Names, indices and side for a student of this cohort.
        scratch: Where other arrays of all slices belong.
    """

    images: list[ImageRow]
    labels: list[LabelVersionRow]
    affines: list[np.ndarray]
    shapes: list[tuple[int, int, int]]
    spans: list[slice]
    frames: torch.Tensor
    targets: torch.Tensor
    config: StudentConfig
    scratch: Scratch

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_approved(self) -> np.ndarray:
        """(n,) bool, `are_approved` of the labels."""
        return are_approved(self.labels)

    @property
    def is_absent(self) -> np.ndarray:
        """(n, K) bool, `absent_structures` of the labels."""
        return absent_structures(self.labels, self.config.names)

    @property
    def is_empty(self) -> np.ndarray:
        """(n, K) bool: the label has no voxel of the structure."""
        channels = range(1, self.n_structures + 1)
        found = [[bool((self.targets[span] == k).any()) for k in channels] for span in self.spans]
        return ~np.array(found, dtype=bool).reshape(len(self), self.n_structures)

    @property
    def n_structures(self) -> int:
        """Structures of the protocol."""
        return len(self.config.indices)

    def content(self, number: int) -> np.ndarray:
        """(D, h, w) float32: the frames of image `number` without their padding."""
        height, width = content_size(self.shapes[number][:2], self.config.side_px)
        return self.frames[self.spans[number], :height, :width].numpy()

    def mask(self, number: int, channel: int) -> np.ndarray:
        """(D, side, side) bool mask of channel k + 1 in image `number`."""
        return (self.targets[self.spans[number]] == channel).numpy()

    def of_slices(self, values: np.ndarray) -> torch.Tensor:
        """Spread (n,) values of images to (N,) float32 of their slices."""
        return torch.repeat_interleave(torch.as_tensor(values, dtype=torch.float32), torch.tensor(self.lengths()))

    def lengths(self, numbers: Iterable[int] | None = None) -> tuple[int, ...]:
        """Slices of some images, by default of all."""
        return tuple(
            self.spans[n].stop - self.spans[n].start for n in (range(len(self)) if numbers is None else numbers)
        )

    def portions(self, numbers: np.ndarray) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
        """The slice numbers of some images and how many there are of each, about SLICES_AT_ONCE at a time, in order."""
        ends = np.cumsum(self.lengths(numbers))
        for portion in np.split(numbers, np.flatnonzero(np.diff((ends - 1) // SLICES_AT_ONCE)) + 1):
            yield self.subset(portion), self.lengths(portion)

    def subset(self, numbers: np.ndarray) -> torch.Tensor:
        """Slice numbers of some images."""
        return torch.cat([torch.arange(self.spans[n].start, self.spans[n].stop) for n in numbers])


def draw_masks(masks: Sequence[np.ndarray]) -> torch.Tensor:
    """(D, side, side) uint8 targets of the (D, side, side) bool masks of all structures of an image."""
    return torch.from_numpy(merge_structures(masks, range(1, len(masks) + 1)))


def are_approved(labels: Sequence[LabelVersionRow]) -> np.ndarray:
    """(n,) bool: the label is a person's."""
    return np.array([label.tag == TAG_FINAL for label in labels], dtype=bool)


def absent_structures(labels: Sequence[LabelVersionRow], names: Sequence[str]) -> np.ndarray:
    """(n, K) bool: the label was made from a boxes file which says that the structure is not in the image."""
    no_box = {"source": "boxes_file", "box": None}
    told = [[label.prompts.get(name) == no_box for name in names] for label in labels]
    return np.array(told, dtype=bool).reshape(len(labels), len(names))


def best_labels(workspace: Workspace) -> dict[str, LabelVersionRow]:
    """Image id to its best label, by `best_of`; an image of which every label is rejected has none."""
    ledger = workspace.store.ledger
    latest = ledger.latest_labels()
    best: dict[str, LabelVersionRow] = {}
    for row in ledger.images():
        label = best_of(latest.get((row.id, tag)) for tag in TAGS)
        if label is not None:
            best[row.id] = label
    return best


def original_labels(workspace: Workspace) -> dict[str, LabelVersionRow]:
    """Image id to its newest label that was made from prompts or imported, whatever was made of it since."""
    latest = workspace.store.ledger.latest_labels()
    return {image_id: label for (image_id, tag), label in latest.items() if tag == TAG_ORIGINAL}


def standing(workspace: Workspace, cohort: Cohort) -> np.ndarray:
    """(n,) bool: nobody rejected the label, also not since it was read."""
    rejected = {label.id for label in workspace.store.ledger.rejected_labels()}
    return np.array([label.id not in rejected for label in cohort.labels], dtype=bool)


def load_cohort(
    workspace: Workspace, labels: Mapping[str, LabelVersionRow], *, progress: Progress = no_progress
) -> Cohort:
    """Read all images that have a label.

    An image or label that cannot be read is quarantined with its reason.

    Args:
        workspace: With a protocol.
        labels: Image id to the label to use.

    Raises:
        LabelError: No image has a label; says which command makes them.
    """
    protocol, store = workspace.require_protocol(), workspace.store
    rows = [row for row in store.ledger.images() if row.id in labels]
    side = workspace.settings.student_side_px
    config = StudentConfig(
        protocol.names, protocol.indices, side, dims=workspace.settings.student_dims, window_hu=protocol.image_window_hu
    )
    images, used, affines, shapes = [], [], [], []
    frames, targets = workspace.scratch.growing(), workspace.scratch.growing()
    for done, row in enumerate(rows):
        try:
            volume = store.read_image(row.id)
            label_map = store.read_label(labels[row.id], volume)
        except (ImageError, LabelError) as error:
            store.ledger.quarantine(row.id, str(error))
            logger.warning("image %s is quarantined: %s", log_name(row.id), type(error).__name__)
            continue
        images.append(row)
        used.append(labels[row.id])
        affines.append(volume.affine)
        shapes.append(volume.array.shape)
        frames.append(to_frame(normalise_intensity(volume.array, config.window_hu), side))
        targets.append(labels_to_frame(label_map, protocol.indices, side).to(torch.uint8))
        progress(STAGE_READ, done + 1, len(rows))
    if not images:
        raise LabelError(NO_LABELS)
    ends = np.cumsum([shape[2] for shape in shapes])
    spans = [slice(int(end - shape[2]), int(end)) for end, shape in zip(ends, shapes, strict=True)]
    arrays = (frames.finish(), targets.finish())
    return Cohort(images, used, affines, shapes, spans, *arrays, config, workspace.scratch)
