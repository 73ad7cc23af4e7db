"""What a person is about to click on is encoded before they do: the slices beside the last click, and the images that
the queue serves next.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from samcorrect.lib.loop.prompted import Prompts
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.workspace import Workspace

# How many of the queue's next images are made ready beside the one that was just served.
N_HEAD = 2


def warm_beside(workspace: Workspace, path: Path, prompts: Prompts) -> None:
    """Encode the slices next to the one that was clicked, nearest first, in the background."""
    number = prompts.clicked_slice
    if workspace.settings.warm_slices and number is not None:
        window_hu = workspace.protocol.window_of(prompts.label) if workspace.protocol else None
        steps = _encode_beside(workspace, path, number, prompts.axis, window_hu)
        workspace.warmer.add((path, number, prompts.axis, window_hu), steps, is_urgent=True)


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
    protocol = workspace.protocol
    for window_hu in dict.fromkeys(protocol.window_of(name) for name in protocol.names) if protocol else (None,):
        yield from _encode_around(workspace, Slices(workspace, volume, 2, window_hu), volume.array.shape[2] // 2)


def _encode_beside(
    workspace: Workspace, path: Path, number: int, axis: int, window_hu: tuple[float, float] | None
) -> Iterator[None]:
    yield from _encode_around(workspace, Slices(workspace, workspace.volumes.read(path), axis, window_hu), number)


def _encode_around(workspace: Workspace, slices: Slices, center: int) -> Iterator[None]:
    nearest_first = sorted(range(slices.shape[2]), key=lambda k: abs(k - center))
    for k in nearest_first[: 2 * workspace.settings.warm_slices + 1]:
        slices.embedding(k)
        yield
