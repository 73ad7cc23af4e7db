"""Candidates in the student's frame: the same masks, smaller, and none where nothing was prompted."""

import numpy as np
import pytest

from samcorrect.lib.core.metrics import dice
from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop import frame_candidates
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.frame_candidates import read_candidates, shrink_masks
from samcorrect.lib.loop.pseudo_label import pseudo_label_store


def test_a_shrunken_mask_by_hand():
    masks = np.zeros((2, 1, 8, 8), bool)
    masks[0, 0, 2:6, 4:8] = True

    small = shrink_masks(masks, 4)

    expected = np.zeros((2, 1, 4, 4), bool)
    expected[0, 0, 1:3, 2:4] = True
    np.testing.assert_array_equal(small, expected)
    np.testing.assert_array_equal(shrink_masks(masks, 8), masks)


def test_a_mask_smaller_than_a_pixel_of_the_frame_does_not_vanish():
    masks = np.zeros((3, 2, 64, 64), bool)
    masks[0, 1, 30, 9:11] = True
    masks[2, :, 8:40, 8:40] = True
    masks[2, 1] = masks[0, 1]

    small = shrink_masks(masks, 8)

    assert small.sum((1, 2, 3)).tolist() == [1, 0, 16]
    assert small[0, 1, 3, 1]
    # Where a mask has more than that, its slices are as they would be alone.
    assert not small[2, 1].any()


def test_labels_that_were_not_prompted_have_no_candidates(labelled):
    workspace = labelled(shares_trainings=False)
    cohort = load_cohort(workspace, best_labels(workspace))

    assert read_candidates(workspace, cohort) == [None] * 10


def test_the_candidates_of_a_pseudo_label_hold_the_label(phantom_workspace, monkeypatch):
    workspace = phantom_workspace()
    pseudo_label_store(workspace, image_ids=["case0"])
    cohort = load_cohort(workspace, best_labels(workspace))

    (found,) = read_candidates(workspace, cohort)

    assert len(found) == cohort.n_structures
    for k, (name, of) in enumerate(zip(cohort.config.names, found, strict=True)):
        assert of.masks.shape == (workspace.settings.n_candidates, 1, 32, 32)
        assert of.confidence.shape == (workspace.settings.n_candidates,)
        # What the peers are told is what the choice was told.
        stored = cohort.labels[0].info["structures"][name]["confidence_agreement"]
        np.testing.assert_allclose(of.confidence_agreement, np.nan if stored is None else stored)
        assert of.first == cohort.labels[0].info["structures"][name]["candidate"]
        assert dice(of.masks[of.first], cohort.mask(0, k + 1)) > 0.9

    def forgotten(*_):
        raise ProtocolError("the boxes file has no row for this image")

    monkeypatch.setattr(frame_candidates, "find_candidates", forgotten)
    assert read_candidates(workspace, cohort) == [None]


@pytest.mark.parametrize("side", [16, 32])
def test_bits_are_the_masks(side, rng):
    masks = rng.random((3, 2, side, side)) > 0.5

    kept = frame_candidates.FrameCandidates(np.packbits(masks, axis=-1), np.ones(3), 0, 0.0)

    np.testing.assert_array_equal(kept.masks, masks)


def test_an_image_that_is_gone_meanwhile_has_no_candidates(phantom_workspace, lose_images):
    workspace = phantom_workspace()
    pseudo_label_store(workspace, image_ids=["case0", "case1"])
    cohort = load_cohort(workspace, best_labels(workspace))
    lose_images(workspace, "case0")
    gone, there = read_candidates(workspace, cohort)
    assert gone is None
    assert len(there) == 2
