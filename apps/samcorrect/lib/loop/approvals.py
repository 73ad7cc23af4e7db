"""What approvals say of the scores: the Dice of machine labels with what people made of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from samcorrect.lib.core.quality import agreement
from samcorrect.lib.core.selection import WHYS_AT_RANDOM
from samcorrect.lib.errors import ImageError, LabelError
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.schema import TAG_CORRECTED, TAG_FINAL, LabelVersionRow, QualityRow


@dataclass(frozen=True)
class ApprovedPairs:
    """Of n labels of one structure: their score, their Dice with what a person submitted, and whether they had been
    corrected before; (n,), nan unknown.
    """

    scores: np.ndarray
    dice: np.ndarray
    is_corrected: np.ndarray


def audit_finals(workspace: Workspace) -> list[LabelVersionRow]:
    """The first label that a person submitted of each image that was served at random, in order of submission.

    Only these say how good labels are: images that were served worst first say how good the worst labels are.
    """
    finals = workspace.store.ledger.first_finals()
    return [final for final in finals if final.info.get("why_served") in WHYS_AT_RANDOM]


def audited_labels(workspace: Workspace) -> list[tuple[LabelVersionRow, LabelVersionRow, dict[int, QualityRow]]]:
    """Of the audit share the label of the machine's that a person saw, what the person made of it, and its quality;
    those that were never scored are left out.
    """
    ledger, found = workspace.store.ledger, []
    for final in audit_finals(workspace):
        if final.parent_id is None:
            continue
        before = ledger.label_version(final.parent_id)
        quality = ledger.quality(before.id)
        if before.tag != TAG_FINAL and quality:
            found.append((before, final, quality))
    return found


def approved_pairs(workspace: Workspace, rescored: Mapping[int, np.ndarray] | None = None) -> list[ApprovedPairs]:
    """Score and true Dice of the labels of the audit share, for each structure of the protocol.

    Those that the promotion gate holds out are among them, since nothing is trained here.

    Args:
        workspace: With a protocol.
        rescored: Label version to its (K,) scores, in place of those in the ledger.
    """
    store, indices = workspace.store, workspace.require_protocol().indices
    told, is_corrected = [], []
    for before, final, quality in audited_labels(workspace):
        try:
            masks = store.read_label(before), store.read_label(final)
        except (ImageError, LabelError):  # of an image that is gone or is another one by now
            continue
        is_corrected.append(before.tag == TAG_CORRECTED)
        scores = (rescored or {}).get(before.id, [quality[i].score if i in quality else None for i in indices])
        told.append([(score, agreement(*(m == i for m in masks))) for score, i in zip(scores, indices, strict=True)])
    pairs = np.array(told, dtype=np.float64).reshape(-1, len(indices), 2)
    return [ApprovedPairs(pairs[:, k, 0], pairs[:, k, 1], np.array(is_corrected, bool)) for k in range(len(indices))]
