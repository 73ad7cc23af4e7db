"""States of trainings come back as they were, and nothing else does."""

import io
import pickle
from pathlib import Path

import pytest
import torch

from samcorrect.lib.errors import WeightsError
from samcorrect.lib.networks.checkpoints import pack_state, unpack_state


def test_a_state_comes_back():
    state = {"step": 7, "losses": [(0, 1.5), (10, 0.25)], "best": None, "weights": {"a": torch.arange(3.0)}}

    loaded = unpack_state(pack_state(state))

    assert (loaded["step"], loaded["losses"], loaded["best"]) == (7, state["losses"], None)
    assert torch.equal(loaded["weights"]["a"], torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_state_is_refused(share):
    content = pack_state({"step": 7})

    with pytest.raises(WeightsError, match="a checkpoint cannot be read"):
        unpack_state(content[: int(share * len(content))])


def test_what_is_no_state_is_refused_and_not_executed(tmp_path):
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "was run",)

    with pytest.raises(WeightsError, match="a checkpoint cannot be read"):
        unpack_state(pickle.dumps(Code()))
    assert not (tmp_path / "was run").exists()
    buffer = io.BytesIO()
    torch.save({"format": "another"}, buffer)
    with pytest.raises(WeightsError, match="wanted the format 'samcorrect-checkpoint-1'"):
        unpack_state(buffer.getvalue())
