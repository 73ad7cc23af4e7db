"""Training a student: seeded, weighted, with an exponential average of the weights; it goes on after a kill, and starts
again from another seed where it collapsed.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from monai.networks.nets import UNet
from torch import nn

from samcorrect.lib.core.losses import IGNORE, weighted_segmentation_loss
from samcorrect.lib.errors import TrainingError, WeightsError
from samcorrect.lib.networks.augmentation import augment
from samcorrect.lib.networks.checkpoints import Checkpoint, pack_state, unpack_state
from samcorrect.lib.networks.runtimes import has_fast_bf16
from samcorrect.lib.networks.samples import Samples, TrainingData
from samcorrect.lib.networks.student import StudentConfig, build_network, network_input
from samcorrect.lib.networks.tracking import Tracker
from samcorrect.lib.networks.windows import OFFSETS

logger = logging.getLogger(__name__)

# Raised whenever the same inputs give other weights.
RECIPE_VERSION = 2
WARMUP_SHARE = 0.05
WARMUP_START, DECAY_END = 0.1, 0.01
WEIGHT_DECAY = 1e-4
MAX_GRADIENT_NORM = 5.0
EMA_DECAY = 0.98
LOSS_EVERY = 10
# Steps between two looks at held-out slices.
CHECK_EVERY = 40
# Checks without a gain in Dice that is worth more training.
PATIENCE = 5
MIN_DICE_GAIN = 0.002
# The averaged weights of a shorter training still look back on its start and may well predict nothing.
MIN_JUDGED_STEPS = 100
MAX_RESTARTS = 2
# Beyond the seeds of all other trainings.
RESTART_STRIDE = 2**40


class WeighBatch(Protocol):
    """A rule that weighs the pixels of a batch by its logits, as `core.reweighting.huang_weights` does."""

    __name__: str

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, *, progress: float) -> torch.Tensor:
        """(B, H, W[, D]) weights; `progress` is the share of the training that is done, [0, 1)."""
        ...


@dataclass(frozen=True)
class Training:
    """A trained network and how its training went.

    Attributes:
        network: With averaged weights, in evaluation mode.
        losses: (step, loss).
        held_out_dice: (step, mean Dice with the held-out slices).
        n_restarts: From how many other seeds it began again.
        fault: Why the last of these collapsed too; "" where it did not.
    """

    network: UNet
    losses: list[tuple[int, float]]
    held_out_dice: list[tuple[int, float]] = field(default_factory=list)
    n_restarts: int = 0
    fault: str = ""


@dataclass(frozen=True)
class _Recipe:
    config: StudentConfig
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    weigh_batch: WeighBatch | None
    start: Mapping[str, torch.Tensor] | None

    @property
    def n_drawn(self) -> int:
        """Samples in a batch of `batch_size` slices; blocks are drawn at least in pairs."""
        return max(2, self.batch_size // len(OFFSETS["3d"])) if self.config.dims == "3d" else self.batch_size

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up from a tenth, then half a cosine down to a hundredth of the peak."""
        n_warmup = max(1, round(WARMUP_SHARE * self.steps))
        if step < n_warmup:
            return self.learning_rate * (WARMUP_START + (1 - WARMUP_START) * step / n_warmup)
        share = (step - n_warmup) / max(1, self.steps - n_warmup)
        return self.learning_rate * (DECAY_END + (1 - DECAY_END) * (1 + math.cos(math.pi * share)) / 2)


