"""SAM's candidate masks of an image and their place on the disk."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samcorrect.lib.core.boxes import box_of_mask
from samcorrect.lib.core.metrics import dice
from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.prompted import Prompts, segment_prompts
from samcorrect.lib.loop.pseudo_label import masks_to_grid
from samcorrect.lib.loop.workspace import open_workspace


def candidates_of(workspace, image_id: str):
    return find_candidates(workspace, workspace.store.read_image(image_id), f"{image_id}.png")


def candidate_files(phantoms) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in (phantoms.cache / "candidates").glob("*")}


def test_each_structure_has_its_prompts_and_the_first_is_the_box_as_given(phantom_workspace):
    right, left = candidates_of(phantom_workspace(n_candidates=2), "case0")
    # 0.04 * 96, 0.10 * 80, 0.56 * 96, 0.92 * 80
    assert np.allclose(right.boxes[0], [3.84, 8, 53.76, 73.6])
    assert right.masks.shape == left.masks.shape == (2, 1, 256, 256)
    assert right.masks.dtype == bool
    for found in (right, left):
        assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    # The structure of the first half of the x axis lies there on the image's grid too.
    on_grid = masks_to_grid(right.masks[0], (96, 80)) > 0.5
    columns = np.flatnonzero(on_grid.any((1, 2)))
    assert len(columns)
    assert columns.mean() < 48


def test_candidates_are_made_once_and_a_torn_file_is_made_anew(phantom_workspace, phantoms):
    workspace = phantom_workspace(n_candidates=1)
    before = candidate_files(phantoms)
    first = candidates_of(workspace, "case1")
    (made,) = candidate_files(phantoms).keys() - before.keys()
    inode = made.stat().st_ino
    candidates_of(workspace, "case1")
    assert made.stat().st_ino == inode
    made.write_bytes(made.read_bytes()[:100])
    again = candidates_of(workspace, "case1")
    assert made.stat().st_ino != inode
    assert all(np.array_equal(a.masks, b.masks) for a, b in zip(first, again, strict=True))


def test_other_settings_of_the_prompts_make_other_candidates(phantom_workspace):
    three = candidates_of(phantom_workspace(n_candidates=3), "case0")
    assert len(three[0].masks) == 3


def test_a_prompt_from_the_student_needs_one(phantom_workspace, tmp_path):
    path = tmp_path / "student.yaml"
    path.write_text("structures: [{name: organ, index: 1, prompt: {source: student}}]")
    with pytest.raises(ProtocolError, match=r"organ.* comes from the student, and none is promoted yet"):
        candidates_of(phantom_workspace(protocol=path), "case0")


def test_an_image_that_the_boxes_file_lacks_is_named(phantom_workspace, tmp_path):
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\ncase1.png,organ,10,10,50,50\n")
    path = tmp_path / "boxes.yaml"
    path.write_text("structures: [{name: organ, index: 1, prompt: {source: boxes_file, path: boxes.csv}}]")
    workspace = phantom_workspace(protocol=path)
    assert candidates_of(workspace, "case1")[0].masks.any()
    with pytest.raises(ProtocolError, match=r"case0\.png: .*has no row for the label 'organ'"):
        candidates_of(workspace, "case0")


@pytest.fixture
def of_volume(tmp_path, phantoms):
    """A function of an array, its spacing in mm and a box in voxels: the workspace over it, its image and its
    candidates (K, H, W, D) on its grid, with the boxes they came from.
    """
    opened = []

    def find(array: np.ndarray, spacing_mm: tuple[float, float, float], box: np.ndarray):
        studies = tmp_path / f"studies{len(opened)}"
        studies.mkdir()
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([*spacing_mm, 1.0])), studies / "a.nii.gz")
        relative = (box / np.array(array.shape)[:, None]).tolist()
        (studies / "protocol.yaml").write_text(
            f"structures: [{{name: organ, index: 1, prompt: {{source: box, xyz: {relative}}}}}]"
        )
        changed = {"protocol": None, "n_candidates": 4, "state": tmp_path / f"state{len(opened)}"}
        opened.append(open_workspace(studies, phantoms.settings.model_copy(update=changed)))
        volume = opened[-1].store.read_image("a")
        (found,) = find_candidates(opened[-1], volume, "a.nii.gz")
        masks = np.stack([masks_to_grid(mask, array.shape[:2]) > 0.5 for mask in found.masks])
        return opened[-1], volume, masks, found.boxes

    yield find
    for workspace in opened:
        workspace.store.ledger.close()


def noisy(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 160, 60) + np.random.default_rng(0).normal(0, 8, mask.shape)


def test_a_volume_is_cut_where_its_box_is_short(of_volume):
    x, y, z = np.mgrid[:48, :44, :12]
    mask = ((x - 22 - z) / 11) ** 2 + ((y - 20) / 9) ** 2 + ((z - 6) / 3) ** 2 < 1
    _, _, straight, boxes = of_volume(noisy(mask), (1, 1, 1), box_of_mask(mask))
    assert dice(straight[0], mask) > 0.8
    # The same volume lying on its side: the same slices are cut, and the masks have its grid.
    turned = np.moveaxis(mask, 2, 0)
    _, _, masks, turned_boxes = of_volume(np.moveaxis(noisy(mask), 2, 0), (1, 1, 1), box_of_mask(turned))
    assert masks.shape[1:] == turned.shape
    for one, other in zip(straight, masks, strict=True):
        assert dice(np.moveaxis(one, 2, 0), other) > 0.97
    # Of the turned volume's first two axes the first goes through the slices.
    assert np.allclose(turned_boxes[:, [0, 2]], box_of_mask(turned)[0])
    assert np.allclose(turned_boxes[:, [1, 3]], boxes[:, [0, 2]])


def test_a_header_that_is_put_right_makes_other_candidates(of_volume):
    x, y = np.mgrid[:96, :24]
    mask = (((x - 40) / 22) ** 2 + ((y * 4 - 50) / 26) ** 2 < 1)[..., None]
    box = box_of_mask(mask)
    workspace, volume, _, _ = of_volume(noisy(mask), (1, 4, 1), box)
    seen_square = replace(volume, affine=np.eye(4))

    (oblong,), (square,) = (find_candidates(workspace, v, "a.nii.gz") for v in (volume, seen_square))

    assert square.masks.shape == oblong.masks.shape
    assert not np.array_equal(square.masks, oblong.masks)


def test_oblong_pixels_are_seen_as_in_a_viewer_s_prompts(of_volume):
    x, y = np.mgrid[:96, :24]
    mask = (((x - 40) / 22) ** 2 + ((y * 4 - 50) / 26) ** 2 < 1)[..., None]
    box = box_of_mask(mask)
    workspace, volume, masks, _ = of_volume(noisy(mask), (1, 4, 1), box)
    encoded = set((workspace.cache_dir / "embeddings").rglob("*"))
    assert encoded
    assert dice(masks[0], segment_prompts(workspace, volume, Prompts(boxes_vox=(box,)))) > 0.98
    # The same frame: nothing had to be encoded again.
    assert set((workspace.cache_dir / "embeddings").rglob("*")) == encoded
    assert dice(masks[0], mask) > 0.85
