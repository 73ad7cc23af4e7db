"""Candidate masks of one image: every prompt of every structure through SAM, kept on disk for later rounds."""

import hashlib
import io
import logging
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from samcorrect.lib.core.boxes import box_of_mask, candidate_boxes, slice_axis
from samcorrect.lib.core.quality import pairwise_dice
from samcorrect.lib.errors import ProtocolError, StoreError
from samcorrect.lib.loop.propagation import CarriedMasks, carry_masks
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.workspace import Models
from samcorrect.lib.networks.clicks import MASK_PROMPT_LOGIT
from samcorrect.lib.networks.sam import stability_scores
from samcorrect.lib.networks.student import Student
from samcorrect.lib.protocol import Protocol, Structure
from samcorrect.lib.store.files import write_bytes_atomically
from samcorrect.lib.store.volumes import Volume

logger = logging.getLogger(__name__)

# Raised whenever prompts, preprocessing or the way through a volume change, so that candidates of another release are
# not taken for ours.
CANDIDATES_FORMAT = 6
# Below the folder of caches.
CANDIDATES_NAME = "candidates"
# What a label says of the candidate that was taken: its number, two of its measures, and along how many axes of the
# volume it was found.
OF_CANDIDATE = ("candidate", "predicted_iou", "stability", "n_axes")
N_AXES = 3


@dataclass(frozen=True)
class Candidates:
    """The masks that SAM gave for the prompts of one structure in one image.

    Attributes:
        masks: (K, D, mask_px, mask_px) bool over SAM's frame, whatever axis was cut along; slices outside the box are
            empty. Number 0 is the box as given.
        predicted_iou: (K,) mean over the prompted slices, in [0, 1].
        stability: (K,) likewise.
        boxes: (K, 4) boxes along the first two axes, in voxels; all 0 where there was none, and no mask then.
        shared: (D, mask_px, mask_px) bool, what the masks of the box as given along all axes share, see `loop.views`;
            None where it was not asked for.
    """

    masks: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray
    boxes: np.ndarray
    shared: np.ndarray | None = None

    def offered(self, number: int) -> np.ndarray:
        """(D, mask_px, mask_px) the mask of a candidate that a label may take: of the box as given what its masks along
        all axes share, where that was asked for.
        """
        return self.shared if self._is_shared(number) else self.masks[number]

    def _is_shared(self, number: int) -> bool:
        return number == 0 and self.shared is not None

    @property
    def confidence(self) -> np.ndarray:
        """(K,) predicted IoU times stability."""
        return self.predicted_iou * self.stability

    @cached_property
    def overlaps(self) -> np.ndarray:
        """(K, K) `core.quality.pairwise_dice`."""
        return pairwise_dice(self.masks)

    def info(self, number: int) -> dict[str, float]:
        """What a label's info says of a candidate that was taken."""
        n_axes = N_AXES if self._is_shared(number) else 1
        told = (number, float(self.predicted_iou[number]), float(self.stability[number]), n_axes)
        return dict(zip(OF_CANDIDATE, told, strict=True))

    def box(self, number: int) -> list[float] | None:
        """The box of a candidate, as a label's prompts have it; None where there was none."""
        return [round(float(v), 2) for v in self.boxes[number]] if self.boxes[number].any() else None


@dataclass(frozen=True)
class Prompt:
    """Where a structure is in an image.

    Attributes:
        box: (3, 2) in voxels.
        hint: (H, W, D) bool mask that goes with the box, or None.
        window_hu: How intensities are seen, or None.
        axis: Along which slices are cut.
    """

    box: np.ndarray
    hint: np.ndarray | None
    window_hu: tuple[float, float] | None
    axis: int


def prompting_student(workspace: Models) -> Student | None:
    """The student that gives prompts; None where no structure of the protocol asks for it.

    Raises:
        ProtocolError: A structure asks for it and none is promoted.
    """
    asking = [s.name for s in workspace.require_protocol().structures if s.prompt.source == "student"]
    student = workspace.student() if asking else None
    if asking and student is None:
        raise ProtocolError(
            f"the prompt of {', '.join(asking)} comes from the student, and none is promoted yet; "
            "run a round with a box first, or bring one with `samcorrect models import`"
        )
    return student


