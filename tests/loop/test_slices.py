"""Slices along any axis in SAM's frame, and the way back."""

import numpy as np
import pytest
import torch

from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.store.volumes import Volume
from samcorrect.lib.transforms.frame import normalise_intensity, to_frame


@pytest.fixture
def workspace(phantom_workspace):
    return phantom_workspace()


def test_batch_labelling_and_prompts_see_the_same_frame(workspace, rng):
    volume = Volume(rng.normal(size=(40, 30, 3)).astype(np.float32), np.diag([1, 1, 5, 1.0]), 3)
    frames = to_frame(normalise_intensity(volume.array), 256)
    slices = Slices(workspace, volume, 2, None)
    assert all(torch.equal(slices.frame(n), frames[n]) for n in range(3))
    windowed = Slices(workspace, volume, 2, (-1, 1))
    assert torch.equal(windowed.frame(1), to_frame(normalise_intensity(volume.array, (-1, 1)), 256)[1])
    assert windowed.digest(1) != slices.digest(1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_comes_back_to_its_place_along_every_axis(workspace, axis):
    volume = Volume(np.zeros((40, 30, 20), np.float32), np.diag([1.0, 1.0, 2.0, 1.0]), 3)
    mask = np.zeros((40, 30, 20), bool)
    mask[10:30, 8:20, 5:15] = True
    slices = Slices(workspace, volume, axis, None)
    assert slices.shape == slices.in_order((40, 30, 20))
    assert slices.shape[2] == (40, 30, 20)[axis]
    one = np.moveaxis(mask, axis, 2)[:, :, 12]
    assert np.array_equal(slices.to_grid(slices.to_frame(one)), one)


def test_oblong_pixels_are_seen_as_they_lie_in_the_patient(workspace):
    # 40 x 10 voxels of 1 x 4 mm: a square of 40 mm.
    volume = Volume(np.zeros((40, 12, 10), np.float32), np.diag([-1.0, 1.0, 4.0, 1.0]), 3)
    slices = Slices(workspace, volume, 1, None)
    assert slices.content_hw == (256, 256)
    # 20 x 5 voxels are a square in the frame; voxel (19, 4) has its middle at 19.5 / 40 and 4.5 / 10.
    assert slices.boxes(np.array([[0, 0, 20, 5]])).tolist() == [[0, 0, 128, 128]]
    assert slices.click(19, 4, True) == (124, 115, True)
    # Along the third axis pixels are square.
    assert Slices(workspace, volume, 2, None).content_hw == (256, 77)
