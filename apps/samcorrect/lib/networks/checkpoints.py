"""The state of an unfinished training as bytes that load without pickle, and where it is kept."""

import io
from typing import Any, Protocol

import torch

from samcorrect.lib.errors import WeightsError

FORMAT = "samcorrect-checkpoint-1"


class Checkpoint(Protocol):
    """Where the state of one training is kept until it is finished."""

    def read(self) -> bytes | None:
        """What was written last, None where nothing was."""
        ...

    def is_due(self) -> bool:
        """Whether it is time to write again."""
        ...

    def write(self, content: bytes) -> None:
        """Keep a state instead of the one before."""
        ...


def pack_state(state: dict[str, Any]) -> bytes:
    """A state of tensors, numbers, texts, lists and dicts as bytes."""
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    return buffer.getvalue()


def unpack_state(content: bytes) -> dict[str, Any]:
    """A state from its bytes, without executing anything in them.

    Raises:
        WeightsError: They are torn or no such state.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torn bytes trip torch's reader in many ways
        raise WeightsError(f"a checkpoint cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(f"not a checkpoint of samcorrect; wanted the format {FORMAT!r}")
    return state
