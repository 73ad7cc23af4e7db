"""The segmentation loss, with a weight for every pixel."""

import torch
from torch.nn import functional as F

IGNORE = -1
DICE_SMOOTHING = 1.0


def cross_entropy_map(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each pixel, not reduced.

    Args:
        logits: (B, C, H, W).
        targets: (B, H, W) int64 channel numbers; IGNORE has loss 0.

    Returns:
        (B, H, W) float32, at least 0.
    """
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="none")


def weighted_segmentation_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross entropy plus weighted soft Dice loss.

    The weights multiply the unreduced cross entropy and the pixels of the Dice sums. (The code of arXiv 2308.00883
    multiplies a cross entropy that is already averaged, which changes nothing.)

    Args:
        logits: (B, C, H, W).
        targets: (B, H, W) int64 channel numbers or IGNORE.
        weights: (B, H, W) float, at least 0; IGNORE pixels count as 0.

    Returns:
        Scalar; 0 where all weights are 0.
    """
    weights = weights * (targets != IGNORE)
    total = weights.sum().clamp(min=1e-6)
    cross_entropy = (cross_entropy_map(logits, targets) * weights).sum() / total
    probs = logits.float().softmax(1)
    one_hot = F.one_hot(targets.clamp(min=0), logits.shape[1]).movedim(-1, 1).to(probs.dtype)
    spread = weights[:, None]
    overlap = (probs * one_hot * spread).sum((0, 2, 3))
    sizes = ((probs + one_hot) * spread).sum((0, 2, 3))
    dice = (2 * overlap + DICE_SMOOTHING) / (sizes + DICE_SMOOTHING)
    return cross_entropy + (1 - dice[1:]).mean()
