"""SAM asked again: where students know a structure, the box that they see in an image is nearer to it than the
protocol's, which may be the same for all images.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from samcorrect.lib.core.boxes import box_of_mask, candidate_boxes
from samcorrect.lib.core.metrics import dice
from samcorrect.lib.errors import ImageError
from samcorrect.lib.loop.candidates import (
    CANDIDATES_FORMAT,
    CANDIDATES_NAME,
    Candidates,
    load_candidates,
    save_candidates,
)
from samcorrect.lib.loop.cohort import Cohort
from samcorrect.lib.loop.frame_candidates import shrink_masks
from samcorrect.lib.loop.pseudo_label import choose_of_structure
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.workspace import Models, Progress, Workspace, no_progress
from samcorrect.lib.networks.sam import stability_scores
from samcorrect.lib.store.volumes import Volume
from samcorrect.lib.transforms.frame import content_size

STAGE_ASK = "asking SAM with the boxes of the students"
# The box itself, four sizes of it and three with moved sides: a student's box is nearer than that of a protocol.
MAX_ASKED = 8
# SAM is asked about structures on which students and labels agree this well in the median. Where they do not, its masks
# follow the prompt more than the image: with the box of students they take over the faults of these.
MIN_DICE_TO_ASK = 0.9


@dataclass(frozen=True)
class AskedMasks:
    """What SAM takes in the N slices of a cohort when it is asked with the boxes of students, of K structures.

    Attributes:
        bits: (N, K, M, side, side / 8) uint8 in the student's frame, eight mask pixels a byte: of M prompts around the
            box, the mask that SAM takes first.
        confidence: (N, K, M) predicted IoU times stability, the same in all slices of an image; nan where SAM was not
            asked.
        boxes_vox: (N, K, 4) the boxes, [start0, start1, stop0, stop1) along the image's first two axes; nan where
            students see nothing or SAM was not asked.
    """

    bits: torch.Tensor
    confidence: np.ndarray
    boxes_vox: np.ndarray

    def boxes(self, span: slice, k: int) -> np.ndarray | None:
        """(D, 4) `boxes_vox` of structure number k in the slices of an image; None where SAM was not asked."""
        boxes_vox = self.boxes_vox[span, k]
        return None if np.isnan(boxes_vox).all() else boxes_vox

    def masks(self, span: slice, k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(M, D, side, side) bool of structure number k in the slices of an image, the one that SAM takes first, and
        their (M,) confidences; None where SAM was not asked.
        """
        if self.boxes(span, k) is None:
            return None
        masks = np.unpackbits(self.bits[span, k].numpy(), axis=-1).astype(bool)
        return masks.swapaxes(0, 1), self.confidence[span.start, k]


def structures_to_ask(cohort: Cohort, probs: torch.Tensor) -> np.ndarray:
    """(K,) bool: the structures that students know well enough for SAM to be asked with their boxes.

    Args:
        cohort: The labels.
        probs: (N, K + 1, side, side) of students that did not learn the image that they see.
    """
    values = np.full((len(cohort), cohort.n_structures), np.nan)
    for number, span in enumerate(cohort.spans):
        seen = probs[span].argmax(1).numpy()
        for k in range(cohort.n_structures):
            values[number, k] = dice(cohort.mask(number, k + 1), seen == k + 1)
    known = [of[np.isfinite(of)] for of in values.T]
    return np.array([bool(len(of)) and bool(np.median(of) >= MIN_DICE_TO_ASK) for of in known])


