"""Why a label has its score: in words, as a picture, and voxel by voxel."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import find_objects
from scipy.ndimage import label as connected_parts

from samcorrect.lib.errors import LabelError, SettingsError, UnknownLabelError
from samcorrect.lib.loop.cohort import load_cohort
from samcorrect.lib.loop.frame_candidates import FrameCandidates, read_candidates
from samcorrect.lib.loop.peer_context import read_context
from samcorrect.lib.loop.scoring import MIN_IMAGES_FOR_PEERS
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.student import probs_to_grid, probs_to_label_map
from samcorrect.lib.report.heat import beside_heat
from samcorrect.lib.report.pictures import as_displayed, display_slice, picture_of
from samcorrect.lib.store.files import write_bytes_atomically
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow
from samcorrect.lib.store.volumes import Volume, write_map

EXPLAIN_NAME = "explain"
OUT_SUFFIXES = (".svg", ".html")
LABEL, PEERS, CANDIDATE = "label", "students that never saw this case", "SAM's candidate nearest to them"
HEAT_CAPTION = "black: the students agree with the label; yellow: they do not"
NO_PEERS = (
    f"no students are kept that could say where: there are fewer than {MIN_IMAGES_FOR_PEERS} images, or the last "
    "scoring was of other settings; run `samcorrect score --full` (with the preset huang2023 none are kept)"
)


@dataclass(frozen=True)
class Opinions:
    """What others say of a label, on the image's grid.

    Attributes:
        disagreement: (H, W, D) float32 in [0, 1]: 1 - the peers' probability of the label's own choice.
        peers: (H, W, D) uint8, the peers' label map.
        candidate: (H, W, D) uint8, SAM's candidates that are nearest to the peers; None without prompts.
    """

    disagreement: np.ndarray
    peers: np.ndarray
    candidate: np.ndarray | None


@dataclass(frozen=True)
class Explanation:
    """Of one label.

    Attributes:
        lines: Why it has its score, in words.
        svg: A picture.
        disagreement: (H, W, D), as in `Opinions`; None where no peers are kept.
    """

    lines: list[str]
    svg: str
    disagreement: np.ndarray | None


def write_explanation(
    workspace: Workspace, image_id: str, *, out: Path | None = None, map_path: Path | None = None
) -> list[str]:
    """Write the picture of `explain_image`, by default below the state folder, and the map where it is asked for.

    Returns:
        The words, and where the files are.

    Raises:
        SettingsError: `out` is neither .svg nor .html.
        LabelError: As `explain_image`; or a map is asked for where no peers are kept, or not as .nii.gz or .nii.
        UnknownImageError, UnknownLabelError, ImageError, StoreError: As `explain_image`, or a file cannot be written.
    """
    path = out or workspace.store.state_dir / EXPLAIN_NAME / f"{image_id}.svg"
    if path.suffix.lower() not in OUT_SUFFIXES:
        raise SettingsError(f"--out {path}: the picture is written as {' or '.join(OUT_SUFFIXES)}")
    told = explain_image(workspace, image_id)
    lines = list(told.lines)
    if map_path is not None:
        if told.disagreement is None:
            raise LabelError(f"{image_id} has no map of disagreement: {NO_PEERS}")
        write_map(map_path, told.disagreement, workspace.store.read_grid(image_id).affine)
        lines.append(f"map: {map_path}")
    document = told.svg if path.suffix.lower() == ".svg" else _html(image_id, told)
    write_bytes_atomically(path, document.encode())
    return [*lines, f"picture: {path}"]


def explain_image(workspace: Workspace, image_id: str) -> Explanation:
    """Why the best label of an image has its score; nothing is scored for it.

    Raises:
        RequestError, UnknownImageError: No such image.
        UnknownLabelError: It has no label.
        LabelError: The label is not scored; says what to run.
        ImageError: The image cannot be read.
    """
    store, protocol = workspace.store, workspace.require_protocol()
    store.find_image(image_id)
    label = store.ledger.best_label(image_id)
    if label is None:
        fault = dict(store.ledger.quarantined()).get(image_id)
        why = f"it is set aside: {fault}" if fault else "run `samcorrect pseudo-label` first"
        raise UnknownLabelError(f"{image_id} has no label yet; {why}")
    quality = store.ledger.quality(label.id)
    if 0 not in quality:
        raise LabelError(
            f"version {label.id} of the label of {image_id} is not scored yet; run `samcorrect score` first"
        )
    volume = store.read_image(image_id)
    label_map = store.read_label(label, volume)
    opinions = _ask(workspace, image_id, label, label_map)
    lines = [f"{image_id}: version {label.id} ({label.tag}) by {label.maker}", _quality_line("whole label", quality[0])]
    shown = None
    for name, index in zip(protocol.names, protocol.indices, strict=True):
        if index in quality:
            lines.append(_quality_line(name, quality[index]))
            lines += [f"  {reason}" for reason in quality[index].reasons]
        if opinions is not None:
            where, box = _where(label_map == index, opinions.peers == index, opinions.disagreement, volume.affine)
            lines.append(f"  {where}")
            shown = _more_doubtful(shown, box, opinions.disagreement)
    if opinions is None:
        lines.append(NO_PEERS)
    names = dict(zip(protocol.indices, protocol.names, strict=True))
    svg = _draw(image_id, volume, label_map, opinions, shown, names)
    return Explanation(lines, svg, None if opinions is None else opinions.disagreement)


def _ask(workspace: Workspace, image_id: str, label: LabelVersionRow, label_map: np.ndarray) -> Opinions | None:
    """What the peers of the last scoring and SAM's candidates say; None where no peers are kept."""
    found = read_context(workspace)
    if found is None:
        return None
    cohort = load_cohort(workspace, {image_id: label})
    candidates = read_candidates(workspace, cohort)
    peers = found[1].judge(cohort, candidates)
    shape_hw, indices = label_map.shape[:2], cohort.config.indices
    probs = probs_to_grid(peers.probs, shape_hw)
    channel_of = np.zeros(256, np.int64)
    channel_of[list(indices)] = np.arange(len(indices)) + 1
    own = np.take_along_axis(probs, channel_of[label_map][None], 0)[0]
    disagreement = np.clip(1 - own, 0, 1).astype(np.float32)
    nearest = None if candidates[0] is None else _on_grid(candidates[0], peers.nearest[0], shape_hw, indices)
    return Opinions(disagreement, probs_to_label_map(probs, indices), nearest)