def find_candidates(workspace: Models, volume: Volume, image_name: str) -> list[Candidates]:
    """Candidates of every structure of the protocol, from the disk where they were made before.

    Args:
        workspace: With a protocol.
        volume: The image.
        image_name: File name, as a boxes file has it.

    Raises:
        ProtocolError: A boxes file has no box for the image, or a `student` prompt has no student.
    """
    protocol, settings, sam = workspace.require_protocol(), workspace.settings, workspace.sam
    student = prompting_student(workspace)
    key = hashlib.sha256(volume.array.tobytes())
    parts = [
        volume.array.shape,
        image_name,
        protocol.digest,
        sam.digest,
        sam.runtime,
        settings.n_prompts,
        settings.seed,
    ]
    key.update(f"{parts} {student.digest if student else ''}".encode())
    jitter_seed = int(key.hexdigest()[:8], 16)
    # By the spacing an image is cut and seen; a header that was put right changes the masks.
    key.update(f"{CANDIDATES_FORMAT} {sam.embedding_identity} {np.round(volume.spacing_mm, 4)}".encode())
    path = workspace.cache_dir / CANDIDATES_NAME / f"{key.hexdigest()}.npz"
    known = load_candidates(path, len(protocol.structures))
    if known is not None:
        return known
    opened: dict[tuple[tuple[float, float] | None, int], Slices] = {}
    found = []
    for number, prompt in enumerate(prompts_of(workspace, volume, image_name)):
        if prompt is None:
            found.append(_nothing(settings.n_prompts, volume.array.shape[2], sam.mask_px))
            continue
        way = prompt.window_hu, prompt.axis
        if way not in opened:
            opened[way] = Slices(workspace, volume, prompt.axis, prompt.window_hu)
        rng = np.random.default_rng([settings.seed, number, jitter_seed])
        found.append(prompt_slices(opened[way], prompt.box, prompt.hint, settings.n_prompts, rng))
    save_candidates(path, found)
    return found


def prompts_of(workspace: Models, volume: Volume, image_name: str) -> list[Prompt | None]:
    """The prompt of every structure of the protocol in an image, None where there is none; errors as of
    `find_candidates`.
    """
    protocol, student = workspace.require_protocol(), prompting_student(workspace)
    student_label = student.predict(volume.array) if student else None
    prompts: list[Prompt | None] = []
    for structure in protocol.structures:
        box, hint = protocol.box_vox(structure, image_name, volume.array.shape), None
        if structure.prompt.source == "student":
            hint = student_label == structure.index
            box = box_of_mask(hint)
        window_hu = protocol.window_of(structure.name)
        axis = None if box is None else _slice_axis(protocol, structure, box, volume)
        prompts.append(None if box is None else Prompt(box, hint, window_hu, axis))
    return prompts


def _slice_axis(protocol: Protocol, structure: Structure, box: np.ndarray, volume: Volume) -> int:
    """The axis along which a structure is cut: by its usual box, so that it is the same in all images."""
    n_slices = volume.array.shape[2]
    if n_slices == 1 or (box[2] == (0, n_slices)).all():
        return 2  # an image, or a box that was drawn in slices
    size_vox = protocol.usual_sizes_vox.get(structure.name, box[:, 1] - box[:, 0])
    return slice_axis(np.array(size_vox) * volume.spacing_mm, volume.spacing_mm)


def _nothing(n_candidates: int, n_slices: int, side: int) -> Candidates:
    masks = np.zeros((n_candidates, n_slices, side, side), bool)
    return Candidates(masks, np.zeros(n_candidates), np.zeros(n_candidates), np.zeros((n_candidates, 4)))


