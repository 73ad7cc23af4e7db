"""The segmentation loss, with a weight for every pixel."""

import torch
from torch.nn import functional as F

IGNORE = -1
DICE_SMOOTHING = 1.0


def cross_entropy_map(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each pixel, not reduced.

    Args:
        logits: (B, C, H, W[, D]).
        targets: (B, H, W[, D]) integer channel numbers; IGNORE has loss 0.

    Returns:
        (B, H, W[, D]) float32, at least 0.
    """
    return F.cross_entropy(logits.float(), targets.long(), ignore_index=IGNORE, reduction="none")


def weighted_segmentation_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross entropy plus weighted soft Dice loss.

    The weights multiply the unreduced cross entropy and the pixels of the Dice sums. (The code of arXiv 2308.00883
    multiplies a cross entropy that is already averaged, which changes nothing.)

    Args:
        logits: (B, C, H, W[, D]).
        targets: (B, H, W[, D]) int64 channel numbers or IGNORE.
        weights: (B, H, W[, D]) float, at least 0; IGNORE pixels count as 0.

    Returns:
        Scalar; 0 where all weights are 0.
    """
    weights = weights * (targets != IGNORE)
    total = weights.sum().clamp(min=1e-6)
    log_probs = logits.float().contiguous().log_softmax(1)
    losses = F.nll_loss(log_probs, targets, ignore_index=IGNORE, reduction="none")
    cross_entropy = (losses * weights).sum() / total
    n_axes = targets.ndim - 1
    spread, axes = weights[:, None], (0, *range(2, 2 + n_axes))
    inside = targets[:, None] == torch.arange(1, logits.shape[1]).view(-1, *[1] * n_axes)
    spread_probs = log_probs[:, 1:].exp() * spread
    overlap = (spread_probs * inside).sum(axes)
    sizes = spread_probs.sum(axes) + (inside * spread).sum(axes)
    dice = (2 * overlap + DICE_SMOOTHING) / (sizes + DICE_SMOOTHING)
    return cross_entropy + (1 - dice).mean()