def ask_cohort(
    workspace: Workspace,
    cohort: Cohort,
    probs: torch.Tensor,
    is_asked: np.ndarray,
    *,
    progress: Progress = no_progress,
) -> AskedMasks | None:
    """Ask SAM with the boxes of students; None where there is no structure to ask about.

    Args:
        workspace: For SAM.
        cohort: The images.
        probs: (N, K + 1, side, side) of students that did not learn the image that they see.
        is_asked: (K,) bool, the structures to ask about.
        progress: Told about each image.
    """
    if not is_asked.any():
        return None
    side, shape = cohort.config.side_px, (len(cohort.frames), cohort.n_structures)
    n_asked = _n_asked(workspace)
    bits = cohort.scratch.zeros(*shape, n_asked, side, side // 8, dtype=torch.uint8)
    confidence, boxes_vox = np.full((*shape, n_asked), np.nan), np.full((*shape, 4), np.nan)
    for number, (row, span) in enumerate(zip(cohort.images, cohort.spans, strict=True)):
        seen, volume = probs[span].argmax(1).numpy(), None
        for k in np.flatnonzero(is_asked):
            if not (seen == k + 1).any():
                continue
            try:
                volume = workspace.store.read_image(row.id) if volume is None else volume
            except ImageError:  # it was there when the cohort was read
                break
            boxes_vox[span, k] = boxes_of_students(seen == k + 1, cohort.shapes[number][:2])
            found, which = ask_sam(workspace, volume, int(k), boxes_vox[span, k])
            order = np.r_[which, np.delete(np.arange(n_asked), which)]
            masks = np.packbits(shrink_masks(found.masks[order], side), axis=-1)
            bits[span, k], confidence[span, k] = torch.from_numpy(masks.swapaxes(0, 1)), found.confidence[order]
        progress(STAGE_ASK, number + 1, len(cohort))
    return AskedMasks(bits, confidence, boxes_vox)


def boxes_of_students(peer: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """The box of a mask in each slice.

    Args:
        peer: (D, side, side) bool in the student's frame.
        shape_hw: Rows and columns of the image.

    Returns:
        (D, 4) [start0, start1, stop0, stop1) in voxels; nan in slices without the structure.
    """
    scale = np.tile(np.array(shape_hw) / content_size(shape_hw, peer.shape[-1]), 2)
    boxes = np.full((len(peer), 4), np.nan)
    for number in np.flatnonzero(peer.any((1, 2))):
        boxes[number] = box_of_mask(peer[number]).T.ravel() * scale
    return boxes


def ask_sam(workspace: Models, volume: Volume, k: int, boxes_vox: np.ndarray) -> tuple[Candidates, int]:
    """Candidates of one structure from prompts around a box in each slice, from the disk where they were made before,
    and which of them SAM takes.

    Args:
        workspace: With a protocol.
        volume: The image.
        k: Number of the structure.
        boxes_vox: (D, 4) in slices along the last axis, as from `boxes_of_students`; at least one.
    """
    settings, sam, protocol = workspace.settings, workspace.sam, workspace.require_protocol()
    window, n_asked = protocol.window_of(protocol.structures[k].name), _n_asked(workspace)
    key = hashlib.sha256(volume.array.tobytes())
    key.update(f"{volume.array.shape} {settings.seed} {k}".encode())
    jitter = [settings.seed, k, int(key.hexdigest()[:8], 16)]
    parts = [window, n_asked, sam.digest, sam.runtime, sam.embedding_identity, CANDIDATES_FORMAT]
    key.update(f"asked again {parts} {np.round(volume.spacing_mm, 4)}".encode() + np.round(boxes_vox, 3).tobytes())
    path = workspace.cache_dir / CANDIDATES_NAME / f"{key.hexdigest()}.npz"
    known = load_candidates(path, 1)
    if known is None:
        known = [_prompt_slices(Slices(workspace, volume, 2, window), boxes_vox, n_asked, jitter)]
        save_candidates(path, known)
    return known[0], choose_of_structure(workspace, known[0], k)


def _n_asked(workspace: Models) -> int:
    return min(MAX_ASKED, workspace.settings.n_prompts)


def _prompt_slices(slices: Slices, boxes_vox: np.ndarray, n_asked: int, jitter: list[int]) -> Candidates:
    def around(box: np.ndarray) -> np.ndarray:
        # The same jitter in every slice.
        rng = np.random.default_rng(jitter)
        return candidate_boxes(box.reshape(2, 2).T, slices.shape[:2], n_candidates=n_asked, rng=rng)

    sam = slices.sam
    masks = np.zeros((n_asked, slices.shape[2], sam.mask_px, sam.mask_px), bool)
    iou, stability = np.zeros(n_asked), np.zeros(n_asked)
    numbers = np.flatnonzero(np.isfinite(boxes_vox).all(1))
    for number in numbers:
        prompts = slices.boxes(around(boxes_vox[number]))
        logits, slice_iou = sam.decode(slices.embedding(number), boxes=prompts)
        masks[:, number] = (logits > 0).numpy()
        iou += slice_iou
        stability += stability_scores(logits)
    hull = np.concatenate([np.nanmin(boxes_vox[:, :2], 0), np.nanmax(boxes_vox[:, 2:], 0)])
    return Candidates(slices.over_last_axis(masks), iou / len(numbers), stability / len(numbers), around(hull))
