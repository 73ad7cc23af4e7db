"""Which image a person gets next: worst first, with a random share, and never one that somebody else holds."""

import time
from dataclasses import dataclass

import numpy as np

from samcorrect.lib.core.selection import WHY_AUDIT, WHY_RANDOM, WHY_UNSCORED, WHY_WORST, draw_is_audit
from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.reviews import why_rejected
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.records.queue import Waiting

STRATEGIES = ("lowest_quality", "random")
# How many of the head are tried when others take images at the same moment.
HEAD_SIZE = 8


@dataclass(frozen=True)
class NextImage:
    """The image to work on, and why it was chosen; before scoring the numbers are None.

    Attributes:
        image_id: Its id.
        score: Of its best label, in [0, 1].
        expected_dice, expected_dice_low, expected_dice_high: In [0, 1].
        is_prior: No approved label has confirmed the expected Dice yet.
        reasons: Why the score is low.
        why: Why the image was chosen.
    """

    image_id: str
    score: float | None
    expected_dice: float | None
    expected_dice_low: float | None
    expected_dice_high: float | None
    is_prior: bool | None
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
        raise RequestError(f"no strategy {strategy!r:.80}; known are {', '.join(STRATEGIES)}")
    rng = rng or np.random.default_rng()
    now = time.time() if now is None else now
    ledger, settings = workspace.store.ledger, workspace.settings
    is_audit = strategy == "lowest_quality" and draw_is_audit(settings.audit_share, rng)
    why = WHY_RANDOM if strategy == "random" else WHY_AUDIT if is_audit else WHY_WORST
    head_of = ledger.queue_head if why == WHY_WORST else ledger.queue_random
    # First what nobody holds, then what the holder has already.
    for whose in (None, holder):
        # Others may take a whole head between its reading and the lease; the next head is then without it.
        while head := head_of(whose, HEAD_SIZE, now=now):
            for row in head:
                # What was drawn at random stays that, whatever else is true of it: the audits are a random sample.
                rejected = why_rejected(workspace, row.id) if why == WHY_WORST and row.queue_score is None else None
                if ledger.take_lease(row.id, holder, now=now, lease_s=settings.lease_s, why=rejected or why):
                    return describe(ledger.waiting(row.id, now=now))
    return None


def describe(waiting: Waiting) -> NextImage:
    """What a person is told of an image of the queue."""
    image_id, quality = waiting.image.id, waiting.quality
    why = "" if waiting.lease is None else waiting.lease.why
    if quality is None:
        return NextImage(image_id, None, None, None, None, None, [], WHY_UNSCORED if why == WHY_WORST else why)
    bounds = (quality.expected_dice, quality.expected_dice_low, quality.expected_dice_high)
    is_prior = None if quality.expected_dice is None else quality.n_approved == 0
    return NextImage(image_id, quality.score, *bounds, is_prior, quality.reasons, why)
