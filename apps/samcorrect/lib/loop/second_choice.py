"""SAM's candidates chosen again: students that know a structure say which prompt's mask to take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from samcorrect.lib.core.correction import Choice, choose_correction, plausible_areas
from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.cohort import Cohort
from samcorrect.lib.loop.frame_candidates import shrink_masks
from samcorrect.lib.loop.peers import Peers
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress

STAGE_CHOOSE = "choosing among SAM's prompts again"
ANOTHER_PROMPT = "SAM from another prompt"


@dataclass(frozen=True)
class SecondChoice(Choice):
    """Another candidate of SAM, whose `soft` has the side of SAM's masks; `small` is its (D, side, side) bool in the
    student's frame, `info` and `box` are what the label says of it.
    """

    small: np.ndarray
    info: Mapping[str, float]
    box: list[float]


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
    judge, areas = peers.probs.argmax(1), usual_areas(cohort, is_trusted)
    numbers = np.flatnonzero((is_open & (peers.nearest >= 0)).any(1))
    taken: dict[int, dict[int, SecondChoice]] = {}
    for done, number in enumerate(numbers):
        row, span = cohort.images[number], cohort.spans[number]
        try:
            found = find_candidates(workspace, workspace.store.read_image(row.id), row.path)
        except ProtocolError:  # its box is no longer in the boxes file
            continue
        for k in np.flatnonzero(is_open[number] & (peers.nearest[number] >= 0)):
            of, nearest = found[k], int(peers.nearest[number, k])
            mask = of.masks[nearest]
            small = shrink_masks(mask[None], cohort.config.side_px)[0]
            peer = (judge[span] == k + 1).numpy()
            old = cohort.mask(int(number), k + 1)
            choice = choose_correction(old, {ANOTHER_PROMPT: small.astype(np.float32)}, peer, area_range=areas[k])
            if choice.is_changed:
                taken.setdefault(int(number), {})[int(k)] = SecondChoice(
                    choice.name,
                    mask.astype(np.float32),
                    choice.score_before,
                    choice.score_after,
                    small,
                    of.info(nearest),
                    of.box(nearest),
                )
        progress(STAGE_CHOOSE, done + 1, len(numbers))
    return taken


def with_choices(cohort: Cohort, taken: Mapping[int, Mapping[int, SecondChoice]]) -> Cohort:
    """The cohort with what was taken in place of its labels; a pixel of two structures is the later one's."""
    targets = cohort.targets.clone()
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
