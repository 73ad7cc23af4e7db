"""Masks from the prompts of a viewer."""

import numpy as np
import pytest

from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.prompted import segment_prompts
from samcorrect.lib.store.volumes import read_label_map


@pytest.fixture
def prompt(phantom_workspace):
    workspace = phantom_workspace()
    volume = workspace.store.read_image("case0")

    def run(*, slice_index=None, box_vox=None, foreground=(), background=()):
        return segment_prompts(
            workspace, volume, slice_index=slice_index, box_vox=box_vox, foreground=foreground, background=background
        )

    return run


def test_a_box_gives_the_object_in_it(prompt, phantoms):
    truth = read_label_map(phantoms.labels / "case0.png").array == 3
    inside = np.argwhere(truth)
    box = np.stack([inside.min(0), inside.max(0) + 1], 1).astype(float)
    mask = prompt(box_vox=box)
    assert (mask.shape, mask.dtype) == ((96, 80, 1), bool)
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.85


def test_a_point_marks_something_around_it(prompt, phantoms):
    truth = read_label_map(phantoms.labels / "case0.png").array == 7
    x, y, _ = np.argwhere(truth).mean(0).round().astype(int)
    mask = prompt(foreground=[(int(x), int(y), 0)], background=[(90, 75, 0)])
    assert mask[x, y, 0]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "no prompt: give a box"),
        ({"background": [(1, 1, 0)]}, "no prompt: give a box"),
        ({"foreground": [(96, 1, 0)]}, r"the point \[96, 1, 0\] lies outside the image"),
        ({"box_vox": np.array([[100.0, 120], [0, 10], [0, 1]])}, "the box .* lies outside the image"),
        ({"box_vox": np.array([[20.0, 10], [0, 10], [0, 1]])}, "the box .* lies outside the image"),
        ({"slice_index": 1, "foreground": [(5, 5, 0)]}, "`slice` is 1; the image has the slices 0 to 0"),
    ],
)
def test_prompts_that_cannot_be_used_are_told(prompt, prompts, message):
    with pytest.raises(RequestError, match=message):
        prompt(**prompts)
