"""The one preprocessing: an (H, W, D) image becomes D square slices of one side with intensities in [0, 1], and back.

SAM and the student see the same frame in different sides; nothing else prepares images. What tells CT from the rest is
the protocol's `window_hu`; nothing is guessed from the values. Colour is luminance from the reader on: SAM gets it as
three equal channels, the student as one.
"""

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from samcorrect.lib.core.pseudo_label import smaller_first
from samcorrect.lib.transforms.intensity import intensity_range, scale_intensity

# Side of the masks of every SAM, whatever the side of the frame that it encodes.
MASK_PX = 256


def normalise_intensity(array: np.ndarray, window_hu: tuple[float, float] | None = None) -> np.ndarray:
    """Clip an image at a window of Hounsfield units, or at its own percentiles, and scale it to [0, 1].

    Args:
        array: Any shape, finite, at least one value.
        window_hu: Low and high end, low < high; None where values have no fixed unit (MR, radiographs, ultrasound).

    Returns:
        float32 of the same shape; all zero where there is no window and the image is constant.
    """
    return scale_intensity(array, window_hu or intensity_range(array))


def seen_size(shape_hw: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    """The size at which a slice of oblong pixels has square ones, so that a network sees true proportions."""
    finest_mm = min(spacing_mm)
    return tuple(max(1, round(n * mm / finest_mm)) for n, mm in zip(shape_hw, spacing_mm, strict=True))


def content_size(shape_hw: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Rows and columns that a slice fills in the frame: its longest side becomes `side_px`.

    In a frame wider than MASK_PX they are whole multiples of those at MASK_PX, so that a mask of that side lies exactly
    over the frame.
    """
    step = max(1, side_px // MASK_PX)
    scale = side_px / step / max(shape_hw)
    return step * max(1, round(shape_hw[0] * scale)), step * max(1, round(shape_hw[1] * scale))


def to_frame(array_hwd: np.ndarray, side_px: int, *, seen_hw: tuple[int, int] | None = None) -> torch.Tensor:
    """Resize slices of an image or a soft mask so that the longest side is `side_px`, padded with 0 at the far ends.

    Args:
        array_hwd: (H, W, D) float.
        side_px: Side of the square frame.
        seen_hw: From `seen_size`, where pixels are not square; the array's own by default.

    Returns:
        (D, side, side) float32; each slice is what it would be alone.
    """
    slices = torch.from_numpy(np.ascontiguousarray(array_hwd, dtype=np.float32)).permute(2, 0, 1)[:, None]
    size = content_size(seen_hw or array_hwd.shape[:2], side_px)
    shrinks = size[0] < array_hwd.shape[0] or size[1] < array_hwd.shape[1]
    resized = interpolate(slices, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    return pad(resized, (0, side_px - size[1], 0, side_px - size[0]))[:, 0]


def labels_to_frame(label_map_hwd: np.ndarray, indices: tuple[int, ...], side_px: int) -> torch.Tensor:
    """Resize a label map structure by structure and let the strongest win, so thin parts do not depend on pixel phase.

    A pixel that two structures fill half each is the smaller one's, so that a line inside another stays. A structure
    that is too small for the frame keeps its strongest pixel, in one slice: an empty mask would say that it is not in
    the image.

    Args:
        label_map_hwd: (H, W, D) integer.
        indices: The label index of each structure, in channel order.
        side_px: Side of the square frame.

    Returns:
        (D, side, side) int64 channel numbers: 0 background, k + 1 for `indices[k]`.
    """
    masks = [label_map_hwd == index for index in indices]
    soft, order = torch.stack([to_frame(mask, side_px) for mask in masks]), smaller_first(masks)
    strongest, place = soft[order].max(0)
    channel = torch.tensor(order)[place]
    channels = torch.where(strongest >= 0.5, channel + 1, torch.zeros_like(channel))
    for k, of_structure in enumerate(soft):
        if of_structure.any() and not (channels == k + 1).any():
            # Not the only pixel of another structure, which would vanish in its place.
            n_pixels = channels.flatten().bincount(minlength=len(indices) + 1)
            is_only = (n_pixels[channels] == 1) & (channels > 0)
            channels.view(-1)[of_structure.masked_fill(is_only, 0).argmax()] = k + 1
    return channels


def from_frame(
    frames: torch.Tensor, shape_hw: tuple[int, int], *, seen_hw: tuple[int, int] | None = None
) -> torch.Tensor:
    """Undo `to_frame` for maps in the frame.

    Args:
        frames: (N, side, side) float.
        shape_hw: Rows and columns of the image.
        seen_hw: As `to_frame` had it.

    Returns:
        (N, H, W) float32.
    """
    size = content_size(seen_hw or shape_hw, frames.shape[-1])
    content = frames[:, None, : size[0], : size[1]].float()
    # Only oblong pixels are coarser than the frame along one axis; others keep what was measured without this.
    return interpolate(content, size=shape_hw, mode="bilinear", align_corners=False, antialias=seen_hw is not None)[
        :, 0
    ]


def boxes_to_frame(
    boxes: np.ndarray, shape_hw: tuple[int, int], side_px: int, *, seen_hw: tuple[int, int] | None = None
) -> np.ndarray:
    """Scale boxes from voxels of the slice to pixels of the frame.

    Args:
        boxes: (N, 4) of [start0, start1, stop0, stop1) along the slice's two array axes, in voxels.

    Returns:
        (N, 4) float32 in frame pixels.
    """
    size = content_size(seen_hw or shape_hw, side_px)
    scale = np.array([size[0] / shape_hw[0], size[1] / shape_hw[1]] * 2, dtype=np.float32)
    return np.asarray(boxes, dtype=np.float32) * scale
