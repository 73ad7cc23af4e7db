"""The packaged LiteMedSAM in fp32, loaded once, on one thread."""

from collections.abc import Iterator

import pytest
import torch

from samcorrect.lib.networks.registry import CATALOGUE, DEFAULT_MODEL, load_model
from samcorrect.lib.networks.sam import SamModel


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def sam() -> SamModel:
    return load_model(CATALOGUE[DEFAULT_MODEL], runtime="torch-fp32")
