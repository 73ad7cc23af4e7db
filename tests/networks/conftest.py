"""The packaged LiteMedSAM, loaded once, on one thread."""

from collections.abc import Iterator

import pytest
import torch

from samcorrect.lib.networks.sam import SamModel, load_sam


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def sam() -> SamModel:
    return load_sam()
