"""Clicks, also with a network that knows boxes alone.

LiteMedSAM was trained with boxes; the point prompts that it has from SAM make its masks worse, even beside the true
box. So a click becomes boxes, and SAM's own confidence and the clicks choose among their masks; with a network that was
trained with points, the mask of the clicks themselves is one more of these. Later clicks refine what is marked and do
not start anew.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from samcorrect.lib.core.boxes import box_of_mask, clip_boxes
from samcorrect.lib.core.clicks import (
    Click,
    boxes_around,
    click_fit,
    clicked_parts,
    follow_clicks,
    moved_boxes,
    respected,
)
from samcorrect.lib.networks.sam import SamModel, stability_scores

# Masks whose boxes are drawn again around them, and by what share of its size such a box is wider, as boxes drawn by
# hand are.
N_REDRAWN, REDRAWN_MARGIN = 2, 0.05
# Of the boxes around all foreground clicks, the smallest are tried when a click refines a mask.
N_AROUND = 3
# The mask of another box replaces what is marked where the click lies more than half as deep in the change as its
# deepest pixel, at equal confidence; otherwise only the surroundings of the click change.
KEEP_SHARE = 0.5
# SAM's own masks have logits of about this size well inside and outside of an object.
MASK_PROMPT_LOGIT = 8.0
# Two masks of 64 kB each.
N_REMEMBERED = 128


@dataclass(frozen=True)
class Marked:
    """What prompts marked in a slice.

    Attributes:
        clicks: Those that were taken into account, in order.
        box: (4,) box whose mask it comes from, in pixels of a mask.
        base: (side, side) bool, the mask of that box.
        confidence: SAM's for it, predicted IoU times stability, in [0, 1].
        mask: (side, side) bool, what is marked: the base where it respects all clicks.
    """

    clicks: tuple[Click, ...]
    box: np.ndarray
    base: np.ndarray
    confidence: float
    mask: np.ndarray


class MarkedMemory:
    """The last results of clicks, so that one more click refines them; safe for several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, frozenset[Click]], Marked] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, key: str, clicks: Sequence[Click]) -> Marked | None:
        """The result of the most of these clicks in a slice; None where there is none."""
        wanted = frozenset(clicks)
        with self._lock:
            found = [(len(known), (k, known)) for k, known in self._known if k == key and known <= wanted]
            if not found:
                return None
            best = max(found, key=lambda pair: pair[0])[1]
            self._known.move_to_end(best)
            return self._known[best]

    def keep(self, key: str, marked: Marked) -> None:
        """Remember a result; the oldest used goes first."""
        with self._lock:
            self._known[key, frozenset(marked.clicks)] = marked
            while len(self._known) > N_REMEMBERED:
                self._known.popitem(last=False)


def mark_box(
    sam: SamModel, embedding: torch.Tensor, box: np.ndarray, *, mask_prompt: np.ndarray | None = None
) -> Marked:
    """The mask of a box.

    Args:
        sam: The model.
        embedding: Of the slice.
        box: (4,) in pixels of a mask.
        mask_prompt: (side, side) bool, an earlier mask that goes to SAM with the box.
    """
    hint = None if mask_prompt is None else _as_logits(mask_prompt)
    logits, iou = sam.decode(embedding, boxes=box[None], mask_logits=hint)
    mask = (logits[0] > 0).numpy()
    return Marked((), box, mask, float(iou[0] * stability_scores(logits)[0]), mask)


def mark_click(
    sam: SamModel,
    embedding: torch.Tensor,
    click: Click,
    shape_hw: tuple[int, int],
    *,
    expected_box: np.ndarray | None = None,
) -> Marked:
    """The object that a first foreground click means: boxes of several sizes around it, the most confident two drawn
    again around their masks, and the most confident mask of all that holds the click.

    Args:
        sam: The model.
        embedding: Of the slice.
        click: A foreground click.
        shape_hw: Rows and columns of the frame that the image fills.
        expected_box: (4,) in pixels of a mask, where the structure is expected; one more box where it holds the click.
    """
    boxes = boxes_around([click], shape_hw)
    at = np.array([click[0], click[1]])
    if expected_box is not None and (expected_box[:2] <= at).all() and (at < expected_box[2:]).all():
        boxes = np.concatenate([boxes, expected_box[None]])
    found = [*_masks_of(sam, embedding, boxes, [click]), *_masks_of_points(sam, embedding, [click], shape_hw)]
    likely = sorted(found, key=_confidence_with_clicks, reverse=True)[:N_REDRAWN]
    redrawn = [_box_around(marked.base, shape_hw) for marked in likely if marked.base.any()]
    if redrawn:
        found += _masks_of(sam, embedding, np.array(redrawn), [click])
    return max(found, key=_confidence_with_clicks)


