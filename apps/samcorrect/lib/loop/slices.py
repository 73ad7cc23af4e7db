"""A volume as slices along any of its three axes, each made into a frame and encoded when it is asked for."""

import hashlib
from functools import lru_cache

import numpy as np
import torch

from samcorrect.lib.core.clicks import Click
from samcorrect.lib.core.propagation import slice_step_px
from samcorrect.lib.loop.workspace import Models
from samcorrect.lib.store.volumes import Volume
from samcorrect.lib.transforms.frame import (
    boxes_to_frame,
    content_size,
    from_frame,
    seen_size,
    to_frame,
)
from samcorrect.lib.transforms.intensity import scale_intensity

# Pixels are taken as square up to this ratio of their sides, so that rounding in a header changes no frame.
MAX_SQUARE_RATIO = 1.01
# Embeddings of 2 MB that stay in memory.
N_KEPT = 8


class Slices:
    """Slices of an image in SAM's frame, and the way back to its grid.

    Attributes:
        sam: The model.
        axis: The slice axis.
        shape: (H, W, D) with the slice axis last.
        mask_px: Side of the masks that SAM gives.
        content_hw: Rows and columns of a mask that a slice fills.
        step_px: Distance between two slices in pixels of a mask.
        frame: Function of a slice's number: (side, side) float32 in [0, 1].
        embedding: Function of a slice's number: SAM's encoding, from the disk where it was made before.
    """

    def __init__(self, workspace: Models, volume: Volume, axis: int, window_hu: tuple[float, float] | None):
        self.sam, self.axis = workspace.sam, axis
        self._embeddings = workspace.embeddings
        self._array = np.moveaxis(volume.array, axis, 2)
        self.shape = self._array.shape
        self.mask_px = self.sam.mask_px
        self._range = window_hu or volume.intensity_range
        in_slice = self.in_order(volume.spacing_mm)[:2]
        is_square = max(in_slice) <= MAX_SQUARE_RATIO * min(in_slice)
        self._seen_hw = None if is_square else seen_size(self.shape[:2], in_slice)
        self.content_hw = content_size(self._seen_hw or self.shape[:2], self.mask_px)
        self.step_px = slice_step_px(self.shape, self.in_order(volume.spacing_mm), self.content_hw)
        # One slice is asked for several times in a row.
        self.frame, self.embedding = lru_cache(2)(self._frame), lru_cache(N_KEPT)(self._embedding)

    def in_order(self, values: tuple) -> tuple:
        """Three values along the image's axes in the order of `shape`."""
        order = [*(a for a in range(3) if a != self.axis), self.axis]
        return tuple(values[a] for a in order)

    def _frame(self, number: int) -> torch.Tensor:
        one = scale_intensity(self._array[:, :, number : number + 1], self._range)
        return to_frame(one, self.sam.side_px, seen_hw=self._seen_hw)[0]

    def digest(self, number: int) -> str:
        """Of what SAM sees of a slice, and of SAM."""
        content = self.frame(number).numpy().tobytes() + f"{self.sam.digest} {self.sam.runtime}".encode()
        return hashlib.sha256(content).hexdigest()

    def _embedding(self, number: int) -> torch.Tensor:
        return self._embeddings.embedding(self.sam, self.frame(number))

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 4) boxes in voxels of a slice, in pixels of a mask."""
        return boxes_to_frame(boxes, self.shape[:2], self.mask_px, seen_hw=self._seen_hw)

    def click(self, row: int, column: int, is_foreground: bool) -> Click:
        """The click on the pixel of a mask in which the middle of a voxel lies."""
        scale = np.array(self.content_hw) / self.shape[:2]
        at = ((np.array([row, column]) + 0.5) * scale).astype(int)
        return int(at[0]), int(at[1]), is_foreground

    def to_frame(self, mask_hw: np.ndarray) -> np.ndarray:
        """(mask_px, mask_px) bool of a mask of a slice (H, W)."""
        soft = to_frame(mask_hw[..., None].astype(np.float32), self.mask_px, seen_hw=self._seen_hw)[0]
        return (soft >= 0.5).numpy()

    def over_last_axis(self, masks: np.ndarray) -> np.ndarray:
        """(K, D', mask_px, mask_px) bool masks of all these slices as those of slices along the last axis, each as if
        its pixels were square: (K, D, mask_px, mask_px).
        """
        if self.axis == 2 and self._seen_hw is None:
            return masks
        return np.stack([self._over_last_axis(mask) for mask in masks])

    def _over_last_axis(self, mask: np.ndarray) -> np.ndarray:
        on_grid = np.zeros(self.shape, np.float32)
        for number in np.flatnonzero(mask.any((1, 2))):
            on_grid[:, :, number] = self.to_grid(mask[number])
        return (to_frame(np.moveaxis(on_grid, 2, self.axis), self.mask_px) >= 0.5).numpy()

    def to_grid(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) bool of a mask (mask_px, mask_px)."""
        soft = from_frame(torch.from_numpy(mask.astype(np.float32))[None], self.shape[:2], seen_hw=self._seen_hw)
        return (soft[0] > 0.5).numpy()
