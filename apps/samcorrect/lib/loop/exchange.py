"""Labels in and out: masks that people have already, training sets for other tools."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from samcorrect.lib.errors import ImageError, LabelError, RequestError, StoreError
from samcorrect.lib.loop.cohort import best_labels
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.store.files import write_atomically, write_bytes_atomically
from samcorrect.lib.store.label_names import map_values, present_indices
from samcorrect.lib.store.records.audit import MAX_NAME
from samcorrect.lib.store.records.reviews import check_text
from samcorrect.lib.store.schema import TAG_CORRECTED, TAG_FINAL, TAG_ORIGINAL, LabelVersionRow
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.store.volumes import read_label_map, write_label_map

STATES = {"approved": TAG_FINAL, "corrected": TAG_CORRECTED, "pseudo": TAG_ORIGINAL}
FORMATS = ("nifti", "nnunet")
MANIFEST_NAME = "manifest.json"


def import_labels(
    workspace: Workspace, folder: Path, *, approved_by: str | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Take over label maps, each named like its image, as new versions.

    Args:
        workspace: The store.
        folder: Of NIfTI, NRRD or PNG label maps with the protocol's indices; one with other values is refused.
        approved_by: The person who vouches for them: they become `final`. Without, they are `original` and are scored
            and corrected like SAM's.
        progress: Told about each file.

    Returns:
        `n_imported`, `refused` (file, reason) and `unmatched` files.

    Raises:
        RequestError: The person's name is blank, too long, or holds control characters.
        LabelError: No file matches an image.
        StoreError: The folder is missing.
    """
    approved_by = None if approved_by is None else check_text("name", approved_by, MAX_NAME)
    if not folder.is_dir():
        raise StoreError(
            f"the folder of masks {folder} does not exist; give the one that has them, named like their images"
        )
    files, unusable = LocalStudies(folder).scan()
    known = {row.id for row in workspace.store.require_images()}
    matched = [file for file in files if file.id in known]
    if not matched:
        raise LabelError(
            f"no file in {folder} has the name of an image in {workspace.store.studies.location}; "
            "a label is named like its image"
        )
    refused = list(unusable)
    tag, user = (TAG_ORIGINAL, "import") if approved_by is None else (TAG_FINAL, approved_by)
    for done, file in enumerate(matched):
        try:
            map_values(present_indices(read_label_map(folder / file.path).array), [], workspace.protocol)
            workspace.store.submit_label(
                file.id, folder / file.path, tag=tag, user=user, info={"imported_from": file.path}
            )
        except ValueError as error:  # LabelError, GeometryError or ImageError: this file is refused, the others go on
            refused.append((file.path, str(error)))
        progress("importing labels", done + 1, len(matched))
    n_imported = len(matched) - (len(refused) - len(unusable))
    return {
        "n_imported": n_imported,
        "refused": refused,
        "unmatched": [f.path for f in files if f.id not in known],
    }


def export_labels(
    workspace: Workspace, out_dir: Path, *, file_format: str, states: Sequence[str], progress: Progress = no_progress
) -> dict[str, Any]:
    """Write the best labels out with a manifest of where each comes from.

    `nifti` writes labels/<image id>.nii.gz; `nnunet` a raw data set of nnU-Net v2 (imagesTr, labelsTr, dataset.json).

    Args:
        workspace: The store.
        out_dir: A new or empty folder.
        file_format: One of FORMATS.
        states: Which labels, of STATES.
        progress: Told about each label.

    Returns:
        `n_exported`, `manifest`, its path, and `refused`, (image id, reason) of what cannot be read.

    Raises:
        RequestError: Unknown format or state, a folder that is not empty, or two images of one nnU-Net name.
        LabelError: No label has one of the states.
    """
    unknown = sorted(set(states) - set(STATES))
    if file_format not in FORMATS or unknown or not states:
        raise RequestError(
            f"export takes --format {' or '.join(FORMATS)} and --states of {', '.join(STATES)}; "
            f"got {file_format}, {list(states)}"
        )
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise RequestError(f"{out_dir} is not an empty folder; give a new one, so that nothing is mixed or overwritten")
    tags = {STATES[state] for state in states}
    labels = [label for label in best_labels(workspace).values() if label.tag in tags]
    if not labels:
        raise LabelError(f"no image has a best label of the states {', '.join(states)}")
    cases = Counter(_case_name(label.image_id) for label in labels)
    if file_format == "nnunet" and max(cases.values()) > 1:
        shared = ", ".join(sorted(case for case, count in cases.items() if count > 1)[:3])
        raise RequestError(f"more than one image would be called {shared} in nnU-Net's flat folder; rename the files")
    records, refused = [], []
    for done, label in enumerate(labels):
        try:
            records.append(_export_one(workspace, out_dir, label, file_format))
        except (ImageError, LabelError) as error:
            refused.append((label.image_id, str(error)))
        progress("exporting labels", done + 1, len(labels))
    if file_format == "nnunet":
        write_bytes_atomically(
            out_dir / "dataset.json", json.dumps(_nnunet_dataset(workspace, len(records)), indent=1).encode()
        )
    manifest = out_dir / MANIFEST_NAME
    write_bytes_atomically(manifest, json.dumps({"format": file_format, "labels": records}, indent=1).encode())
    return {"n_exported": len(records), "manifest": str(manifest), "refused": refused}


def _export_one(workspace: Workspace, out_dir: Path, label: LabelVersionRow, file_format: str) -> dict[str, Any]:
    volume = workspace.store.read_image(label.image_id)
    label_map = workspace.store.read_label(label, volume)
    if file_format == "nifti":
        target = Path("labels") / f"{label.image_id}.nii.gz"
    else:
        case = _case_name(label.image_id)
        table = np.zeros(256, np.uint8)
        for number, index in enumerate(workspace.require_protocol().indices, start=1):
            table[index] = number  # nnU-Net wants consecutive indices
        label_map, target = table[label_map], Path("labelsTr") / f"{case}.nii.gz"
        image = nib.Nifti1Image(volume.array, volume.affine)
        write_atomically(
            out_dir / "imagesTr" / f"{case}_0000.nii.gz", lambda path: nib.save(image, path), suffix=".nii.gz"
        )
    write_label_map(out_dir / target, label_map, volume.affine)
    quality = workspace.store.ledger.quality(label.id).get(0)
    return {
        "image": label.image_id,
        "label": target.as_posix(),
        "state": next(state for state, tag in STATES.items() if tag == label.tag),
        "maker": label.maker,
        "round": label.round,
        "model_digest": label.model_digest,
        "prompts": label.prompts,
        "content_sha256": label.content_sha256,
        "score": quality.score if quality else None,
        "created_at": label.created_at,
    }


def _case_name(image_id: str) -> str:
    """The name of an image in nnU-Net's flat folders."""
    return image_id.replace("/", "__")


def _nnunet_dataset(workspace: Workspace, n_labels: int) -> dict[str, Any]:
    names = workspace.require_protocol().names
    return {
        "channel_names": {"0": "intensity"},
        "labels": {"background": 0, **{name: number for number, name in enumerate(names, start=1)}},
        "numTraining": n_labels,
        "file_ending": ".nii.gz",
    }
