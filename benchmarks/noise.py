"""Labels of known faults, and prompts that are off, for the benchmarks."""

import csv
from pathlib import Path

import numpy as np
import yaml
from scipy.ndimage import distance_transform_edt

from samcorrect.lib.errors import ImageError, LabelError, ProtocolError
from samcorrect.lib.loop.cohort import best_labels
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.workspace import Progress, Workspace
from samcorrect.lib.protocol import CSV_COLUMNS, Protocol, Structure
from samcorrect.lib.store.schema import TAG_ORIGINAL

# arXiv 2308.00883, authors' code: masks are dilated or eroded by 1 to 8 pixels.
MORPH_PX = (1, 8)
MORPH = "morph"
NOISES = ("box", "chosen", "morph25", "morph50", "morph75", "corrected")


def make_labels(workspace: Workspace, noise: str, truth: GroundTruth, progress: Progress) -> None:
    """Fill the store of a workspace with labels.

    Args:
        workspace: Of the preset samcorrect, in a state folder of its own.
        noise: `box` (SAM from the protocol's box as given), `chosen` (among SAM's prompts), `corrected` (chosen, then
            one round of correction) or `morph` and a percentage (true masks, that share of them dilated or eroded).
        truth: For `morph`.
        progress: Told about the stages.

    Raises:
        LabelError: As `require_noise`.
    """
    require_noise(noise)
    if noise == "box":
        pseudo_label_store(workspace.with_settings(preset="huang2023"), progress=progress)
    elif noise == "chosen":
        pseudo_label_store(workspace, progress=progress)
    elif noise == "corrected":
        run_loop(workspace.with_settings(rounds=1), progress=progress)
    else:
        _save_morphed(workspace, truth, int(noise.removeprefix(MORPH)) / 100)


def require_noise(noise: str) -> None:
    """Raises LabelError where labels of this noise cannot be made."""
    percent = noise.removeprefix(MORPH)
    is_morph = noise.startswith(MORPH) and percent.isdecimal() and int(percent) <= 100
    if noise not in NOISES and not is_morph:
        raise LabelError(f"no noise {noise!r}; known are {', '.join(NOISES)}, and {MORPH} with another percentage")


def morph(mask: np.ndarray, *, radius_px: int) -> np.ndarray:
    """Dilate (or erode, where the radius is negative) a mask (H, W, D) slice by slice by discs of a radius."""
    moved = np.zeros_like(mask)
    for number in range(mask.shape[2]):
        one = mask[..., number]
        if not one.any():
            continue
        moved[..., number] = (
            distance_transform_edt(~one) <= radius_px if radius_px >= 0 else distance_transform_edt(one) > -radius_px
        )
    return moved


def shift_box(box_vox: np.ndarray, *, share: float, rng: np.random.Generator) -> np.ndarray:
    """A box (3, 2) shifted by a share of its side and scaled by the same share along each axis, to either side at
    random; the slices of a 2D image (an axis of one voxel) stay.
    """
    moved = box_vox.astype(np.float64)
    for axis, (start, stop) in enumerate(box_vox):
        shift, growth = share * rng.choice([-1, 1], 2)
        if stop - start > 1:
            middle, half = (start + stop) / 2 + shift * (stop - start), (stop - start) / 2 * (1 + growth)
            moved[axis] = middle - half, middle + half
    return moved


def require_boxes(protocol: Protocol) -> None:
    """Raises ProtocolError where a structure is prompted by the student and has no box that could be moved."""
    for structure in protocol.structures:
        if structure.prompt.source == "student":
            raise ProtocolError(f"{structure.name!r} is prompted by the student and has no box to move")


def write_shifted_protocol(workspace: Workspace, folder: Path, *, share: float) -> Path:
    """Write the workspace's protocol with a box for every image, each moved by `shift_box`; returns its file.

    A box of all slices of a volume stays one, which is cut along its slices.

    Raises:
        ProtocolError: As `require_boxes`.
    """
    protocol, rows = workspace.require_protocol(), []
    require_boxes(protocol)
    rng = np.random.default_rng([workspace.settings.seed, round(1000 * share)])
    for image in workspace.store.ledger.images():
        shape = workspace.store.read_image(image.id).array.shape
        for structure in protocol.structures:
            box = protocol.box_vox(structure, image.path, shape)
            if box is None:  # it is not in the image
                rows.append([image.path, structure.name, *[""] * 6])
                continue
            # Inside the image and at least two voxels wide, or the protocol is refused.
            moved, limits = shift_box(box, share=share, rng=rng), np.array(shape, dtype=np.float64)
            if (box[2] == (0, shape[2])).all():
                moved[2] = box[2]
            starts = np.clip(moved[:, 0], 0, np.maximum(limits - 2, 0))
            stops = np.clip(moved[:, 1], np.minimum(starts + 2, limits), limits)
            corners = np.round([*starts[:2], *stops[:2], starts[2], stops[2]], 2)
            rows.append([image.path, structure.name, *corners.tolist()])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([[*CSV_COLUMNS, "z0", "z1"], *rows])
    prompt = {"source": "boxes_file", "path": "boxes.csv"}
    structures = [{"name": s.name, "index": s.index, "prompt": prompt, **_window(s)} for s in protocol.structures]
    path = folder / "protocol.yaml"
    path.write_text(yaml.safe_dump({"structures": structures, **_window(protocol)}), encoding="utf-8")
    return path


def _window(of: Protocol | Structure) -> dict[str, list[float]]:
    return {} if of.window_hu is None else {"window_hu": list(of.window_hu)}


def _save_morphed(workspace: Workspace, truth: GroundTruth, share: float) -> None:
    protocol, labels = workspace.require_protocol(), best_labels(workspace)
    ledger = workspace.store.ledger
    # With those that were set aside: which labels are moved does not depend on it.
    image_ids = sorted({*ledger.image_ids(), *(image_id for image_id, _ in ledger.quarantined())})
    image_ids = [image_id for image_id in image_ids if image_id in truth]
    rng = np.random.default_rng(workspace.settings.seed)
    n_moved = round(share * len(image_ids))
    moved = {index: set(rng.permutation(len(image_ids))[:n_moved].tolist()) for index in protocol.indices}
    for number, image_id in enumerate(image_ids):
        try:
            volume = workspace.store.read_image(image_id)
        except ImageError as error:
            ledger.quarantine(image_id, str(error))
            continue
        true_map = truth.label_map(image_id, volume)
        label_map = np.zeros(true_map.shape, np.uint8)
        for index in protocol.indices:
            mask = true_map == index
            if number in moved[index]:
                mask = morph(mask, radius_px=int(rng.integers(MORPH_PX[0], MORPH_PX[1] + 1) * rng.choice([-1, 1])))
            label_map[mask & (label_map == 0)] = index
        kept = labels.get(image_id)
        if kept is None or (workspace.store.read_label(kept, volume) != label_map).any():
            workspace.store.save_label_map(image_id, label_map, tag=TAG_ORIGINAL, maker=MORPH, affine=volume.affine)
