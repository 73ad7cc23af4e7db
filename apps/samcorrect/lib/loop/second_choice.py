"""Another mask of SAM in place of a label: students say which prompt's to take, or where the structure is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from samcorrect.lib.core.correction import choose_correction, plausible_areas
from samcorrect.lib.errors import ImageError, ProtocolError
from samcorrect.lib.loop.asked_again import ask_sam
from samcorrect.lib.loop.candidates import Candidates, find_candidates
from samcorrect.lib.loop.cohort import Cohort, draw_masks
from samcorrect.lib.loop.frame_candidates import shrink_masks
from samcorrect.lib.loop.peers import Peers
from samcorrect.lib.loop.pseudo_label import see_along_all_axes
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.store.volumes import Volume

STAGE_CHOOSE = "choosing among SAM's prompts again"
ANOTHER_PROMPT = "SAM from another prompt"
ASKED_AGAIN = "SAM asked with the box of the students"


@dataclass(frozen=True)
class SecondChoice:
    """Another mask of SAM, taken as a `core.correction.Choice` is.

    Attributes:
        bits: (D, side, side / 8) uint8, eight pixels a byte of the mask in SAM's frame: those of a store are kept at
            once.
        small_bits: The same of the mask in the student's frame.
        score_before, score_after: The judge's, in [0, 1].
        info, box: What the label says of it.
        name: Where it comes from.
    """

    bits: np.ndarray
    small_bits: np.ndarray
    score_before: float
    score_after: float
    info: Mapping[str, float]
    box: list[float] | None
    name: str
    is_changed: ClassVar[bool] = True

    @property
    def source(self) -> str | None:
        """Where the box comes from, as a protocol says it; None for a box of the protocol."""
        return "student" if self.name == ASKED_AGAIN else None

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
    is_known: np.ndarray,
    is_trusted: np.ndarray,
    *,
    progress: Progress = no_progress,
) -> dict[int, dict[int, SecondChoice]]:
    """Take another mask of SAM where the peers agree better with it than with the label.

    Of bad labels students tell which candidate is better; of good ones they know less than SAM does. So they choose
    among the candidates of the protocol's prompts for some labels alone. For the others they say where the structure
    is, and of the prompts around that box SAM chooses.

    Args:
        workspace: For the candidates.
        cohort: The labels.
        peers: They made none of the masks; SAM did.
        is_open: (n, K) bool, for which labels students choose.
        is_known: (n, K) bool, for which labels SAM's choice counts when it was asked again.
        is_trusted: (n, K) bool, whose areas are plausible.
        progress: Told about each image.

    Returns:
        Image number to structure number to what is taken in place of the label.
    """
    areas = usual_areas(cohort, is_trusted)
    is_nearer = is_open & (peers.nearest >= 0)
    is_known = is_known & (peers.asked is not None)
    numbers = np.flatnonzero((is_nearer | is_known).any(1))
    taken: dict[int, dict[int, SecondChoice]] = {}
    for done, number in enumerate(map(int, numbers)):
        judge, frames = peers.probs[cohort.spans[number]].argmax(1).numpy(), cohort.content(number)
        for k, offers in _offers(workspace, cohort, peers, number, is_nearer[number], is_known[number]).items():
            small = {
                n: shrink_masks(of.offered(which)[None], cohort.config.side_px)[0] for n, (of, which) in offers.items()
            }
            soft = {name: mask.astype(np.float32) for name, mask in small.items()}
            old = cohort.mask(number, k + 1)
            choice = choose_correction(old, soft, judge == k + 1, area_range=areas[k], frames=frames)
            if choice.is_changed:
                of, which = offers[choice.name]
                taken.setdefault(number, {})[k] = SecondChoice(
                    np.packbits(of.offered(which), axis=-1),
                    np.packbits(small[choice.name], axis=-1),
                    choice.score_before,
                    choice.score_after,
                    of.info(which),
                    of.box(which),
                    choice.name,
                )
        progress(STAGE_CHOOSE, done + 1, len(numbers))
    return taken


def _offers(
    workspace: Workspace, cohort: Cohort, peers: Peers, number: int, is_nearer: np.ndarray, is_known: np.ndarray
) -> dict[int, dict[str, tuple[Candidates, int]]]:
    """Of an image, structure number to the masks that may take the place of its label: where each comes from, to
    candidates and which of them."""
    row, offers = cohort.images[number], {}
    try:
        volume = workspace.store.read_image(row.id)
    except ImageError:  # it was there when the cohort was read
        return {}
    given = _given(workspace, volume, row.path) if is_nearer.any() else None
    for k in map(int, np.flatnonzero(is_nearer | is_known)):
        offers[k] = {}
        if given is not None and is_nearer[k]:
            offers[k][ANOTHER_PROMPT] = given[k], int(peers.nearest[number, k])
        boxes_vox = peers.asked.boxes(cohort.spans[number], k) if is_known[k] else None
        if boxes_vox is not None:
            offers[k][ASKED_AGAIN] = ask_sam(workspace, volume, k, boxes_vox)
    return offers


def _given(workspace: Workspace, volume: Volume, image_name: str) -> list[Candidates] | None:
    """The candidates of the protocol's prompts; None where the image's box is no longer in the boxes file."""
    try:
        found = find_candidates(workspace, volume, image_name)
        return see_along_all_axes(workspace, volume, image_name, found)
    except ProtocolError:
        return None


def with_choices(cohort: Cohort, taken: Mapping[int, Mapping[int, SecondChoice]]) -> Cohort:
    """The cohort with what was taken in place of its labels."""
    targets = cohort.scratch.copy(cohort.targets)
    for number, choices in taken.items():
        targets[cohort.spans[number]] = draw_masks(
            [choices[k].small if k in choices else cohort.mask(number, k + 1) for k in range(cohort.n_structures)]
        )
    return replace(cohort, targets=targets)


def usual_areas(cohort: Cohort, is_trusted: np.ndarray) -> list[tuple[float, float]]:
    """The `plausible_areas` of each structure, by its labels that are trusted, (n, K) bool."""
    return [
        plausible_areas(np.array([cohort.mask(int(n), k + 1).sum() for n in np.flatnonzero(of_structure)]))
        for k, of_structure in enumerate(is_trusted.T)
    ]
