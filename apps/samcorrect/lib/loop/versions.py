"""The history of a label: its versions, going back to one of them, and what lies between two."""

from typing import Any

import numpy as np

from samcorrect.lib.core.metrics import dice, rounded
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.schema import LabelVersionRow


def list_versions(workspace: Workspace, image_id: str) -> list[dict[str, Any]]:
    """Every label version of an image, oldest first.

    Returns:
        Of each: `version`, `is_best`, `tag`, `state` (rejected, approved, corrected or pseudo), `maker`, `round`,
        `run`, `score` (None where not scored), `parent`, `model_digest`, `runtime`, `prompts`, `created_at` (seconds
        since the epoch) and `content_sha256`.

    Raises:
        RequestError, UnknownImageError: No such image.
    """
    ledger = workspace.store.ledger
    workspace.store.find_image(image_id)
    best = ledger.best_label(image_id)
    told = []
    for row in ledger.versions(image_id):
        whole = ledger.quality(row.id).get(0)
        told.append(
            {
                "version": row.id,
                "is_best": best is not None and row.id == best.id,
                "tag": row.tag,
                "state": row.state,
                "maker": row.maker,
                "round": row.round,
                "run": row.run_id,
                "score": None if whole is None else whole.score,
                "parent": row.parent_id,
                "model_digest": row.model_digest,
                "runtime": row.runtime,
                "prompts": row.prompts,
                "created_at": row.created_at,
                "content_sha256": row.content_sha256,
            }
        )
    return told


def restore_version(workspace: Workspace, image_id: str, version: int, *, user: str) -> LabelVersionRow:
    """Make an old version the best label again, as a new version; nothing is taken away.

    Raises:
        RequestError: The name is blank, too long, or holds control characters.
        UnknownImageError, UnknownLabelError: No such image or version.
        LabelError: The version is another image's, has a tag of a viewer's own, or is a machine's while a person has
            approved the image.
    """
    return workspace.store.restore_label(version_of(workspace, image_id, version), user=user)


def diff_versions(workspace: Workspace, image_id: str, first: int, second: int) -> list[dict[str, Any]]:
    """What lies between two versions of a label, structure by structure.

    Returns:
        Of each structure that one of them holds: `structure`, `index`, `dice` in [0, 1], `n_added_vox` (in the second
        alone), `n_removed_vox` (in the first alone) and `changed_mm3`.

    Raises:
        UnknownImageError, UnknownLabelError: No such image or version.
        LabelError: A version is another image's.
    """
    rows = [version_of(workspace, image_id, version) for version in (first, second)]
    volume = workspace.store.read_image(image_id)
    before, after = (workspace.store.read_label(row, volume) for row in rows)
    voxel_mm3 = float(abs(np.linalg.det(volume.affine[:3, :3])))
    protocol = workspace.protocol
    names = {} if protocol is None else dict(zip(protocol.indices, protocol.names, strict=True))
    told = []
    for index in sorted({*np.unique(before).tolist(), *np.unique(after).tolist()} - {0}):
        one, other = before == index, after == index
        n_added, n_removed = int((other & ~one).sum()), int((one & ~other).sum())
        told.append(
            {
                "structure": names.get(index, f"label {index}"),
                "index": index,
                "dice": rounded(dice(one, other)),
                "n_added_vox": n_added,
                "n_removed_vox": n_removed,
                "changed_mm3": round((n_added + n_removed) * voxel_mm3, 3),
            }
        )
    return told


def version_of(workspace: Workspace, image_id: str, version: int) -> LabelVersionRow:
    """One version of an image's label.

    Raises:
        RequestError, UnknownImageError, UnknownLabelError: No such image or version.
        LabelError: The version is another image's.
    """
    workspace.store.find_image(image_id)
    row = workspace.store.ledger.label_version(version)
    if row.image_id != image_id:
        known = ", ".join(str(row.id) for row in workspace.store.ledger.versions(image_id)) or "none"
        raise LabelError(f"version {version} is not of the image {image_id!r:.80}; its versions are {known}")
    return row
