"""What a training learns from, and how its batches are drawn of it."""

from dataclasses import dataclass

import torch

from samcorrect.lib.core.losses import IGNORE
from samcorrect.lib.networks.student import StudentConfig
from samcorrect.lib.networks.windows import OFFSETS, slice_windows

# Of a store's slices, what is computed at once.
SLICES_AT_ONCE = 256
# Slices that a check looks at; as much work as a training step or two.
CHECK_SLICES = 24
# Of each structure, the slices where it is largest, which are looked at besides: a training that misses the tips of a
# rare structure has not lost it.
LARGEST_SLICES = 4


@dataclass(frozen=True)
class TrainingData:
    """Slices in the frame and what the training may believe of them.

    Attributes:
        frames: (N, side, side) float in [0, 1].
        targets: (N, side, side) integer channel numbers, IGNORE where nothing is known.
        weights: (N, side, side), at least 0; None for 1.
        sampling: (M,) float, how often a slice is drawn; need not sum to 1.
        lengths: Slices of each image, in order; by default each slice is an image.
        held_out: (M,) bool, slices that are never drawn and tell when to stop; by default none is.
        slices: (M,) numbers of the slices that are learnt, the others are not looked at; by default all of them.
    """

    frames: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor | None
    sampling: torch.Tensor
    lengths: tuple[int, ...] | None = None
    held_out: torch.Tensor | None = None
    slices: torch.Tensor | None = None

    def numbers(self) -> torch.Tensor:
        """(M,) int64, `slices` or all."""
        return torch.arange(len(self.frames)) if self.slices is None else self.slices


class Samples:
    """The slices of the data as samples of a network: single ones, with their neighbours, or blocks around each."""

    def __init__(self, data: TrainingData, config: StudentConfig):
        self.data = data
        self.is_3d = config.dims == "3d"
        self.numbers = data.numbers()
        lengths = data.lengths or (1,) * len(self.numbers)
        self.windows, self.is_inside = slice_windows(lengths, OFFSETS[config.dims])
        self.sampling = data.sampling if data.held_out is None else data.sampling * ~data.held_out
        n_structures = len(config.indices)
        sizes = torch.cat([self._sizes(numbers, n_structures) for numbers in self.numbers.split(SLICES_AT_ONCE)])
        has_object = sizes.any(1)
        sizes[self.sampling <= 0] = 0
        largest = sizes.topk(min(LARGEST_SLICES, len(sizes)), dim=0)
        self.learnt = torch.cat([self._spread(sizes.any(1)), largest.indices[largest.values > 0]]).unique()
        self.held_out = self._spread(has_object & data.held_out) if data.held_out is not None else self.learnt[:0]

    def batch(self, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, W, side, side) frames, and targets and weights of the slices to segment: all of a block, else one."""
        windows = self.numbers[self.windows[drawn]]
        segmented = windows if self.is_3d else self.numbers[drawn, None]
        targets = self.data.targets[segmented].long()
        if self.is_3d:
            targets = targets.masked_fill(~self.is_inside[drawn, :, None, None], IGNORE)
        weights = torch.ones(targets.shape) if self.data.weights is None else self.data.weights[segmented].float()
        return self.data.frames[windows], targets, weights

    def in_network_order(self, of_slices: torch.Tensor) -> torch.Tensor:
        """(B, T, side, side) to the shape of the logits without channels: (B, side, side) or (B, side, side, T)."""
        return of_slices.permute(0, 2, 3, 1) if self.is_3d else of_slices[:, 0]

    def _sizes(self, numbers: torch.Tensor, n_structures: int) -> torch.Tensor:
        """(M, K) pixels of each structure in some slices, of those that weigh anything."""
        targets = self.data.targets[numbers]
        if self.data.weights is not None:
            targets = targets.masked_fill(self.data.weights[numbers] == 0, 0)
        return torch.stack([(targets == k + 1).flatten(1).sum(1) for k in range(n_structures)], 1)

    def _spread(self, chosen: torch.Tensor) -> torch.Tensor:
        """At most CHECK_SLICES of the chosen slices, or blocks with as many in all, evenly spread."""
        numbers = torch.nonzero(chosen)[:, 0]
        n = max(1, CHECK_SLICES // self.windows.shape[1]) if self.is_3d else CHECK_SLICES
        return numbers[torch.linspace(0, max(len(numbers) - 1, 0), min(n, len(numbers))).round().long()]
