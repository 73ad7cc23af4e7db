"""What a network sees of a volume at once: windows of neighbouring slices, never over two images."""

from collections.abc import Sequence

import torch

from samcorrect.lib.settings import StudentDims

# Of 2.5D: slices on each side of the one that is segmented.
CONTEXT_SLICES = 1
# Of 3D: slices of a training patch and of a sliding window; a multiple of what the network's strides divide it by.
PATCH_SLICES = 16

OFFSETS: dict[StudentDims, tuple[int, ...]] = {
    "2d": (0,),
    "2.5d": tuple(range(-CONTEXT_SLICES, CONTEXT_SLICES + 1)),
    "3d": tuple(range(-PATCH_SLICES // 2, PATCH_SLICES // 2)),
}


def slice_windows(lengths: Sequence[int], offsets: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The neighbours of every slice in its own image; beyond the first and last slice, these are repeated.

    Args:
        lengths: Slices of each image, in order; N in all.
        offsets: W places relative to a slice.

    Returns:
        (N, W) int64 slice numbers, and (N, W) bool: the place lies in the image.
    """
    counts = torch.tensor(lengths, dtype=torch.int64)
    ends = counts.cumsum(0)
    first, last = ((ends - counts).repeat_interleave(counts)[:, None], (ends - 1).repeat_interleave(counts)[:, None])
    wanted = torch.arange(int(counts.sum()))[:, None] + torch.tensor(offsets, dtype=torch.int64)
    numbers = wanted.clamp(first, last)
    return numbers, numbers == wanted
