"""Training a student: seeded, weighted, with an exponential average of the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from samcorrect.lib.core.losses import IGNORE, weighted_segmentation_loss
from samcorrect.lib.networks.sam import has_fast_bf16
from samcorrect.lib.networks.student import StudentConfig, build_network

MAX_ROTATION_RAD = 0.2
MAX_SCALE_SHARE = 0.15
MAX_SHIFT_SHARE = 0.08
MAX_GAMMA_LOG2 = 0.5
MAX_NOISE = 0.04
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 1e-4
EMA_DECAY = 0.98
LOSS_EVERY = 10


class WeighBatch(Protocol):
    """A rule that weighs the pixels of a batch by its logits, as `core.reweighting.huang_weights` does."""

    __name__: str

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, *, progress: float) -> torch.Tensor:
        """(B, H, W) weights; `progress` is the share of the training that is done, [0, 1)."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """Slices in the frame and what the training may believe of them.

    Attributes:
        frames: (N, side, side) float in [0, 1].
        targets: (N, side, side) int64 channel numbers, IGNORE where nothing is known.
        weights: (N, side, side) float, at least 0.
        sampling: (N,) float, how often a slice is drawn; need not sum to 1.
    """

    frames: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    sampling: torch.Tensor


@dataclass(frozen=True)
class Training:
    """A trained network and its loss curve of (step, loss)."""

    network: nn.Module
    losses: list[tuple[int, float]]


def train_network(
    config: StudentConfig,
    data: TrainingData,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weigh_batch: WeighBatch | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Training:
    """Train a network from scratch.

    Args:
        config: What to build.
        data: At least one slice with a positive `sampling`.
        steps: Optimiser steps.
        batch_size: Slices in a batch, drawn with replacement by `sampling`.
        learning_rate: Peak of a schedule with linear warm-up and cosine decay.
        seed: Of weights, batches and augmentation; the same seed and threads give the same bytes.
        weigh_batch: Further weights computed from each batch's logits.
        on_step: Called with (steps done, steps).

    Returns:
        The network with averaged weights, in evaluation mode.
    """
    network = build_network(config, seed=seed).train()
    average = torch.optim.swa_utils.AveragedModel(network, avg_fn=_warmed_up_average, use_buffers=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    scheduler = _warm_up_and_decay(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    use_bf16 = has_fast_bf16()
    losses: list[tuple[int, float]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator
        for step in range(steps):
            drawn = torch.multinomial(data.sampling, batch_size, replacement=True, generator=generator)
            frames, targets, weights = augment(data.frames[drawn], data.targets[drawn], data.weights[drawn], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
                logits = network(frames[:, None].contiguous(memory_format=torch.channels_last))
            if weigh_batch is not None:
                weights = weights * weigh_batch(logits, targets, progress=step / steps)
            loss = weighted_segmentation_loss(logits, targets, weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            scheduler.step()
            average.update_parameters(network)
            if step % LOSS_EVERY == 0 or step == steps - 1:
                losses.append((step, float(loss.detach())))
            if on_step is not None:
                on_step(step + 1, steps)
    network.load_state_dict(average.module.state_dict())
    return Training(network.eval(), losses)


def augment(
    frames: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random rotation, scale, shift, gamma and noise, one draw a slice; nothing is mirrored, since left and right have
    names.

    Done for the whole batch at once: MONAI's RandAffined takes 14 to 32 ms a slice here, this 2 ms, and a step 50 ms.

    Args:
        frames: (B, side, side) float in [0, 1].
        targets: (B, side, side) int64.
        weights: (B, side, side) float.
        generator: Source of randomness.

    Returns:
        The same shapes and types; what comes from outside the frame is 0 in the image and IGNORE in the target.
    """
    n_batch = len(frames)

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n_batch, generator=generator) * 2 - 1) * limit

    angle, scale = uniform(MAX_ROTATION_RAD), 1 + uniform(MAX_SCALE_SHARE)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = 2 * MAX_SHIFT_SHARE
    rows = [torch.stack([cosine, -sine, uniform(shift)], 1), torch.stack([sine, cosine, uniform(shift)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n_batch, 1, *frames.shape[1:]], align_corners=False)
    moved = F.grid_sample(frames[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
    # 0 means "outside" to grid_sample, so the targets travel raised by one above IGNORE.
    discrete = torch.stack([(targets - IGNORE).float(), weights], 1)
    moved_targets, moved_weights = F.grid_sample(
        discrete, grid, mode="nearest", padding_mode="zeros", align_corners=False
    ).unbind(1)
    gamma = torch.exp2(uniform(MAX_GAMMA_LOG2))[:, None, None]
    noise = (
        torch.randn(moved.shape, generator=generator)
        * (torch.rand(n_batch, generator=generator) * MAX_NOISE)[:, None, None]
    )
    return (moved.clamp(0, 1) ** gamma + noise).clamp(0, 1), moved_targets.round().long() + IGNORE, moved_weights


def _warm_up_and_decay(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up from a tenth, then half a cosine down to a hundredth of the peak."""
    n_warmup = max(1, round(WARMUP_SHARE * steps))
    floor = 0.01 * optimiser.param_groups[0]["lr"]
    warm_up = torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, total_iters=n_warmup)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps - n_warmup), eta_min=floor)
    return torch.optim.lr_scheduler.SequentialLR(optimiser, [warm_up, decay], milestones=[n_warmup])


def _warmed_up_average(averaged: torch.Tensor, current: torch.Tensor, n_averaged: torch.Tensor | int) -> torch.Tensor:
    """Exponential average whose memory grows with the steps: a short training is not averaged with its start."""
    if not averaged.is_floating_point():
        return current
    n = int(n_averaged)
    return averaged.lerp(current, 1 - min(EMA_DECAY, (1 + n) / (10 + n)))
