"""Clicks: boxes that a click can mean, which of their masks fits the clicks, and where a person would click next.

A click is (axis 0, axis 1, is_foreground) in whole pixels of a slice. Boxes are (4,) of [start0, start1, stop0, stop1),
as in `core.boxes`. A click is respected where the mask has it inside and it is a foreground click, or outside and it is
a background click. The rules have no constants learnt from masks: a click is taken to lie in the middle of what it is
about, as people click.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, label

from samcorrect.lib.core.boxes import box_of_mask, clip_boxes

Click = tuple[int, int, bool]

# Sides of the boxes around a first click as shares of the slice's longest side: steps of about 1.6, from a small vessel
# to an organ that fills the image.
BOX_SHARES = (0.10, 0.16, 0.25, 0.40, 0.64)
# Least radius of what a click that was not respected changes.
MIN_RADIUS_PX = 2.0


def next_click(mask: np.ndarray, truth: np.ndarray) -> Click | None:
    """The click of a simulated person: the middle of the largest error.

    The rule of RITM (Sofiiuk et al., arXiv 2102.06583, section 3): the pixel of the wrong ones that is furthest from
    all right ones; the frame's border counts as right.

    Args:
        mask: (H, W) bool.
        truth: (H, W) bool.

    Returns:
        The click; None where the mask has no error.
    """
    furthest, click = 0.0, None
    for error, is_foreground in ((truth & ~mask, True), (mask & ~truth, False)):
        depths = distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1]
        at = np.unravel_index(int(depths.argmax()), depths.shape)
        if depths[at] > furthest:
            furthest, click = float(depths[at]), (int(at[0]), int(at[1]), is_foreground)
    return click


def boxes_around(clicks: Sequence[Click], shape_hw: tuple[int, int]) -> np.ndarray:
    """Boxes of several sizes around foreground clicks.

    Args:
        clicks: At least one of them foreground.
        shape_hw: Of the slice.

    Returns:
        (5, 4): the box of the clicks, widened on each side by half of BOX_SHARES of the longest side, cut to the slice.
    """
    inside = np.array([click[:2] for click in clicks if click[2]], dtype=np.float64) + 0.5
    reach = np.array(BOX_SHARES)[:, None] * max(shape_hw) / 2
    return clip_boxes(np.hstack([inside.min(0) - reach, inside.max(0) + reach]), shape_hw)


def moved_boxes(box: np.ndarray, mask: np.ndarray, click: Click, clicks: Sequence[Click]) -> np.ndarray:
    """Boxes that a click which the mask of a box does not respect can mean.

    A foreground click outside the box moves the sides between them, once just past the click and once as far again, as
    the click is in the middle of what is missing. A background click moves one side at a time, to the click and as far
    again, where all foreground clicks stay inside.

    Args:
        box: (4,).
        mask: (H, W) bool of that box.
        click: The click.
        clicks: All clicks, this one among them.

    Returns:
        (N, 4), N can be 0.
    """
    shape_hw, at = mask.shape, np.array(click[:2], dtype=np.float64) + 0.5
    low, high = box[:2], box[2:]
    if click[2]:
        below, above = np.maximum(low - at, 0), np.maximum(at - high, 0)
        if not (below.any() or above.any()):
            return np.empty((0, 4))
        moved = [
            np.concatenate([low - factor * below, high + factor * above])
            + MIN_RADIUS_PX * np.concatenate([-1.0 * (below > 0), 1.0 * (above > 0)])
            for factor in (1.0, 2.0)
        ]
        return clip_boxes(np.array(moved), shape_hw)
    inside = np.array([other[:2] for other in clicks if other[2]], dtype=np.float64).reshape(-1, 2) + 0.5
    tight = box_of_mask(mask)
    edges = box if tight is None else np.concatenate([tight[:, 0], tight[:, 1]])
    moved = []
    for side in range(4):
        axis, is_start = side % 2, side < 2
        for factor in (1.0, 2.0):
            place = edges[side] + factor * (at[axis] - edges[side])
            keeps = inside[:, axis] > place if is_start else inside[:, axis] < place
            stays = place < box[axis + 2] - 1 if is_start else place > box[axis] + 1
            if keeps.all() and stays:
                moved.append(np.where(np.arange(4) == side, place, box))
    return clip_boxes(np.array(moved), shape_hw) if moved else np.empty((0, 4))


def click_fit(before: np.ndarray, after: np.ndarray, click: Click) -> float:
    """How well a click on one mask asks for another: people click in the middle of the largest error.

    Args:
        before: (H, W) bool, the mask that was clicked on; empty before the first click.
        after: (H, W) bool, what may have been meant.
        click: The click.

    Returns:
        In [0, 1]: how deep the click lies in the change between the masks, as a share of the depth of its deepest
        pixel; 0 where the change goes the other way at the click or leaves it out.
    """
    if after[click[0], click[1]] != click[2] or before[click[0], click[1]] == click[2]:
        return 0.0
    # An addition that touches a removal is another error.
    depths = np.maximum(*(distance_transform_edt(np.pad(c, 1)) for c in (after & ~before, before & ~after)))[1:-1, 1:-1]
    return float(depths[click[0], click[1]] / depths.max())


def respected(mask: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """(N,) bool: which of the clicks a mask (H, W) respects."""
    return np.array([bool(mask[click[0], click[1]]) == click[2] for click in clicks], dtype=bool)


def clicked_parts(mask: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """The connected parts of a mask (H, W) that hold a foreground click; the mask itself where none does."""
    parts, _ = label(mask)
    numbers = {int(parts[click[0], click[1]]) for click in clicks if click[2]} - {0}
    return np.isin(parts, list(numbers)) if numbers else mask


def follow_clicks(mask: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """A mask that respects all clicks: around each one that is not, in order, a disc changes sides.

    The disc reaches to the nearest pixel that is already right, so it ends at the mask's edge, and no further than half
    the way to the nearest click of the other kind.

    Args:
        mask: (H, W) bool.
        clicks: No two of different kind in one pixel.

    Returns:
        (H, W) bool.
    """
    made = mask.copy()
    grid = np.indices(mask.shape)
    for row, column, is_foreground in clicks:
        if made[row, column] == is_foreground:
            continue
        distances = np.hypot(grid[0] - row, grid[1] - column)
        others = [np.hypot(c[0] - row, c[1] - column) for c in clicks if c[2] != is_foreground]
        right = made == is_foreground
        reach = min([distances[right].min() if right.any() else MIN_RADIUS_PX, *(d / 2 for d in others)])
        made[distances < max(reach, MIN_RADIUS_PX)] = is_foreground
    for row, column, is_foreground in clicks:  # discs of neighbouring clicks may overlap
        made[row, column] = is_foreground
    return made
