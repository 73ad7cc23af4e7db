"""SAM's candidates chosen again: students that know a structure say which prompt's mask to take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from samcorrect.lib.core.correction import choose_correction, plausible_areas
from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.cohort import Cohort
from samcorrect.lib.loop.frame_candidates import shrink_masks
from samcorrect.lib.loop.peers import Peers
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress

STAGE_CHOOSE = "choosing among SAM's prompts again"
ANOTHER_PROMPT = "SAM from another prompt"


@dataclass(frozen=True)
class SecondChoice:
    """Another candidate of SAM, taken as a `core.correction.Choice` is.

    Attributes:
        bits: (D, side, side / 8) uint8, eight pixels a byte of the mask in SAM's frame: those of a store are kept at
            once.
        small_bits: The same of the mask in the student's frame.
        score_before, score_after: The judge's, in [0, 1].
        info, box: What the label says of it.
    """

    bits: np.ndarray
    small_bits: np.ndarray
    score_before: float
    score_after: float
    info: Mapping[str, float]
    box: list[float]
    name: ClassVar[str] = ANOTHER_PROMPT
    is_changed: ClassVar[bool] = True

    @property
    def soft(self) -> np.ndarray:
        """(D, side, side) float32 of the mask in SAM's frame."""
        return np.unpackbits(self.bits, axis=-1).astype(np.float32)

    @property
    def small(self) -> np.ndarray:
        """(D, side, side) bool of the mask in the student's frame."""
        return np.unpackbits(self.small_bits, axis=-1).astype(bool)


def choose_again(
    workspace: Workspace,
    cohort: Cohort,
    peers: Peers,
    is_open: np.ndarray,
    is_trusted: np.ndarray,
    *,
    progress: Progress = no_progress,
) -> dict[int, dict[int, SecondChoice]]:
    """Take another candidate where the peers agree better with it than with the label.

    Args:
        workspace: For the candidates.
        cohort: The labels.
        peers: They made none of the candidates; SAM did.
        is_open: (n, K) bool, which labels may change.
        is_trusted: (n, K) bool, whose areas are plausible.
        progress: Told about each image.

    Returns:
        Image number to structure number to what is taken in place of the label.
    """
    areas = usual_areas(cohort, is_trusted)
    numbers = np.flatnonzero((is_open & (peers.nearest >= 0)).any(1))
    taken: dict[int, dict[int, SecondChoice]] = {}
    for done, number in enumerate(numbers):
        row, span = cohort.images[number], cohort.spans[number]
        judge, frames = peers.probs[span].argmax(1), cohort.frames[span].numpy()
        try:
            found = find_candidates(workspace, workspace.store.read_image(row.id), row.path)
        except ProtocolError:  # its box is no longer in the boxes file
            continue
        for k in np.flatnonzero(is_open[number] & (peers.nearest[number] >= 0)):
            of, nearest = found[k], int(peers.nearest[number, k])
            mask = of.masks[nearest]
            small = shrink_masks(mask[None], cohort.config.side_px)[0]
            peer = (judge == k + 1).numpy()
            old = cohort.mask(int(number), k + 1)
            candidates = {ANOTHER_PROMPT: small.astype(np.float32)}
            choice = choose_correction(old, candidates, peer, area_range=areas[k], frames=frames)
            if choice.is_changed:
                taken.setdefault(int(number), {})[int(k)] = SecondChoice(
                    np.packbits(mask, axis=-1),
                    np.packbits(small, axis=-1),
                    choice.score_before,
                    choice.score_after,
                    of.info(nearest),
                    of.box(nearest),
                )
        progress(STAGE_CHOOSE, done + 1, len(numbers))
    return taken


def with_choices(cohort: Cohort, taken: Mapping[int, Mapping[int, SecondChoice]]) -> Cohort:
    """The cohort with what was taken in place of its labels; a pixel of two structures is the later one's."""
    targets = cohort.scratch.copy(cohort.targets)
    for number, choices in taken.items():
        of_image = targets[cohort.spans[number]]
        for k, choice in choices.items():
            of_image[of_image == k + 1] = 0
            of_image[torch.from_numpy(choice.small)] = k + 1
    return replace(cohort, targets=targets)


def usual_areas(cohort: Cohort, is_trusted: np.ndarray) -> list[tuple[float, float]]:
    """The `plausible_areas` of each structure, by its labels that are trusted, (n, K) bool."""
    return [
        plausible_areas(np.array([cohort.mask(int(n), k + 1).sum() for n in np.flatnonzero(of_structure)]))
        for k, of_structure in enumerate(is_trusted.T)
    ]
