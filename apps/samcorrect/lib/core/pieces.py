"""Structures in one piece: what a structure's labels say of it, and the stray pieces of a prediction without them.

A piece is a connected component; voxels that share a corner are connected.
"""

from collections.abc import Sequence

import numpy as np
from monai.transforms.utils import get_largest_connected_component_mask

# A mask is in one piece where its largest has this share of it; specks are no second piece.
MIN_LARGEST_SHARE = 0.95
# A structure is in one piece where this share of its masks is.
MIN_MASKS_SHARE = 0.95


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a bool mask of 2 or 3 axes, as such a mask; all False where it is empty."""
    return np.asarray(get_largest_connected_component_mask(mask), dtype=bool)


def is_one_piece(mask: np.ndarray) -> bool | None:
    """Whether a bool mask is in one piece; None where it is empty."""
    n_voxels = np.count_nonzero(mask)
    return bool(np.count_nonzero(largest_piece(mask)) >= MIN_LARGEST_SHARE * n_voxels) if n_voxels else None


def come_in_one_piece(masks: Sequence[bool | None]) -> bool | None:
    """Whether a structure is in one piece, from what `is_one_piece` says of its masks; None where all are empty."""
    said = [is_whole for is_whole in masks if is_whole is not None]
    return float(np.mean(said)) >= MIN_MASKS_SHARE if said else None


def drop_stray_pieces(probs: np.ndarray, in_one_piece: Sequence[bool]) -> None:
    """Take from structures in one piece what lies beside their largest piece, in place.

    A voxel goes to what is most probable given that it is not of the structure; its other probabilities are scaled to a
    sum of 1.

    Args:
        probs: (K + 1, ...) float32 of one image of 2 or 3 axes, channel 0 is background, sums to 1 over channels.
        in_one_piece: (K,) of each structure.
    """
    whole = [k + 1 for k, is_whole in enumerate(in_one_piece) if is_whole]
    # What is taken from one structure may be a stray piece of another; a voxel is taken from each at most once.
    is_done = not whole
    while not is_done:
        channels = probs.argmax(0)
        stray = {k: (mask := channels == k) & ~largest_piece(mask) for k in whole}
        is_done = not any(mask.any() for mask in stray.values())
        for k, mask in stray.items():
            others = probs[:, mask]
            others[k] = 0
            others[0] += np.finfo(np.float32).tiny
            probs[:, mask] = others / others.sum(0)
