"""What approvals say of the scores: the Dice of machine labels with what people made of them."""

from dataclasses import dataclass

import numpy as np

from samcorrect.lib.core.metrics import dice
from samcorrect.lib.core.selection import WHYS_AT_RANDOM
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.schema import TAG_FINAL


@dataclass(frozen=True)
class ApprovedPairs:
    """Of n labels of one structure: their score, and their Dice with what a person submitted; (n,), nan unknown."""

    scores: np.ndarray
    dice: np.ndarray


def approved_pairs(workspace: Workspace) -> list[ApprovedPairs]:
    """Score and true Dice of the labels of the audit share, for each structure of the protocol.

    Only images that were served at random count: those that were served worst first say how good the worst labels are,
    not how good labels of a score are.
    """
    store, indices = workspace.store, workspace.require_protocol().indices
    told = []
    for final in store.ledger.first_finals():
        if final.parent_id is None or final.info.get("why_served") not in WHYS_AT_RANDOM:
            continue
        before = store.ledger.label_version(final.parent_id)
        quality = store.ledger.quality(before.id)
        if before.tag == TAG_FINAL or not quality:
            continue
        masks = store.read_label(before), store.read_label(final)
        told.append([(quality[i].score if i in quality else None, dice(*(m == i for m in masks))) for i in indices])
    pairs = np.array(told, dtype=np.float64).reshape(-1, len(indices), 2)
    return [ApprovedPairs(pairs[:, k, 0], pairs[:, k, 1]) for k in range(len(indices))]
