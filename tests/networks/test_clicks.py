"""Clicks on a bright rectangle with a gap, with the packaged LiteMedSAM."""

import numpy as np
import pytest
import torch

from samcorrect.lib.core.clicks import respected
from samcorrect.lib.core.metrics import dice
from samcorrect.lib.networks.clicks import N_REMEMBERED, Marked, MarkedMemory, mark_box, mark_click, refine

SIDE = 256
WHOLE = (SIDE, SIDE)
RECTANGLE = np.zeros(WHOLE, bool)
RECTANGLE[80:150, 90:150] = True
INSIDE, OUTSIDE = (115, 120, True), (220, 40, False)


@pytest.fixture(scope="module")
def embedding(sam) -> torch.Tensor:
    noise = 0.03 * torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return sam.encode((torch.where(torch.from_numpy(RECTANGLE), 0.8, 0.2) + noise).clamp(0, 1))


@pytest.fixture(scope="module")
def marked(sam, embedding) -> Marked:
    return mark_click(sam, embedding, INSIDE, WHOLE)


def test_one_click_marks_the_object_and_not_a_spot_of_it(marked, sam, embedding):
    assert dice(marked.mask, RECTANGLE) > 0.9
    assert marked.clicks == (INSIDE,)
    assert 0.5 < marked.confidence <= 1
    straight, _ = sam.decode(embedding, points=[(115.5, 120.5, True)])
    assert dice((straight[0] > 0).numpy(), RECTANGLE) < 0.5


def test_a_click_that_is_respected_changes_nothing_and_asks_nobody(marked, embedding):
    again = refine(None, embedding, marked, OUTSIDE, WHOLE)
    assert again.clicks == (INSIDE, OUTSIDE)
    assert again.mask is marked.mask


@pytest.mark.parametrize("click", [(90, 120, False), (200, 30, True)])
def test_a_click_that_is_not_is_respected_then_and_the_earlier_ones_stay_so(sam, embedding, marked, click):
    before = marked.mask.copy()
    refined = refine(sam, embedding, refine(sam, embedding, marked, OUTSIDE, WHOLE), click, WHOLE)
    assert respected(refined.mask, refined.clicks).all()
    assert refined.clicks == (INSIDE, OUTSIDE, click)
    assert np.array_equal(marked.mask, before)


def test_a_click_beside_half_an_object_completes_it(sam, embedding):
    half = mark_box(sam, embedding, np.array([76.0, 86, 112, 154]))
    assert dice(half.mask, RECTANGLE) < 0.8
    refined = refine(sam, embedding, half, (131, 120, True), WHOLE)
    assert dice(refined.mask, RECTANGLE) > dice(half.mask, RECTANGLE) + 0.1


def test_where_a_structure_is_expected_counts_only_with_the_click_inside(sam, embedding, marked):
    elsewhere = np.array([200.0, 0, 256, 50])
    same = mark_click(sam, embedding, INSIDE, WHOLE, expected_box=elsewhere)
    assert np.array_equal(same.mask, marked.mask)
    expected = mark_click(sam, embedding, INSIDE, WHOLE, expected_box=np.array([78.0, 88, 152, 152]))
    assert expected.confidence >= marked.confidence


def test_a_mask_prompt_goes_with_the_box(sam, embedding):
    box = np.array([80.0, 90, 150, 150])
    hint = np.zeros(WHOLE, bool)
    hint[80:110, 90:150] = True
    plain, hinted = mark_box(sam, embedding, box), mark_box(sam, embedding, box, mask_prompt=hint)
    assert dice(hinted.mask, hint) > dice(plain.mask, hint)


class PointsOnly:
    """A network that was trained with points: it finds the rectangle where they lie, and nothing in a box."""

    def __init__(self, prompts):
        self.prompts, self.asked = prompts, []

    def decode(self, embedding, *, boxes=None, points=(), mask_logits=None):
        logits = torch.full((1 if boxes is None else len(boxes), SIDE, SIDE), -9.0)
        if boxes is None:
            self.asked.append((tuple(points), None if mask_logits is None else (mask_logits > 0).numpy()))
            logits[0][torch.from_numpy(RECTANGLE)] = 9.0
        return logits, np.full(len(logits), 0.9, np.float32)


def test_a_network_that_was_trained_with_points_is_asked_with_the_clicks():
    points = PointsOnly(("box", "point", "mask"))
    one = mark_click(points, None, INSIDE, WHOLE)
    assert np.array_equal(one.mask, RECTANGLE)
    assert points.asked == [(((115.5, 120.5, True),), None)]
    half = Marked((), np.array([80.0, 90, 115, 150]), np.zeros(WHOLE, bool), 0.9, np.zeros(WHOLE, bool))
    half.mask[80:115, 90:150] = half.base[80:115, 90:150] = True
    refined = refine(points, None, half, (131, 120, True), WHOLE)
    assert np.array_equal(refined.mask, RECTANGLE)
    (asked, hint) = points.asked[-1]
    assert asked == ((131.5, 120.5, True),)
    assert np.array_equal(hint, half.mask)


def test_one_that_was_not_is_never_asked_with_points():
    boxes = PointsOnly(("box",))
    mark_click(boxes, None, INSIDE, WHOLE)
    assert not boxes.asked


# Memory; the masks play no part


def some(*clicks) -> Marked:
    return Marked(tuple(clicks), np.zeros(4), RECTANGLE, 1.0, RECTANGLE)


def test_the_memory_gives_the_result_of_the_most_clicks_that_are_all_among_those_asked_for():
    memory = MarkedMemory()
    one, two, other = some((1, 1, True)), some((1, 1, True), (2, 2, False)), some((9, 9, True), (1, 1, True))
    for marked in (one, two, other):
        memory.keep("slice", marked)
    assert memory.recall("slice", [(1, 1, True), (3, 3, True), (2, 2, False)]) is two
    assert memory.recall("slice", [(1, 1, True)]) is one
    assert memory.recall("slice", [(2, 2, False)]) is None
    assert memory.recall("another slice", [(1, 1, True)]) is None


def test_the_memory_is_bounded_and_forgets_what_was_not_used():
    memory = MarkedMemory()
    for number in range(N_REMEMBERED):
        memory.keep(str(number), some((1, 1, True)))
    memory.recall("0", [(1, 1, True)])
    memory.keep("new", some((1, 1, True)))
    assert memory.recall("0", [(1, 1, True)]) is not None
    assert memory.recall("1", [(1, 1, True)]) is None
