"""Arrays of all slices lie in files that the system can take out of memory."""

import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from samcorrect.lib.errors import StoreError
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.frame_candidates import read_candidates
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.scratch import Scratch
from samcorrect.lib.loop.students import empty_probs, trusted_only


def mapped_files(tensor: torch.Tensor | np.ndarray) -> list[str]:
    """What the kernel says the memory of a tensor belongs to."""
    address = tensor.data_ptr() if isinstance(tensor, torch.Tensor) else tensor.__array_interface__["data"][0]
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(part, 16) for part in span.split("-"))
        if first <= address < last:
            found.append(name)
    return found


def test_zeros_copies_and_rows_are_tensors_as_any_other(tmp_path):
    scratch = Scratch(tmp_path / "below")
    zeros = scratch.zeros(3, 4, dtype=torch.uint8)
    assert zeros.dtype == torch.uint8
    assert zeros.tolist() == [[0] * 4] * 3
    values = torch.arange(24, dtype=torch.float32).reshape(6, 4).T
    copied = scratch.copy(values)
    copied[0] = -1
    assert torch.equal(copied[1:], values[1:])
    assert values[0, 1] == 4
    growing = scratch.growing()
    growing.append(values[:1])
    growing.append(values[1:])
    assert torch.equal(growing.finish(), values)


def test_nothing_is_left_of_them_on_the_disk(tmp_path):
    kept = Scratch(tmp_path).zeros(1000)
    assert os.listdir(tmp_path) == []
    n_open = len(os.listdir("/proc/self/fd"))
    kept[5] = 7
    assert kept.sum() == 7
    del kept
    assert len(os.listdir("/proc/self/fd")) < n_open


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path):
    scratch = Scratch(tmp_path)
    with pytest.raises(StoreError, match=r"no room for \d+\.\d\d GiB of intermediate results in .*--state"):
        scratch.zeros(2**50)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    growing = scratch.growing()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StoreError, match="no room for"):
            growing.append(torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what its memory belongs to")
def test_all_that_grows_with_the_slices_of_a_store_is_in_such_files(phantom_workspace):
    workspace = phantom_workspace(n_candidates=3)
    pseudo_label_store(workspace, image_ids=["case0", "case1"])
    cohort = load_cohort(workspace, best_labels(workspace))
    candidates = read_candidates(workspace, cohort)
    probs = empty_probs(cohort)
    _, weights = trusted_only(cohort, probs, np.ones((2, 2), bool))
    bits = [one.bits for of_image in candidates for one in of_image]
    for tensor in (cohort.frames, cohort.targets, probs, weights, *bits):
        assert [str(workspace.store.state_dir) in name for name in mapped_files(tensor)] == [True]
    assert mapped_files(torch.zeros(1000)) != mapped_files(cohort.frames)