class _Attempt:
    """A training from one seed: all that decides its next step."""

    def __init__(self, recipe: _Recipe, samples: Samples, number: int):
        self.recipe, self.samples, self.number = recipe, samples, number
        seed = recipe.seed + number * RESTART_STRIDE
        self.network = build_network(recipe.config, seed=seed).train()
        if recipe.start is not None:
            self.network.load_state_dict(recipe.start)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=_warmed_up_average, use_buffers=True
        )
        self.average.module.eval()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.generator = torch.Generator().manual_seed(seed)
        if recipe.config.dropout:  # which draws from the process's generator
            torch.manual_seed(seed)
        # In bf16 torch 2.14 trains 3D convolutions on a CPU to other weights each time, now and then to nan.
        self.use_bf16 = has_fast_bf16() and not samples.is_3d
        self.step = 0
        self.losses: list[tuple[int, float]] = []
        self.held_out_dice: list[tuple[int, float]] = []
        self.best: dict[str, torch.Tensor] | None = None

    def take_step(self) -> torch.Tensor:
        """One step of the optimiser; its loss."""
        recipe = self.recipe
        drawn = torch.multinomial(self.samples.sampling, recipe.n_drawn, replacement=True, generator=self.generator)
        frames, targets, weights = augment(*self.samples.batch(drawn), self.generator)
        targets, weights = self.samples.in_network_order(targets), self.samples.in_network_order(weights)
        logits = self._forward(self.network, frames)
        if recipe.weigh_batch is not None:
            weights = weights * recipe.weigh_batch(logits, targets, progress=self.step / recipe.steps)
        loss = weighted_segmentation_loss(logits, targets, weights)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM, foreach=True)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        self.optimiser.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return loss.detach()

    def overlap(self, numbers: torch.Tensor) -> np.ndarray:
        """(K, 3) pixels of common, predicted and target masks of each structure, under the averaged weights."""
        counts = np.zeros((len(self.recipe.config.indices), 3))
        with torch.inference_mode():
            for drawn in numbers.split(self.recipe.n_drawn) if len(numbers) else ():
                frames, targets, weights = self.samples.batch(drawn)
                found = self._forward(self.average.module, frames).argmax(1)
                targets, weights = self.samples.in_network_order(targets), self.samples.in_network_order(weights)
                is_counted = (targets != IGNORE) & (weights > 0)
                for k, row in enumerate(counts):
                    one, other = (found == k + 1) & is_counted, (targets == k + 1) & is_counted
                    row += [int((one & other).sum()), int(one.sum()), int(other.sum())]
        return counts

    @property
    def is_finite(self) -> bool:
        """Whether the last loss noted was."""
        return not self.losses or math.isfinite(self.losses[-1][1])

    def find_fault(self, *, is_over: bool) -> str:
        """Why the training has collapsed; "" where it has not, or is too young to tell."""
        if not self.is_finite:
            return f"its loss was {self.losses[-1][1]} at step {self.losses[-1][0]}"
        is_half_way = self.step == self.recipe.steps // 2
        if not (is_over or is_half_way) or self.step < MIN_JUDGED_STEPS * (1 if is_over else 2):
            return ""
        _, found, wanted = self.overlap(self.samples.learnt).T
        lost = (wanted > 0) & (found == 0)
        # Half-way a structure may still come; a network that has found nothing at all has died.
        if lost.any() and (is_over or not found.any()):
            names = [name for name, is_lost in zip(self.recipe.config.names, lost, strict=True) if is_lost]
            return f"after {self.step} steps it finds no {', no '.join(names)} in the images that it learns from"
        return ""

    def check_held_out(self) -> bool:
        """Note the mean Dice with the held-out slices and keep the best weights; whether the training may end."""
        common, found, wanted = self.overlap(self.samples.held_out).T
        dice = float(np.mean(2 * common[wanted > 0] / (found + wanted)[wanted > 0]))
        if all(dice > told for _, told in self.held_out_dice):
            self.best = copy.deepcopy(self.average.module.state_dict())
        self.held_out_dice.append((self.step, dice))
        values = [told for _, told in self.held_out_dice]
        return len(values) > PATIENCE and max(values[-PATIENCE:]) < max(values[:-PATIENCE]) + MIN_DICE_GAIN

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "number": self.number,
            "step": self.step,
            "losses": self.losses,
            "held_out_dice": self.held_out_dice,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step, self.best = state["step"], state["best"]
        self.losses, self.held_out_dice = list(state["losses"]), list(state["held_out_dice"])
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        if self.recipe.config.dropout:
            torch.set_rng_state(state["global_generator"])

    def finished(self, fault: str) -> Training:
        """What came out."""
        self.network.load_state_dict(self.average.module.state_dict() if self.best is None else self.best)
        return Training(self.network.eval(), self.losses, self.held_out_dice, self.number, fault)

    def _forward(self, network: nn.Module, frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.use_bf16):
            return network(network_input(frames, is_3d=self.samples.is_3d))


