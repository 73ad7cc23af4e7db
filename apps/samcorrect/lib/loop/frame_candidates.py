"""SAM's candidates of a cohort in the student's frame, where labels, students and candidates can be compared."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from samcorrect.lib.core.quality import confidence_agreement
from samcorrect.lib.errors import ImageError, ProtocolError
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.cohort import Cohort
from samcorrect.lib.loop.pseudo_label import choose_candidates, see_along_all_axes
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.transforms.frame import labels_to_frame

STAGE_READ_CANDIDATES = "reading SAM candidates"


@dataclass(frozen=True)
class FrameCandidates:
    """The candidates of one structure in one image.

    Attributes:
        bits: (K, D, side, side / 8) uint8, eight mask pixels a byte.
        confidence: (K,) predicted IoU times stability.
        first: The candidate that is taken before there are students.
        confidence_agreement: `core.quality.confidence_agreement` in SAM's own frame, by which `first` was chosen; nan
            where it is not defined.
    """

    bits: np.ndarray
    confidence: np.ndarray
    first: int
    confidence_agreement: float

    @property
    def masks(self) -> np.ndarray:
        """(K, D, side, side) bool."""
        return np.unpackbits(self.bits, axis=-1).astype(bool)


# Of each image the candidates of its structures; None where its label was not made from prompts.
CohortCandidates = list[list[FrameCandidates] | None]


def read_candidates(workspace: Workspace, cohort: Cohort, *, progress: Progress = no_progress) -> CohortCandidates:
    """The candidates of all images, from the disk where they were made before.

    An image whose prompt is no longer in the boxes file, or that cannot be read any more, counts as one without.
    """
    found: CohortCandidates = []
    bits = cohort.scratch.growing()
    for number in range(len(cohort)):
        of_image = _of_image(workspace, cohort, number) if cohort.labels[number].prompts else None
        for k, one in enumerate(of_image or ()):
            bits.append(torch.from_numpy(one.bits).flatten(0, 1))
            of_image[k] = replace(one, bits=one.bits[..., :0].copy())
        found.append(of_image)
        progress(STAGE_READ_CANDIDATES, number + 1, len(cohort))
    if any(found):
        _give_back_bits(found, bits.finish().numpy())
    return found


def _give_back_bits(found: CohortCandidates, rows: np.ndarray) -> None:
    """Views of (N, side, side / 8) rows, of all candidates one after the other, in place of bits that are shapes."""
    start = 0
    for of_image in found:
        for k, one in enumerate(of_image or ()):
            shape = one.bits.shape[:2]
            stop = start + shape[0] * shape[1]
            of_image[k] = replace(one, bits=rows[start:stop].reshape(*shape, *rows.shape[1:]))
            start = stop


def _of_image(workspace: Workspace, cohort: Cohort, number: int) -> list[FrameCandidates] | None:
    row, side = cohort.images[number], cohort.config.side_px
    try:
        volume = workspace.store.read_image(row.id)
        candidates = see_along_all_axes(workspace, volume, row.path, find_candidates(workspace, volume, row.path))
    except (ProtocolError, ImageError):
        return None
    chosen = choose_candidates(workspace, candidates)
    return [
        FrameCandidates(
            np.packbits(shrink_masks(np.stack([c.offered(n) for n in range(len(c.masks))]), side), axis=-1),
            c.confidence,
            first,
            confidence_agreement(c.overlaps, c.confidence),
        )
        for c, first in zip(candidates, chosen, strict=True)
    ]


def shrink_masks(masks: np.ndarray, side_px: int) -> np.ndarray:
    """(K, D, side, side) masks of SAM's frame in a frame of another side; both pad one share of their far ends.

    They are made smaller as labels are, so that one that is not empty stays so.
    """
    small = np.zeros((*masks.shape[:2], side_px, side_px), bool)
    for mask, of_mask in zip(masks, small, strict=True):
        filled = mask.any((1, 2))
        if filled.any():
            of_mask[filled] = (labels_to_frame(mask[filled].transpose(1, 2, 0), (1,), side_px) == 1).numpy()
    return small