def refine(sam: SamModel, embedding: torch.Tensor, marked: Marked, click: Click, shape_hw: tuple[int, int]) -> Marked:
    """What is marked after one more click; a click that is respected already changes nothing.

    Other boxes that the click can mean compete by confidence, respected clicks and `core.clicks.click_fit`. Where none
    explains the click, only its surroundings change.

    Args:
        sam: The model.
        embedding: Of the slice.
        marked: What was marked before the click.
        click: The click.
        shape_hw: Rows and columns of the frame that the image fills.
    """
    clicks = (*marked.clicks, click)
    if respected(marked.mask, [click]).all():
        return replace(marked, clicks=clicks)
    patched = follow_clicks(marked.mask, clicks)
    boxes = [moved_boxes(marked.box, marked.base, click, clicks)]
    if patched.any():
        boxes.append(_box_around(patched, shape_hw)[None])
    if click[2]:
        boxes.append(boxes_around(clicks, shape_hw)[:N_AROUND])
    best, best_score = None, KEEP_SHARE * marked.confidence
    of_points = _masks_of_points(sam, embedding, clicks, shape_hw, before=marked)
    for found in (*of_points, *_masks_of(sam, embedding, np.concatenate(boxes), clicks)):
        score = _confidence_with_clicks(found) * click_fit(marked.mask, found.base, click)
        if score > best_score:
            best, best_score = found, score
    return best or replace(marked, clicks=clicks, mask=patched)


def _box_around(mask: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    box = box_of_mask(mask)
    margin = REDRAWN_MARGIN * (box[:, 1] - box[:, 0])
    return clip_boxes(np.concatenate([box[:, 0] - margin, box[:, 1] + margin])[None], shape_hw)[0]


def _confidence_with_clicks(marked: Marked) -> float:
    return marked.confidence * float(respected(marked.base, marked.clicks).mean())


def _masks_of(sam: SamModel, embedding: torch.Tensor, boxes: np.ndarray, clicks: Sequence[Click]) -> Iterator[Marked]:
    if not len(boxes):
        return
    logits, iou = sam.decode(embedding, boxes=boxes)
    confidence = iou * stability_scores(logits)
    for box, of_box, sure in zip(boxes, logits, confidence, strict=True):
        base = clicked_parts((of_box > 0).numpy(), clicks)
        yield Marked(tuple(clicks), box, base, float(sure), follow_clicks(base, clicks))


def _masks_of_points(
    sam: SamModel,
    embedding: torch.Tensor,
    clicks: Sequence[Click],
    shape_hw: tuple[int, int],
    *,
    before: Marked | None = None,
) -> Iterator[Marked]:
    """The mask of the clicks themselves, with what was marked before as SAM's own refinement takes it; nothing from a
    network that was not trained with points.
    """
    if "point" not in sam.prompts:
        return
    # A click is a pixel, and a point the middle of it.
    points = [(row + 0.5, column + 0.5, is_foreground) for row, column, is_foreground in clicks]
    hint = _as_logits(before.mask) if before is not None and "mask" in sam.prompts else None
    logits, iou = sam.decode(embedding, points=points, mask_logits=hint)
    base = clicked_parts((logits[0] > 0).numpy(), clicks)
    if base.any():
        sure = float(iou[0] * stability_scores(logits)[0])
        yield Marked(tuple(clicks), _box_around(base, shape_hw), base, sure, follow_clicks(base, clicks))


def _as_logits(mask: np.ndarray) -> torch.Tensor:
    return (2 * torch.from_numpy(mask).float() - 1) * MASK_PROMPT_LOGIT
