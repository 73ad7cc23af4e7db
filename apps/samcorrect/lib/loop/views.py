"""A structure of a volume seen along all three axes, where SAM is not to be believed along one.

A box around a structure is too large in most slices through it, and where SAM sees no object there it fills the box.
What is filled depends on the axis, the structure does not: what the masks along all axes share is nearer to it, and
errs less to the side of too much, which students would learn as a rule.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from samcorrect.lib.core.boxes import looks_alike_along_all_axes
from samcorrect.lib.loop.candidates import (
    CANDIDATES_FORMAT,
    CANDIDATES_NAME,
    N_AXES,
    Candidates,
    Prompt,
    load_candidates,
    prompt_slices,
    prompts_of,
    save_candidates,
)
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.workspace import Models
from samcorrect.lib.store.volumes import Volume


def with_shared(
    workspace: Models, volume: Volume, image_name: str, found: Sequence[Candidates], is_wanted: Sequence[bool]
) -> list[Candidates]:
    """Candidates with what the masks of the box as given along all axes share.

    It stays None in an image of one slice, of a box that was drawn in slices, where voxels look different along the
    axes, and where no voxel is shared.

    Args:
        workspace: With a protocol.
        volume: The image.
        image_name: File name, as a boxes file has it.
        found: Of each structure, from `find_candidates`.
        is_wanted: Of which structures.

    Raises:
        ProtocolError: As of `find_candidates`.
    """
    if volume.array.shape[2] == 1 or not any(is_wanted) or not looks_alike_along_all_axes(volume.spacing_mm):
        return list(found)
    told = list(found)
    for k, prompt in enumerate(prompts_of(workspace, volume, image_name)):
        if is_wanted[k] and prompt is not None and (prompt.box[2] != (0, volume.array.shape[2])).any():
            masks = [found[k].masks[0], *(view.masks[0] for view in _other_views(workspace, volume, prompt))]
            shared = np.logical_and.reduce(masks)
            told[k] = replace(found[k], shared=shared if shared.any() else None)
    return told


def _other_views(workspace: Models, volume: Volume, prompt: Prompt) -> list[Candidates]:
    """The one candidate of the box as given along each of the two axes that its own are not cut along, from the disk
    where they were made before.
    """
    sam = workspace.sam
    key = hashlib.sha256(volume.array.tobytes())
    parts = [volume.array.shape, np.round(volume.spacing_mm, 4).tolist(), prompt.box.tolist(), prompt.axis]
    parts += [prompt.window_hu, sam.digest, sam.runtime, sam.embedding_identity, CANDIDATES_FORMAT]
    key.update(f"other views {parts}".encode() + (b"" if prompt.hint is None else prompt.hint.tobytes()))
    path = workspace.cache_dir / CANDIDATES_NAME / f"{key.hexdigest()}.npz"
    known = load_candidates(path, N_AXES - 1)
    if known is not None:
        return known
    made = [
        # Of one candidate nothing is left to chance.
        prompt_slices(
            Slices(workspace, volume, axis, prompt.window_hu), prompt.box, prompt.hint, 1, np.random.default_rng(0)
        )
        for axis in range(N_AXES)
        if axis != prompt.axis
    ]
    save_candidates(path, made)
    return made
