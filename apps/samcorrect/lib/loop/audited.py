"""Labels of the machine's that people have replaced: scored beside those of today, they say what a score is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samcorrect.lib.core.fusion import places_in_ledger
from samcorrect.lib.core.metrics import rounded
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.approvals import audited_labels
from samcorrect.lib.loop.cohort import Cohort
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.schema import TAG_FINAL, LabelVersionRow
from samcorrect.lib.transforms.frame import labels_to_frame


@dataclass(frozen=True)
class AuditedScores:
    """What a scoring says of the a labels that people replaced.

    Attributes:
        labels: The labels.
        structure_scores: (a, K) in [0, 1], nan where not defined.
        features: Of each structure, name to (a,).
    """

    labels: Sequence[LabelVersionRow]
    structure_scores: np.ndarray
    features: Sequence[Mapping[str, np.ndarray]]

    def of_labels(self) -> dict[int, np.ndarray]:
        """Label version to its (K,) scores."""
        return {label.id: values for label, values in zip(self.labels, self.structure_scores, strict=True)}


def audited_cohort(workspace: Workspace, cohort: Cohort) -> Cohort | None:
    """The images of a cohort that were served at random, each with the scored label of the machine's that a person saw.

    Spans are those of the cohort, so that what is known of its slices is known of these. None where there are none.
    """
    store, config = workspace.store, cohort.config
    replaced = {before.image_id: before for before, _, _ in audited_labels(workspace)}
    numbers, labels, targets = [], [], cohort.scratch.copy(cohort.targets) if replaced else cohort.targets
    for number, (image, today) in enumerate(zip(cohort.images, cohort.labels, strict=True)):
        if today.tag != TAG_FINAL or image.id not in replaced:
            continue
        label = replaced[image.id]
        try:
            label_map = store.read_label(label)
        except LabelError:  # it can calibrate nothing, and the person's label stands
            continue
        targets[cohort.spans[number]] = labels_to_frame(label_map, config.indices, config.side_px).to(targets.dtype)
        numbers.append(number)
        labels.append(label)
    if not numbers:
        return None
    images, affines, shapes, spans = (
        [of[n] for n in numbers] for of in (cohort.images, cohort.affines, cohort.shapes, cohort.spans)
    )
    given = {"images": images, "affines": affines, "shapes": shapes, "spans": spans}
    return replace(cohort, labels=labels, targets=targets, **given)


def write_audited(workspace: Workspace, audited: AuditedScores) -> None:
    """Enter the scores of labels that people replaced in place of those that they had; the queue knows them no more."""
    changes = []
    for number, label in enumerate(audited.labels):
        rows, values = workspace.store.ledger.quality(label.id), audited.structure_scores[number]
        for index, k in places_in_ledger(values, workspace.require_protocol().indices):
            if index in rows:
                told = {name: rounded(of[number]) for name, of in audited.features[k].items()}
                changes.append({"id": rows[index].id, "score": rounded(values[k]), "features": told})
    if changes:
        workspace.store.ledger.update_quality(changes)
