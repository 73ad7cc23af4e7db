"""Corrected labels as the store has them: what changed, why, and from which label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from samcorrect.lib.core.correction import Choice
from samcorrect.lib.errors import UnknownLabelError
from samcorrect.lib.loop.candidates import OF_CANDIDATE
from samcorrect.lib.loop.cohort import Cohort
from samcorrect.lib.loop.second_choice import SecondChoice
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.schema import TAG_CORRECTED


@dataclass(frozen=True)
class Correction:
    """A corrected label of one image on its grid.

    Attributes:
        label_map: (H, W, D) uint8.
        change_map: (H, W, D) uint8, 1 where the label changed.
        reasons: For each changed structure, what was taken and the judge's score before and after.
        score_before: Judge's mean score of the label, in [0, 1].
        score_after: Of the corrected label.
        changes: Number of each structure that changed to what was taken for it: a `SecondChoice` where that is another
            candidate of SAM, else a mask that students drew.
    """

    label_map: np.ndarray
    change_map: np.ndarray
    reasons: list[str]
    score_before: float
    score_after: float
    changes: Mapping[int, Choice | SecondChoice] = field(default_factory=dict)


def save_correction(
    workspace: Workspace,
    cohort: Cohort,
    number: int,
    correction: Correction,
    *,
    ceiling: Sequence[float],
    run_id: int | None,
    round_number: int,
) -> bool:
    """Store a corrected label as a new version, with the ceiling under which it was flagged; the label before stays.

    Returns:
        Whether it stands. A label that was rejected since it was read is not corrected: its image waits for a person. A
        correction that a person rejected before is entered as rejected.
    """
    parent = cohort.labels[number]
    if workspace.store.ledger.label_version(parent.id).is_rejected:
        return False
    structures, prompts = dict(parent.info.get("structures", {})), dict(parent.prompts)
    for k, choice in correction.changes.items():
        name = cohort.config.names[k]
        if isinstance(choice, SecondChoice):
            if name in prompts:  # else no prompt of the protocol made the label, and none is to be tried for it
                prompts[name] = {"source": choice.source or prompts[name]["source"], "box": choice.box}
            structures[name] = {**structures.get(name, {}), **choice.info}
        elif name in structures:
            # What SAM said of the mask that is gone says nothing of the one that students drew.
            structures[name] = {key: value for key, value in structures[name].items() if key not in OF_CANDIDATE}
    saved = workspace.store.save_label_map(
        parent.image_id,
        correction.label_map,
        tag=TAG_CORRECTED,
        maker=f"correction:{workspace.settings.preset}",
        affine=cohort.affines[number],
        run_id=run_id,
        round_number=round_number,
        parent_id=parent.id,
        runtime=parent.runtime,
        prompts=prompts,
        info={
            **({"structures": structures} if structures else {}),
            "reasons": correction.reasons,
            "score_before": None if np.isnan(correction.score_before) else round(correction.score_before, 6),
            "score_after": None if np.isnan(correction.score_after) else round(correction.score_after, 6),
            "flagged_by": {"rule": _rule(workspace), "ceiling": list(ceiling)},
            "n_changed_vox": int(correction.change_map.sum()),
        },
    )
    return not saved.is_rejected


def correct_image(workspace: Workspace, image_id: str) -> Correction:
    """The stored correction of one image against the label that it was made from.

    Raises:
        UnknownImageError: No such image.
        UnknownLabelError: It was not corrected: its label was not judged low, or correction has not run.
    """
    store = workspace.store
    row = store.ledger.latest_label(store.ledger.image(image_id).id, TAG_CORRECTED)
    if row is None:
        raise UnknownLabelError(
            f"{image_id} has no corrected label; it was not judged low, or `self_correction` has not run yet"
        )
    volume = store.read_image(image_id)
    corrected = store.read_label(row, volume)
    parent = store.ledger.label_version(row.parent_id) if row.parent_id else None
    before = store.read_label(parent, volume) if parent else np.zeros_like(corrected)
    change_map = (before != corrected).astype(np.uint8)
    told = row.info
    # A viewer may submit with the tag `corrected` too; then nothing was judged.
    return Correction(
        corrected, change_map, list(told.get("reasons", ())), told.get("score_before"), told.get("score_after")
    )


def known_ceiling(workspace: Workspace, cohort: Cohort) -> list[float | None]:
    """The `flag_ceiling` under which the latest corrected label of a cohort was made by this preset and protocol; None
    for a structure of which nothing was flagged then, and for each where no such label is among them.
    """
    corrected = sorted((label for label in cohort.labels if label.tag == TAG_CORRECTED), key=lambda label: -label.id)
    told = [label.info.get("flagged_by", {}) for label in corrected]
    ours = next((of["ceiling"] for of in told if of.get("rule") == _rule(workspace)), [-1.0] * cohort.n_structures)
    return [line if line >= 0 else None for line in ours]


def _rule(workspace: Workspace) -> list[str]:
    """What scores and ceilings of one kind share."""
    return [workspace.settings.preset, workspace.require_protocol().digest]