def prompt_slices(
    slices: Slices, box: np.ndarray, hint: np.ndarray | None, n_candidates: int, rng: np.random.Generator
) -> Candidates:
    """Prompt the middle slice of a box (3, 2), then outwards by the neighbouring masks.

    With a hint, (H, W, D) bool, candidate 0 is prompted by its box and the hint together.
    """
    along = np.array(slices.in_order(tuple(box)))
    boxes = candidate_boxes(along[:2], slices.shape[:2], n_candidates=n_candidates, rng=rng)
    limits, sam = slices.boxes(boxes), slices.sam
    first, last = int(np.floor(along[2, 0])), min(slices.shape[2], int(np.ceil(along[2, 1])))
    middle = (first + last) // 2
    masks = np.zeros((n_candidates, slices.shape[2], sam.mask_px, sam.mask_px), bool)
    iou_sum, stability_sum, n_prompted = np.zeros(n_candidates), np.zeros(n_candidates), np.zeros(n_candidates)

    def decode(slice_index: int, prompts: np.ndarray, is_prompted: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        embedding = slices.embedding(slice_index)
        logits, iou = sam.decode(embedding, boxes=prompts)
        if hint is not None and is_prompted[0]:
            mask = slices.to_frame(np.take(hint, slice_index, slices.axis))
            as_logits = torch.from_numpy(np.where(mask, MASK_PROMPT_LOGIT, -MASK_PROMPT_LOGIT).astype(np.float32))
            logits[:1], iou[:1] = sam.decode(embedding, boxes=prompts[:1], mask_logits=as_logits)
        return logits, iou

    def keep(found: CarriedMasks) -> None:
        masks[found.is_prompted, found.slice_index] = found.masks
        iou_sum[found.is_prompted] += found.predicted_iou
        stability_sum[found.is_prompted] += stability_scores(found.logits)
        n_prompted[:] += found.is_prompted

    all_on = np.ones(n_candidates, bool)
    logits, iou = decode(middle, limits, all_on)
    keep(CarriedMasks(middle, all_on, logits, iou, (logits > 0).numpy()))
    for numbers in (range(middle + 1, last), range(middle - 1, first - 1, -1)):
        for found in carry_masks(decode, slices.frame, masks[:, middle], numbers, limits, step_px=slices.step_px):
            keep(found)
    n_prompted = np.maximum(n_prompted, 1)
    return Candidates(
        slices.over_last_axis(masks),
        iou_sum / n_prompted,
        stability_sum / n_prompted,
        _in_plane(boxes, box, slices.axis),
    )


def _in_plane(boxes: np.ndarray, box: np.ndarray, axis: int) -> np.ndarray:
    """(K, 4) boxes in slices along an axis of a box (3, 2), as they lie in slices along the last one."""
    whole = np.repeat(box[None], len(boxes), axis=0)
    whole[:, [a for a in range(3) if a != axis]] = boxes.reshape(-1, 2, 2).transpose(0, 2, 1)
    return whole[:, :2].transpose(0, 2, 1).reshape(-1, 4)


def save_candidates(path: Path, found: list[Candidates]) -> None:
    """Keep candidates; where the disk refuses, the log says so."""
    arrays = {}
    for number, candidates in enumerate(found):
        arrays[f"masks{number}"] = np.packbits(candidates.masks, axis=-1)
        arrays[f"iou{number}"] = candidates.predicted_iou
        arrays[f"stability{number}"] = candidates.stability
        arrays[f"boxes{number}"] = candidates.boxes
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    try:
        write_bytes_atomically(path, buffer.getvalue())
    except StoreError as error:  # a cache saves time and stops no work
        logger.warning("candidates are not kept: %s", error)


def load_candidates(path: Path, n_structures: int) -> list[Candidates] | None:
    """What was kept of so many structures; None where nothing was, or it is torn."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [
                Candidates(
                    np.unpackbits(arrays[f"masks{n}"], axis=-1).astype(bool),
                    arrays[f"iou{n}"],
                    arrays[f"stability{n}"],
                    arrays[f"boxes{n}"],
                )
                for n in range(n_structures)
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # Not made yet, or torn by a kill: made anew.
        return None
