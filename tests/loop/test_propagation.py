"""Masks carried through slices; SAM is a rule here, so that every mask is worked out by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from samcorrect.lib.loop.propagation import carry_masks, spread_marks
from samcorrect.lib.networks.clicks import Marked

SIDE, N_SLICES = 32, 12
WHOLE = np.array([0.0, 0, SIDE, SIDE])


@dataclass
class BoxFiller:
    """Answers a box with the object's pixels inside it; satisfies what is used of SamModel."""

    objects: np.ndarray
    asked: list

    def decode(self, embedding, *, boxes):
        number = int(embedding[0, 0, 0])
        self.asked.append(number)
        logits = torch.full((len(boxes), SIDE, SIDE), -5.0)
        for k, (start0, start1, stop0, stop1) in enumerate(np.rint(boxes).astype(int)):
            inside = np.zeros((SIDE, SIDE), bool)
            inside[start0:stop0, start1:stop1] = True
            logits[k][torch.from_numpy(self.objects[number] & inside)] = 5.0
        return logits, np.ones(len(boxes), np.float32)


class BrightSlices:
    """Slices in which the object is white; the first channel of the embedding is the slice's number."""

    def __init__(self, objects: np.ndarray, *, n_finer: int = 1):
        self.objects, self.n_finer = objects, n_finer
        self.sam, self.step_px = BoxFiller(objects, []), 2.0

    def frame(self, number: int) -> torch.Tensor:
        fine = np.kron(self.objects[number], np.ones((self.n_finer, self.n_finer)))
        return torch.from_numpy(fine.astype(np.float32))

    def embedding(self, number: int) -> torch.Tensor:
        return torch.full((1, 8, 8), float(number))


@pytest.fixture
def column() -> np.ndarray:
    """A square that moves by one pixel a slice, from slice 2 to slice 9."""
    objects = np.zeros((N_SLICES, SIDE, SIDE), bool)
    for number in range(2, 10):
        objects[number, 6 + number : 16 + number, 8:18] = True
    return objects


def marked(mask: np.ndarray) -> Marked:
    return Marked((), WHOLE, mask, 1.0, mask)


@pytest.mark.parametrize("n_finer", [1, 4])
def test_a_mark_spreads_both_ways_until_the_structure_ends(column, n_finer):
    """SAM ViT sees slices of 1024 px and gives masks of 256."""
    slices = BrightSlices(column, n_finer=n_finer)
    masks = spread_marks(slices, {5: marked(column[5])}, span=(0, N_SLICES), limits=WHOLE)
    assert sorted(masks) == list(range(2, 10))
    assert all(np.array_equal(masks[n], column[n]) for n in masks)
    # Slices 1 and 10 were looked at and no further ones.
    assert sorted(slices.sam.asked) == [1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_the_span_and_the_limits_are_not_left(column):
    limits = np.array([0.0, 0, 18, SIDE])
    masks = spread_marks(BrightSlices(column), {5: marked(column[5])}, span=(4, 8), limits=limits)
    assert sorted(masks) == [4, 5, 6, 7]
    assert not masks[7][18:].any()
    assert np.array_equal(masks[7][:18], column[7][:18])


def test_a_marked_slice_keeps_its_mask_whatever_the_others_bring(column):
    own = np.zeros((SIDE, SIDE), bool)
    own[12:20, 8:14] = True
    masks = spread_marks(BrightSlices(column), {3: marked(column[3]), 7: marked(own)}, span=(0, N_SLICES), limits=WHOLE)
    assert np.array_equal(masks[7], own)
    assert np.array_equal(masks[3], column[3])
    # Slice 4 is three times as near to slice 3, whose mask sees it whole; 6 is as near to 7, whose box is narrower.
    assert np.array_equal(masks[4], column[4])
    assert masks[6].sum() < column[6].sum()


def test_an_empty_mark_spreads_nothing(column):
    empty = np.zeros((SIDE, SIDE), bool)
    slices = BrightSlices(column)
    assert list(spread_marks(slices, {5: marked(empty)}, span=(0, N_SLICES), limits=WHOLE)) == [5]
    assert not slices.sam.asked


def test_candidates_are_carried_each_in_its_own_box(column):
    slices = BrightSlices(column)
    masks = np.stack([column[5], np.zeros((SIDE, SIDE), bool), column[5]])
    limits = np.stack([WHOLE, WHOLE, np.array([0.0, 0, 16, SIDE])])

    def decode(number, boxes, _is_prompted):
        return slices.sam.decode(slices.embedding(number), boxes=boxes)

    found = list(carry_masks(decode, slices.frame, masks, range(6, 12), limits, step_px=2.0))
    assert [f.slice_index for f in found] == [6, 7, 8, 9, 10]
    assert all(f.is_prompted.tolist() == [True, False, True] for f in found)
    assert np.array_equal((found[0].logits[0] > 0).numpy(), column[6])
    assert not (found[0].logits[1][16:] > 0).any()