def _on_grid(
    found: list[FrameCandidates], nearest: np.ndarray, shape_hw: tuple[int, int], indices: tuple[int, ...]
) -> np.ndarray:
    masks = torch.stack([torch.from_numpy(of.masks[n]).float() for of, n in zip(found, nearest, strict=True)], 1)
    soft = probs_to_grid(masks, shape_hw)
    return probs_to_label_map(np.concatenate([np.full_like(soft[:1], 0.5), soft]), indices)


def _quality_line(name: str, row: QualityRow) -> str:
    if row.score is None:
        return f"{name}: no score"
    line = f"{name}: score {row.score:.3f}"
    if row.expected_dice is None:
        return line
    interval = f"90% interval {row.expected_dice_low:.3f} to {row.expected_dice_high:.3f}"
    source = f"calibrated by {row.n_approved} approvals" if row.n_approved else "a prior: too few approvals yet"
    return f"{line}, expected Dice {row.expected_dice:.3f} ({interval}; {source})"


def _where(
    mask: np.ndarray, peer: np.ndarray, disagreement: np.ndarray, affine: np.ndarray
) -> tuple[str, tuple[slice, ...] | None]:
    """Where a structure and its peers disagree most, in words, and the box of that place.

    It is the connected part, of the voxels that only one of both has, with the largest sum of disagreement.
    """
    best, weight, is_labels = None, 0.0, True
    for only, of_label in ((mask & ~peer, True), (peer & ~mask, False)):
        parts, n_parts = connected_parts(only)
        sums = np.bincount(parts.ravel(), disagreement.ravel(), minlength=n_parts + 1)[1:]
        if n_parts and sums.max() > weight:
            number = int(sums.argmax())
            best, weight, is_labels = (parts == number + 1), float(sums[number]), of_label
    if best is None:
        return "label and students agree on every voxel", None
    box = find_objects(best.astype(np.uint8))[0]
    place = place_in_words(best.any(2), (mask | peer).any(2), affine)
    spans = " x ".join(f"[{s.start}, {s.stop})" for s in box)
    who = "the label has it, the students do not" if is_labels else "the students have it, the label does not"
    return f"differs most {place}: {int(best.sum())} voxels in the box {spans}, axes x, y, z; {who}", box


def place_in_words(part: np.ndarray, whole: np.ndarray, affine: np.ndarray) -> str:
    """Where the middle of a part lies in the box of a whole, by thirds, such as "in its upper left part as displayed".

    Args:
        part: (H, W) bool, axes x and y, not empty.
        whole: Likewise.
        affine: (4, 4) voxel index to RAS mm, which turns the slice.
    """
    words = []
    for axis, (low, high) in enumerate((("upper", "lower"), ("left", "right"))):
        inside, around = (np.flatnonzero(as_displayed(m, affine).any(1 - axis)) for m in (part, whole))
        share = (inside.mean() - around[0] + 0.5) / (around[-1] - around[0] + 1)
        words.append(low if share < 1 / 3 else high if share > 2 / 3 else "")
    told = " ".join(word for word in words if word) or "middle"
    return f"in its {told} part as displayed"


def _more_doubtful(
    shown: tuple[slice, ...] | None, other: tuple[slice, ...] | None, disagreement: np.ndarray
) -> tuple[slice, ...] | None:
    if shown is None or other is None:
        return shown or other
    return max(shown, other, key=lambda box: float(disagreement[box].sum()))


def _draw(
    image_id: str,
    volume: Volume,
    label_map: np.ndarray,
    opinions: Opinions | None,
    shown: tuple[slice, ...] | None,
    names: dict[int, str],
) -> str:
    """The slice where label and peers differ most, or that shows most of the label."""
    number = display_slice(volume.array, [label_map]) if shown is None else (shown[2].start + shown[2].stop - 1) // 2
    cut = np.s_[:, :, number : number + 1]
    contours = {LABEL: label_map}
    if opinions is not None:
        contours[PEERS] = opinions.peers
        if opinions.candidate is not None:
            contours[CANDIDATE] = opinions.candidate
    caption = f"{image_id}, slice {number}"
    of_slice = {name: of[cut] for name, of in contours.items()}
    picture = picture_of(image_id, volume.array[cut], of_slice, caption=caption, affine=volume.affine)
    heat = None if opinions is None else as_displayed(opinions.disagreement[:, :, number], volume.affine)
    return beside_heat(picture, names, heat, HEAT_CAPTION)


def _html(image_id: str, told: Explanation) -> str:
    words = "\n".join(f"<li>{escape(line)}</li>" for line in told.lines)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(image_id)}</title>'
        "<style>body{font-family:system-ui,sans-serif;margin:2em}svg{max-width:100%;height:auto}</style></head>\n"
        f"<body><ul>{words}</ul>\n{told.svg}</body></html>\n"
    )