def train_network(
    config: StudentConfig,
    data: TrainingData,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weigh_batch: WeighBatch | None = None,
    start: Mapping[str, torch.Tensor] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
    tracker: Tracker | None = None,
) -> Training:
    """Train a network.

    A training collapses when its loss is not finite or when it finds nothing of a structure in the images that it
    learns from; it then begins again from another seed, MAX_RESTARTS times.

    Args:
        config: What to build.
        data: At least one slice with a positive `sampling`. With held-out slices the training ends early when it agrees
            no better with them, and gives the weights that agreed best.
        steps: Optimiser steps, at most.
        batch_size: Slices in a batch, drawn with replacement by `sampling`.
        learning_rate: Peak of a schedule with linear warm-up and cosine decay.
        seed: Of weights, batches and augmentation; the same seed and threads give the same bytes.
        weigh_batch: Further weights computed from each batch's logits.
        start: Weights to begin with instead of random ones.
        on_step: Called with (steps done, steps).
        checkpoint: Where the state is kept from time to time; what is there is gone on with, to the same result.
        tracker: Told the loss, the learning rate and the Dice.

    Raises:
        TrainingError: The loss was not finite from any seed. (A training that lost a structure from every seed is
            returned with its `fault`.)
    """
    recipe = _Recipe(config, steps, batch_size, learning_rate, seed, weigh_batch, start)
    samples = Samples(data, config)
    with torch.random.fork_rng(devices=[], enabled=bool(config.dropout)):
        attempt = _resume(recipe, samples, checkpoint)
        while True:
            fault = _run(attempt, on_step, checkpoint, tracker)
            if not fault or attempt.number == MAX_RESTARTS:
                break
            logger.warning("a training collapsed and begins again from another seed: %s", fault)
            attempt = _Attempt(recipe, samples, attempt.number + 1)
        if not attempt.is_finite:
            raise TrainingError(
                f"the training collapsed from {MAX_RESTARTS + 1} seeds, the last time because {fault}; "
                f"lower the setting student_learning_rate (it is {learning_rate})"
            )
        if fault:
            logger.warning("a training collapsed from %d seeds: %s", MAX_RESTARTS + 1, fault)
        return attempt.finished(fault)


def _resume(recipe: _Recipe, samples: Samples, checkpoint: Checkpoint | None) -> _Attempt:
    """The attempt that a checkpoint holds; the first one where there is none, or one that cannot be read."""
    content = checkpoint.read() if checkpoint is not None else None
    if content is not None:
        try:
            state = unpack_state(content)
            attempt = _Attempt(recipe, samples, state["number"])
            attempt.load_state(state)
            logger.info("a training goes on at step %d of %d", attempt.step, recipe.steps)
            return attempt
        except (WeightsError, KeyError, ValueError, RuntimeError) as error:
            logger.warning("a training begins anew: %s", error)
    return _Attempt(recipe, samples, 0)


def _run(
    attempt: _Attempt,
    on_step: Callable[[int, int], None] | None,
    checkpoint: Checkpoint | None,
    tracker: Tracker | None,
) -> str:
    """Take the steps that are left; the fault that ended them, or ""."""
    steps, is_over = attempt.recipe.steps, False
    while attempt.step < steps and not is_over:
        loss, step = attempt.take_step(), attempt.step - 1
        is_over, told = attempt.step == steps, {}
        if step % LOSS_EVERY == 0 or is_over:
            attempt.losses.append((step, float(loss)))
            told = {"loss": float(loss), "learning_rate": attempt.recipe.learning_rate_at(step)}
        if len(attempt.samples.held_out) and (is_over or attempt.step % CHECK_EVERY == 0):
            is_over = attempt.check_held_out() or is_over
            told["held_out_dice"] = attempt.held_out_dice[-1][1]
        if tracker is not None and told:
            tracker.note(attempt.step, told)
        fault = attempt.find_fault(is_over=is_over)
        if fault:
            return fault
        if on_step is not None:
            on_step(attempt.step, steps)
        if checkpoint is not None and not is_over and checkpoint.is_due():
            checkpoint.write(pack_state(attempt.state()))
    return ""


def _warmed_up_average(averaged: list[torch.Tensor], current: list[torch.Tensor], n_averaged: torch.Tensor) -> None:
    """Exponential average whose memory grows with the steps: a short training is not averaged with its start."""
    if not averaged[0].is_floating_point():
        torch._foreach_copy_(averaged, current)
        return
    n = int(n_averaged)
    torch._foreach_lerp_(averaged, current, 1 - min(EMA_DECAY, (1 + n) / (10 + n)))
