"""Slices are ready before they are clicked, and a slice alone is what it is in its volume. With the real SAM."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from samcorrect.lib.infers.sam import SamPromptTask
from samcorrect.lib.loop.prompted import Prompts
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.warming import N_HEAD, warm_beside, warm_queue
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.volumes import read_label_map
from samcorrect.lib.transforms.frame import from_frame, normalise_intensity, to_frame

TIMEOUT_S = 120
N_SLICES = 7


@pytest.fixture
def workspace(tmp_path, rng):
    """A store of one tiny volume with a bright block in all slices, on one thread."""
    n_threads = torch.get_num_threads()
    volume = rng.normal(40, 10, (40, 30, N_SLICES))
    volume[10:25, 8:20] += 100
    (tmp_path / "studies").mkdir()
    nib.save(nib.Nifti1Image(volume.astype(np.int16), np.eye(4)), tmp_path / "studies" / "case.nii.gz")
    workspace = open_workspace(tmp_path / "studies", Settings(threads=1, warm_slices=1))
    yield workspace
    workspace.warmer.stop()
    workspace.store.ledger.close()
    torch.set_num_threads(n_threads)


def n_embeddings(workspace):
    return len(list((workspace.cache_dir / "embeddings").rglob("*.npy")))


def click(workspace, slice_index, **params):
    """A box around the block in one slice, as Slicer sends it; the mask's file and the reply's params."""
    path = workspace.store.image_path(workspace.store.ledger.image("case"))
    prompt = {"roi": [9, 25, 7, 20, slice_index, slice_index], "slice": slice_index, "label": "block"}
    file, told = SamPromptTask(workspace)({"image_id": "case", "image": str(path), **prompt, **params})
    return Path(file), told


def test_the_neighbours_of_a_click_are_hits_at_the_next_one(workspace, monkeypatch, tmp_path):
    file, params = click(workspace, 3)
    assert set(params["latencies"]) == {"pre", "infer", "post", "write", "total"}
    assert workspace.warmer.wait(TIMEOUT_S)
    assert n_embeddings(workspace) == 3  # slices 2, 3 and 4
    assert_is_as_in_the_whole_volume(workspace, file, 3)

    def encode(_frame):
        raise AssertionError("a slice is encoded that should be ready")

    monkeypatch.setattr(workspace.sam, "encode", encode)
    made = {}
    for form in ({"result_compress": False}, {"result_compress": True}):
        file, _ = click(workspace, 4, result_extension=".nrrd", **form)
        made[form["result_compress"]] = file
    raw, packed = made[False].read_bytes(), made[True].read_bytes()
    assert b"encoding: raw" in raw
    assert b"encoding: gzip" in packed
    # Raw, the voxels are as they are at the end of the file, x fastest.
    mask = read_label_map(made[True]).array
    assert raw.endswith(b"\n\n" + mask.tobytes(order="F"))
    assert [bool(mask[..., k].any()) for k in range(N_SLICES)] == [k == 4 for k in range(N_SLICES)]


def assert_is_as_in_the_whole_volume(workspace, file, slice_index):
    """The mask is, bit for bit, what comes of scaling and resizing all slices and bringing all masks back."""
    sam, volume = workspace.sam, workspace.store.read_image("case")
    frames = to_frame(normalise_intensity(volume.array), sam.side_px)
    embedding = sam.encode(frames[slice_index])
    assert torch.equal(Slices(workspace, volume, 2, None).embedding(slice_index), embedding)
    scale = sam.mask_px / 40
    logits, _ = sam.decode(embedding, boxes=np.array([[9, 7, 26, 21]], np.float32) * scale)
    masks = torch.zeros(frames.shape)
    masks[slice_index] = (logits[0] > 0).float()
    expected = from_frame(masks, (40, 30)).permute(1, 2, 0).numpy() > 0.5
    assert expected.any()
    assert np.array_equal(read_label_map(file).array, expected)


def test_the_head_of_the_queue_is_made_ready_and_stays_free(workspace):
    warm_queue(workspace)
    assert workspace.warmer.wait(TIMEOUT_S)
    assert n_embeddings(workspace) == 3  # slices 2, 3 and 4 of 7
    assert [row.id for row in workspace.store.ledger.queue_head(None, N_HEAD, now=0)] == ["case"]


def test_without_slices_to_warm_nothing_is_done(workspace):
    off = workspace.with_settings(warm_slices=0)
    warm_queue(off, "case")
    warm_beside(off, workspace.store.studies.folder / "case.nii.gz", Prompts(slice_index=3))
    assert off.warmer.wait(0)
    assert n_embeddings(off) == 0
