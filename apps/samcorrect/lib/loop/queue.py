"""Which image a person gets next: worst first, with a random share, and never one that somebody else holds."""

import time
from dataclasses import dataclass

import numpy as np

from samcorrect.lib.core.selection import WHY_AUDIT, WHY_RANDOM, WHY_UNSCORED, WHY_WORST, draw_is_audit
from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.reviews import why_rejected
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.schema import ImageRow

STRATEGIES = ("lowest_quality", "random")
# How many of the head are tried when others take images at the same moment.
HEAD_SIZE = 16


@dataclass(frozen=True)
class NextImage:
    """The image to work on, its score and expected Dice in [0, 1] (None before scoring), and why it was chosen."""

    image_id: str
    score: float | None
    expected_dice: float | None
    expected_dice_low: float | None
    expected_dice_high: float | None
    reasons: list[str]
    why: str


def next_image(
    workspace: Workspace,
    holder: str,
    *,
    strategy: str,
    rng: np.random.Generator | None = None,
    now: float | None = None,
) -> NextImage | None:
    """Reserve and return the next image for an annotator.

    An image is not offered twice to the same annotator while others wait: those that the holder has already are passed
    over.

    Args:
        workspace: The store and settings.
        holder: Who asks; leases are by this name.
        strategy: `lowest_quality` (worst score first, and at random for the audit share) or `random`.
        rng: Source of the audit draw.
        now: Seconds since the epoch.

    Returns:
        None where every image is approved or held by somebody else.

    Raises:
        RequestError: Unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise RequestError(f"no strategy {strategy!r}; known are {', '.join(STRATEGIES)}")
    rng = rng or np.random.default_rng()
    now = time.time() if now is None else now
    ledger, settings = workspace.store.ledger, workspace.settings
    held = set(ledger.held_by(holder, now=now))
    is_audit = strategy == "lowest_quality" and draw_is_audit(settings.audit_share, rng)
    if strategy == "random" or is_audit:
        head = ledger.queue_random(holder, HEAD_SIZE + len(held), now=now)
    else:
        head = ledger.queue_head(holder, HEAD_SIZE + len(held), now=now)
    why = WHY_RANDOM if strategy == "random" else WHY_AUDIT if is_audit else WHY_WORST
    for row in sorted(head, key=lambda r: r.id in held):
        # What was drawn at random stays that, whatever else is true of it: the audits are a random sample.
        rejected = why_rejected(workspace, row.id) if why == WHY_WORST and row.queue_score is None else None
        if ledger.take_lease(row.id, holder, now=now, lease_s=settings.lease_s, why=rejected or why):
            return _describe(workspace, row, rejected or why)
    return None


def _describe(workspace: Workspace, row: ImageRow, why: str) -> NextImage:
    label = workspace.store.ledger.best_label(row.id)
    quality = workspace.store.ledger.quality(label.id).get(0) if label is not None else None
    if quality is None:
        return NextImage(row.id, None, None, None, None, [], WHY_UNSCORED if why == WHY_WORST else why)
    bounds = (quality.expected_dice, quality.expected_dice_low, quality.expected_dice_high)
    return NextImage(row.id, quality.score, *bounds, quality.reasons, why)
