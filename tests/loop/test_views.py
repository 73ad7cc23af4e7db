"""What the masks of one box along all axes of a volume share, and the labels that take it."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samcorrect.lib.core.boxes import box_of_mask
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.pseudo_label import COHORT_NAME, masks_to_grid, pseudo_label_image, see_along_all_axes
from samcorrect.lib.loop.views import with_shared
from samcorrect.lib.loop.workspace import Workspace, open_workspace

SHAPE = (14, 12, 10)
# Turned by 20 degrees about the last axis, and with its first one flipped.
TURN = np.array([[-np.cos(0.35), -np.sin(0.35), 0], [-np.sin(0.35), np.cos(0.35), 0], [0, 0, 1]])


def tilted_rod() -> np.ndarray:
    """(14, 12, 10) bool, an ellipsoid whose longest axis runs through the corners of its box."""
    x, y, z = np.indices(SHAPE) - np.array([6.5, 5.5, 4.5])[:, None, None, None]
    along = (x + y + z) / np.sqrt(3)
    across = x**2 + y**2 + z**2 - along**2
    return (along / 6.5) ** 2 + across / 4 < 1


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("views")


@pytest.fixture
def open_volume(tmp_path, phantoms, cache_dir):
    """A function that opens a workspace over one volume, a rod of some spacing in mm, with its box as the prompt."""
    opened: list[Workspace] = []

    def open_with(spacing_mm=(1.0, 1.0, 1.0), mask=None, xyz=None, **settings) -> Workspace:
        mask = tilted_rod() if mask is None else mask
        studies = tmp_path / f"studies{len(opened)}"
        studies.mkdir()
        affine = np.eye(4)
        affine[:3, :3] = TURN * spacing_mm
        array = np.where(mask, 150, 90) + np.random.default_rng(0).normal(0, 10, mask.shape)
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), studies / "a.nii.gz")
        box = xyz or (box_of_mask(mask) / np.array(mask.shape)[:, None]).tolist()
        (studies / "protocol.yaml").write_text(
            f"structures: [{{name: rod, index: 1, prompt: {{source: box, xyz: {box}}}}}]"
        )
        changed = {"protocol": None, "n_candidates": 4, "state": tmp_path / f"state{len(opened)}", **settings}
        opened.append(open_workspace(studies, phantoms.settings.model_copy(update=changed), cache_dir=cache_dir))
        return opened[-1]

    yield open_with
    for workspace in opened:
        workspace.store.ledger.close()


def say_belief(workspace: Workspace, *, believes: bool) -> None:
    """A cohort that says whether SAM's confidence is believed of the rod."""
    usual = {"center": [-3.0, 0.5, 0.5], "spread": [9.0, 9.0, 9.0], "believes": believes}
    document = {"protocol": workspace.require_protocol().digest, "structures": [usual]}
    (workspace.store.state_dir / COHORT_NAME).write_text(json.dumps(document))


def found_in(workspace: Workspace):
    volume = workspace.store.read_image("a")
    return volume, find_candidates(workspace, volume, "a.nii.gz")


def on_grid(mask: np.ndarray) -> np.ndarray:
    return masks_to_grid(mask, SHAPE[:2]) > 0.5


def files_of(workspace: Workspace) -> set[Path]:
    return set((workspace.cache_dir / "candidates").iterdir())


@pytest.mark.parametrize("first_axis", [0, 2])
def test_what_is_shared_lies_in_the_masks_along_all_axes(open_volume, first_axis):
    """Also of the same volume lying on its side."""
    truth = np.moveaxis(tilted_rod(), first_axis, 0)
    workspace = open_volume(mask=truth)
    volume, found = found_in(workspace)
    (shared,) = with_shared(workspace, volume, "a.nii.gz", found, [True])

    assert shared.shared.any()
    assert not (shared.shared & ~found[0].masks[0]).any()
    assert shared.shared.sum() < found[0].masks[0].sum()
    # The prompts themselves, and what SAM says of them, are as before.
    assert shared.masks is found[0].masks
    assert np.array_equal(shared.offered(0), shared.shared)
    assert np.array_equal(shared.offered(1), found[0].masks[1])
    given, taken = (masks_to_grid(mask, truth.shape[:2]) > 0.5 for mask in (found[0].masks[0], shared.shared))
    assert (taken & truth).sum() / taken.sum() > (given & truth).sum() / given.sum()


def test_the_other_axes_are_looked_along_once(open_volume):
    workspace = open_volume(xyz=[[0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    volume, found = found_in(workspace)
    before = files_of(workspace)
    (first,) = with_shared(workspace, volume, "a.nii.gz", found, [True])
    files = files_of(workspace)
    assert len(files) == len(before) + 1
    (again,) = with_shared(workspace, volume, "a.nii.gz", found, [True])
    assert np.array_equal(first.shared, again.shared)
    assert files_of(workspace) == files
    # Other jitter is no other box.
    other = workspace.with_settings(seed=7)
    with_shared(other, volume, "a.nii.gz", find_candidates(other, volume, "a.nii.gz"), [True])
    assert len(files_of(workspace)) == len(files) + 1


@pytest.mark.parametrize("why", ["not wanted", "thick slices", "drawn in slices", "one slice"])
def test_it_is_not_asked_for_where_one_axis_says_all(open_volume, why):
    one = tilted_rod()[:, :, 5:6]
    workspace = {
        "not wanted": lambda: open_volume(),
        "thick slices": lambda: open_volume((1.0, 1.0, 4.0)),
        "drawn in slices": lambda: open_volume(xyz=[[0.2, 0.8], [0.2, 0.8], [0, 1]]),
        "one slice": lambda: open_volume(mask=one),
    }[why]()
    volume, found = found_in(workspace)
    files = files_of(workspace)
    (told,) = with_shared(workspace, volume, "a.nii.gz", found, [why != "not wanted"])
    assert told.shared is None
    assert told.offered(0) is not None
    assert files_of(workspace) == files


@pytest.mark.parametrize("preset", ["samcorrect", "huang2023"])
@pytest.mark.parametrize("believes", [True, False])
def test_a_label_takes_it_where_sam_is_not_believed(open_volume, preset, believes):
    workspace = open_volume(preset=preset)
    say_belief(workspace, believes=believes)
    volume, found = found_in(workspace)
    seen = see_along_all_axes(workspace, volume, "a.nii.gz", found)[0]
    made = pseudo_label_image(workspace, volume, "a.nii.gz")

    assert (seen.shared is not None) == (preset == "samcorrect" and not believes)
    number = made.info["structures"]["rod"]["candidate"]
    assert number == 0 or believes
    assert made.info["structures"]["rod"]["n_axes"] == (1 if seen.shared is None else 3)
    assert np.array_equal(made.label_map == 1, on_grid(seen.offered(number)))
