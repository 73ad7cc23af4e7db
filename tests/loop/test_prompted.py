"""Masks from the prompts of a viewer."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from samcorrect.lib.core.boxes import box_of_mask
from samcorrect.lib.core.metrics import dice
from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.prompted import Prompts, segment_prompts
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.store.volumes import read_label_map

LEFT, RIGHT = 3, 7


@pytest.fixture
def prompt(phantom_workspace):
    workspace = phantom_workspace()
    volume = workspace.store.read_image("case0")

    def run(**prompts):
        return segment_prompts(workspace, volume, Prompts(**prompts))

    return run


@pytest.fixture
def truth(phantoms):
    return read_label_map(phantoms.labels / "case0.png").array


def middle(mask: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(n) for n in np.argwhere(mask).mean(0).round())


def test_a_box_gives_the_object_in_it_and_two_boxes_both(prompt, truth):
    boxes = tuple(box_of_mask(truth == index) for index in (LEFT, RIGHT))
    mask = prompt(boxes_vox=boxes[:1])
    assert (mask.shape, mask.dtype) == ((96, 80, 1), bool)
    assert dice(mask, truth == LEFT) > 0.85
    assert dice(prompt(boxes_vox=boxes), truth > 0) > 0.85


def test_one_click_gives_the_object_and_all_clicks_are_respected(prompt, truth):
    inside = middle(truth == LEFT)
    assert dice(prompt(foreground=(inside,)), truth == LEFT) > 0.8
    # A person who disagrees with SAM and the truth alike has the last word, neighbours included.
    x, y, z = inside
    mask = prompt(foreground=(inside, (2, 2, 0)), background=((x + 3, y, z), (x + 1, y, z)))
    assert mask[x, y, z]
    assert mask[0:4, 0:4, 0][1:, 1:].all()
    assert not mask[x + 1 : x + 5, y - 1 : y + 2, z].any()


def test_clicks_with_a_box_refine_its_mask(prompt, truth):
    box = box_of_mask(truth == LEFT)
    cut = box.copy()
    cut[1, 1] = (box[1, 0] + box[1, 1]) / 2
    half = prompt(boxes_vox=(cut,))
    x, y, _ = middle((truth == LEFT) & ~half)
    refined = prompt(boxes_vox=(cut,), foreground=((x, y, 0),))
    assert refined[x, y, 0]
    assert dice(refined, truth == LEFT) > dice(half, truth == LEFT) + 0.05


def test_an_earlier_mask_is_refined_and_stays_where_nothing_was_clicked(prompt, truth):
    start = truth == LEFT
    assert dice(prompt(start=start), start) > 0.85
    x, y, _ = middle(start)
    mask = prompt(start=start, background=((x, int(box_of_mask(start)[1, 1]) - 2, 0),))
    assert mask[x, y, 0]
    assert dice(mask, start) > 0.7


@pytest.mark.parametrize("spreads", [False, True])
def test_an_earlier_mask_too_small_for_sam_to_see_stays(tmp_path, phantoms, spreads):
    (tmp_path / "studies").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 700), np.uint8)).save(
        tmp_path / "studies" / "a.png"
    )
    changed = {"protocol": None, "state": tmp_path / "state"}
    workspace = open_workspace(tmp_path / "studies", phantoms.settings.model_copy(update=changed))
    volume = workspace.store.read_image("a")
    start = np.zeros((700, 600, 1), bool)
    start[301, 222] = True
    assert np.array_equal(segment_prompts(workspace, volume, Prompts(start=start, spreads=spreads)), start)
    mask = segment_prompts(workspace, volume, Prompts(start=start, spreads=spreads, background=((302, 222, 0),)))
    assert not mask.any()
    mask = segment_prompts(workspace, volume, Prompts(start=start, spreads=spreads, foreground=((100, 100, 0),)))
    assert mask[100, 100, 0]
    workspace.store.ledger.close()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "no prompt: give a box"),
        ({"background": ((1, 1, 0),)}, "no prompt: give a box"),
        ({"foreground": ((96, 1, 0),)}, r"`foreground`: the point \[96, 1, 0\] lies outside the image"),
        (
            {"foreground": ((9, 1, 0),), "background": ((9, 80, 0),)},
            r"`background`: the point \[9, 80, 0\] lies outside",
        ),
        ({"foreground": ((9, 1, 0),), "background": ((9, 1, 0),)}, r"\[9, 1, 0\] is in `foreground` and in `backgr"),
        ({"boxes_vox": (np.array([[100.0, 120], [0, 10], [0, 1]]),)}, "`roi`: the box .* lies outside the image"),
        ({"boxes_vox": (np.array([[20.0, 10], [0, 10], [0, 1]]),)}, "`roi`: the box .* lies outside the image"),
        ({"slice_index": 1, "foreground": ((5, 5, 0),)}, "`slice` is 1; the image has the slices 0 to 0"),
    ],
)
def test_prompts_that_cannot_be_used_are_told(prompt, prompts, message):
    with pytest.raises(RequestError, match=message):
        prompt(**prompts)


# Volumes


@pytest.fixture(scope="module")
def ball(tmp_path_factory, phantoms):
    """A workspace over one oblique volume of 48 x 44 x 6 voxels with a ball in the slices 1 to 4, and the ball."""
    studies = tmp_path_factory.mktemp("ball")
    x, y, z = np.mgrid[:48, :44, :6]
    mask = ((x - 22 - z) / 11) ** 2 + ((y - 20) / 9) ** 2 + ((z - 2.5) / 2.2) ** 2 < 1
    array = np.where(mask, 160, 60) + np.random.default_rng(0).normal(0, 8, mask.shape)
    affine = np.diag([1.0, 1.0, 4.0, 1.0]) @ np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, 9], [0, 0, 1, 2], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), studies / "ball.nii.gz")
    workspace = open_workspace(studies, phantoms.settings.model_copy(update={"protocol": None}))
    yield workspace, workspace.store.read_image("ball"), mask
    workspace.store.ledger.close()


def box_in(mask: np.ndarray, number: int) -> np.ndarray:
    one = np.zeros_like(mask)
    one[:, :, number] = mask[:, :, number]
    return box_of_mask(one)


def filled(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask.any((0, 1))).tolist()


def test_one_box_in_one_slice_gives_the_volume_and_a_marked_slice_stays_as_it_was(ball):
    workspace, volume, truth = ball
    prompts = Prompts(boxes_vox=(box_in(truth, 2),), spreads=True)
    alone = segment_prompts(workspace, volume, replace(prompts, spreads=False))
    assert filled(alone) == [2]
    mask = segment_prompts(workspace, volume, prompts)
    assert dice(mask, truth) > 0.8
    assert not mask[:, :, 0].any()
    assert np.array_equal(mask[:, :, 2], alone[:, :, 2])

    # A click on another slice refines what came to it, and the first slice does not change.
    x, y, _ = middle(mask & (np.indices(mask.shape)[2] == 4))
    again = segment_prompts(workspace, volume, replace(prompts, background=((x, y, 4),)))
    assert not again[x, y, 4]
    assert np.array_equal(again[:, :, 2], mask[:, :, 2])


def test_a_box_of_some_slices_is_not_left(ball):
    workspace, volume, truth = ball
    box = box_of_mask(truth)
    box[2] = [2, 4]
    mask = segment_prompts(workspace, volume, Prompts(boxes_vox=(box,), spreads=True))
    assert filled(mask) == [2, 3]
    assert dice(mask[:, :, 2:4], truth[:, :, 2:4]) > 0.85


def test_an_earlier_mask_of_a_volume_is_kept_in_the_slices_that_are_not_clicked(ball):
    workspace, volume, truth = ball
    x, y, _ = middle(truth & (np.indices(truth.shape)[2] == 3))
    prompts = Prompts(start=truth, background=((x, y, 3),), spreads=True)
    mask = segment_prompts(workspace, volume, prompts)
    others = [0, 1, 2, 4, 5]
    assert np.array_equal(mask[:, :, others], truth[:, :, others])
    assert not mask[x, y, 3]


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_of_the_other_axes_with_oblong_pixels(ball, axis):
    workspace, volume, truth = ball
    at = (24, 20)[axis]
    one = np.zeros_like(truth)
    index = tuple(at if a == axis else slice(None) for a in range(3))
    one[index] = truth[index]
    mask = segment_prompts(workspace, volume, Prompts(axis=axis, boxes_vox=(box_of_mask(one),)))
    assert np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))).tolist() == [at]
    assert dice(mask, one) > 0.75


@pytest.mark.parametrize(
    ("step_mm", "contrast", "seed"),
    [pytest.param(2.5, -40, 2, marks=pytest.mark.slow), pytest.param(1.0, 40, 1, marks=pytest.mark.long)],
)
def test_one_box_follows_a_structure_that_runs_obliquely_past_brighter_ones(
    tmp_path, phantoms, step_mm, contrast, seed
):
    rng = np.random.default_rng(seed)
    x, y, z = np.mgrid[:48, :44, :11]
    # It moves by more than its radius on either side of the middle, and its section changes.
    at = 23 + 1.8 * (z - 5)
    truth = ((x - at) / (5 + 0.3 * (z - 5))) ** 2 + ((y - 20) / (7 - 0.2 * (z - 5))) ** 2 < 1
    bright = ((x - at - 13) / 5) ** 2 + ((y - 22) / 8) ** 2 < 1
    texture = gaussian_filter(rng.normal(size=truth.shape), (2, 2, 2))
    array = 90 + contrast * truth + 100 * bright + 10 * texture / texture.std() + rng.normal(0, 3, truth.shape)
    (tmp_path / "studies").mkdir()
    path = tmp_path / "studies" / "tube.nii.gz"
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([1.0, 1.0, step_mm, 1.0])), path)
    settings = phantoms.settings.model_copy(update={"protocol": None, "state": tmp_path / "state"})
    workspace = open_workspace(path.parent, settings)
    prompts = Prompts(boxes_vox=(box_in(truth, 5),), spreads=True)
    mask = segment_prompts(workspace, workspace.store.read_image("tube"), prompts)
    workspace.store.ledger.close()
    by_slice = [dice(mask[:, :, n], truth[:, :, n]) for n in range(11)]
    assert dice(mask, truth) > 0.8, by_slice
