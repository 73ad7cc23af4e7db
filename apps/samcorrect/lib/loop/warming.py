"""What a person is about to click on is encoded before they do: the slices beside the last click, and the images that
the queue serves next.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.volumes import Volume
from samcorrect.lib.transforms.frame import to_frame
from samcorrect.lib.transforms.intensity import scale_intensity

# How many of the queue's next images are made ready beside the one that was just served.
N_HEAD = 2


def slice_embedding(workspace: Workspace, volume: Volume, slice_index: int) -> torch.Tensor:
    """SAM's embedding of one slice, from the cache where it was encoded before.

    Only that slice is scaled and resized; the result is that of a whole volume's frames.
    """
    pixels = scale_intensity(volume.array[..., slice_index : slice_index + 1], volume.intensity_range)
    return workspace.embeddings.embedding(workspace.sam, to_frame(pixels, workspace.sam.side_px)[0])


def warm_beside(workspace: Workspace, path: Path, slice_index: int | None) -> None:
    """Encode the slices next to one that was clicked, nearest first, in the background."""
    if workspace.settings.warm_slices and slice_index is not None:
        steps = _encode_beside(workspace, path, slice_index)
        workspace.warmer.add((path, slice_index), steps, is_urgent=True)


def warm_queue(workspace: Workspace, served: str | None = None) -> None:
    """Encode the middle slices of the images that the queue serves next, in the background.

    Args:
        workspace: The queue; nothing of it is reserved.
        served: Id of the image that was just served, which comes first.
    """
    if not workspace.settings.warm_slices:
        return
    head = [row.id for row in workspace.store.ledger.queue_head(None, N_HEAD, now=time.time())]
    for image_id in [served, *head] if served else head:
        is_served = image_id == served
        workspace.warmer.add(image_id, _encode_stored(workspace, image_id, is_served=is_served), is_urgent=is_served)


def _encode_stored(workspace: Workspace, image_id: str, *, is_served: bool) -> Iterator[None]:
    """Encode the middle slices of an image of the store; one that waits takes no other's place in memory."""
    path = workspace.store.image_path(workspace.store.ledger.image(image_id))
    volume = workspace.volumes.read(path, may_evict=is_served)
    yield
    yield from _encode_around(workspace, volume, volume.array.shape[2] // 2)


def _encode_beside(workspace: Workspace, path: Path, slice_index: int) -> Iterator[None]:
    yield from _encode_around(workspace, workspace.volumes.read(path), slice_index)


def _encode_around(workspace: Workspace, volume: Volume, center: int) -> Iterator[None]:
    nearest_first = sorted(range(volume.array.shape[2]), key=lambda k: abs(k - center))
    for k in nearest_first[: 2 * workspace.settings.warm_slices + 1]:
        slice_embedding(workspace, volume, k)
        yield
