"""Comparison with ground truth. Nothing else reads it: no stage, threshold or model depends on this module."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.core.metrics import (
    N_BOOTSTRAP,
    auroc_below,
    bootstrap_mean,
    hausdorff95,
    rank_correlation,
    rounded,
    surface_dice,
)
from samcorrect.lib.core.quality import agreement
from samcorrect.lib.errors import ImageError, LabelError, StoreError
from samcorrect.lib.loop.rounds import RunResult
from samcorrect.lib.loop.students import cases_of
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.studies import LocalStudies, Studies
from samcorrect.lib.store.volumes import Volume, align_label_map, read_image, read_label_map, says_spacing

# In units of the smallest voxel side; the field's usual tolerance for organs at 1 mm.
SURFACE_TOLERANCE_VOX = 2.0
AUROC_THRESHOLDS = (0.8, 0.9)
GOOD_DICE, HARM = 0.95, 0.01
MAX_FAULTS = 5


@dataclass(frozen=True)
class Case:
    """An image with its true label map on its grid, and the case (patient) that it is of."""

    image_id: str
    file_name: str
    volume: Volume
    truth: np.ndarray
    case_id: str = ""

    @property
    def has_spacing(self) -> bool:
        """Whether the file says how large a voxel is; a PNG or JPEG does not."""
        return says_spacing(self.file_name)


@dataclass(frozen=True)
class CaseScores:
    """Dice, surface Dice and 95% Hausdorff distance of n images and K structures, (n, K). Where truth and prediction
    are both empty they are 1, 1 and 0, where one is, 0, 0 and the image's diagonal. The distances are in mm, or, unless
    `is_mm`, in pixels. `cases` are those of the images, as intervals count them; None where each image is one.
    """

    dice: np.ndarray
    surface_dice: np.ndarray
    hausdorff95: np.ndarray
    is_mm: bool
    cases: Sequence[str] | None = None

    @property
    def case_dice(self) -> np.ndarray:
        """(n,) mean Dice over the structures of each image."""
        return np.nanmean(self.dice, 1)


class GroundTruth:
    """Label maps of experts in a folder, matched to images by id."""

    def __init__(self, folder: Path):
        """Index a folder. Raises StoreError where it is missing."""
        if not folder.is_dir():
            raise StoreError(f"the ground truth folder {folder} does not exist; give the folder of the label maps")
        self.folder = folder
        self._files = {file.id: folder / file.path for file in LocalStudies(folder).scan()[0]}

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._files

    def check(self, images: Studies, protocol: Protocol) -> list[str]:
        """Read every label map against its image, so that a fault is told before hours of work and not after them.

        Returns:
            The files of the images that have no ground truth.

        Raises:
            LabelError: No image of the folder has ground truth, some label maps are on another grid or unreadable, or
                none holds one of the protocol's indices.
        """
        files = images.scan()[0]
        matched = [file for file in files if file.id in self]
        if not matched:
            raise LabelError(
                f"no file in {self.folder} has the name of an image in {images.location}; "
                "a ground truth is named like its image"
            )
        faults, present, n_read = [], set(), 0
        for file in matched:
            try:
                true_map = self.label_map(file.id, read_image(images.file(file.path)))
            except LabelError as error:
                faults.append(str(error))
            except ImageError:
                continue  # the run sets the image aside and says why
            else:
                present.update(np.unique(true_map).tolist())
                n_read += 1
        if faults:
            raise LabelError(f"{len(faults)} ground truth(s) cannot be used: " + "; ".join(faults[:MAX_FAULTS]))
        if n_read:
            self.require_indices(present, protocol)
        return [file.path for file in files if file.id not in self]

    def require_indices(self, present: Set[int], protocol: Protocol) -> None:
        """Raises LabelError where the whole set, in which these indices are `present`, holds none of a structure's."""
        missing = [f"{s.name} ({s.index})" for s in protocol.structures if s.index not in present]
        if missing:
            raise LabelError(
                f"the ground truth in {self.folder} holds no {', '.join(missing)}; its indices are {sorted(present)}"
            )

    def label_map(self, image_id: str, volume: Volume) -> np.ndarray:
        """The true label map on the image's grid. Raises LabelError or GeometryError."""
        return align_label_map(
            read_label_map(self._files[image_id]), volume.grid, name=f"the ground truth of {image_id}"
        )


def load_cases(store: LabelStore, truth: GroundTruth, protocol: Protocol) -> list[Case]:
    """Every readable image of a store that has ground truth; those that cannot be read are quarantined.

    Raises:
        LabelError: None has, or a true label holds none of the protocol's indices in the whole set.
    """
    cases = []
    for row in store.ledger.images():
        if row.id in truth:
            try:
                volume = store.read_image(row.id)
            except ImageError as error:
                store.ledger.quarantine(row.id, str(error))
                continue
            cases.append(Case(row.id, row.path, volume, truth.label_map(row.id, volume), row.case_id))
    if not cases:
        raise LabelError(f"no file in {truth.folder} has the name of an image; a ground truth is named like its image")
    truth.require_indices(set().union(*(np.unique(case.truth).tolist() for case in cases)), protocol)
    return cases


def evaluate_cases(
    cases: Sequence[Case],
    predict: Callable[[Case], np.ndarray],
    indices: Sequence[int],
    *,
    pixel_mm: float | None = None,
) -> CaseScores:
    """Dice, surface Dice and 95% Hausdorff distance of predictions (H, W, D) on their images' grids.

    Args:
        cases: Images with their truth.
        predict: The label map of a case.
        indices: Of the structures.
        pixel_mm: Side of a pixel of images whose files do not say; without it, distances are in pixels there.
    """
    shape = (len(cases), len(indices))
    values, surface, distances = (np.full(shape, np.nan) for _ in range(3))
    for number, case in enumerate(cases):
        prediction = predict(case)
        spacing_mm = case.volume.spacing_mm if case.has_spacing else (pixel_mm or 1.0,) * 3
        for k, index in enumerate(indices):
            one, other = prediction == index, case.truth == index
            values[number, k] = agreement(one, other)
            tolerance_mm = SURFACE_TOLERANCE_VOX * min(spacing_mm)
            surface[number, k] = surface_dice(one, other, tolerance_mm=tolerance_mm, spacing_mm=spacing_mm)
            distances[number, k] = hausdorff95(one, other, spacing_mm=spacing_mm)
    is_mm = pixel_mm is not None or all(case.has_spacing for case in cases)
    counted = cases_of([case.image_id for case in cases], [case.case_id for case in cases])
    return CaseScores(values, surface, distances, is_mm, counted)


def summarise_arm(scores: CaseScores, names: Sequence[str], *, is_prompted: bool) -> dict[str, Any]:
    """One arm of the table; intervals are bootstrapped over cases. Of the distances in mm and in px, one is None."""
    unit, other_unit = ("mm", "px") if scores.is_mm else ("px", "mm")
    summary = bootstrap_mean(scores.case_dice, cases=scores.cases)
    surface = bootstrap_mean(np.nanmean(scores.surface_dice, 1))
    structures = {}
    for k, name in enumerate(names):
        of_name, of_surface = bootstrap_mean(scores.dice[:, k]), bootstrap_mean(scores.surface_dice[:, k])
        structures[name] = {
            "dice_mean": rounded(of_name.mean),
            "dice_sd": rounded(of_name.sd),
            "surface_dice_mean": rounded(of_surface.mean),
            f"hausdorff95_{unit}_mean": rounded(bootstrap_mean(scores.hausdorff95[:, k]).mean),
        }
    return {
        "dice_mean": rounded(summary.mean),
        "dice_sd": rounded(summary.sd),
        "dice_ci95": [rounded(v) for v in summary.ci95],
        "surface_dice_mean": rounded(surface.mean),
        "surface_dice_sd": rounded(surface.sd),
        f"hausdorff95_{unit}_mean": rounded(bootstrap_mean(np.nanmean(scores.hausdorff95, 1)).mean),
        f"hausdorff95_{other_unit}_mean": None,
        "n": summary.n,
        "is_prompted": is_prompted,
        "structures": structures,
    }


def compare_arms(one: CaseScores, other: CaseScores, *, seed: int = 0) -> dict[str, Any]:
    """Paired difference of the mean Dice, one - other, with its 95% bootstrap interval over cases."""
    difference = bootstrap_mean(one.case_dice - other.case_dice, cases=one.cases, seed=seed)
    return {
        "dice_difference_mean": rounded(difference.mean),
        "ci95": [rounded(v) for v in difference.ci95],
        "n": difference.n,
        "n_bootstrap": N_BOOTSTRAP,
    }


def label_dice(workspace: Workspace, labels: Mapping[str, Any], truth: GroundTruth) -> dict[str, np.ndarray]:
    """Image id to the (K,) true Dice of a label, for the images with ground truth; 1 where both are empty."""
    indices = workspace.require_protocol().indices
    values = {}
    for image_id, row in labels.items():
        if image_id not in truth:
            continue
        volume = workspace.store.read_image(image_id)
        label_map, true_map = workspace.store.read_label(row, volume), truth.label_map(image_id, volume)
        values[image_id] = np.array([agreement(label_map == i, true_map == i) for i in indices])
    return values


def evaluate_quality(
    structure_scores: Mapping[str, Sequence[float | None]], true_dice: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, Any]:
    """How well the scores rank and find bad labels: over all labels pooled, and by structure."""
    ids = [i for i in structure_scores if i in true_dice]
    scores = np.array(
        [[np.nan if v is None else v for v in structure_scores[i]] for i in ids], dtype=np.float64
    ).reshape(len(ids), -1)
    truth = np.array([true_dice[i] for i in ids]).reshape(len(ids), -1)

    def measures(s: np.ndarray, d: np.ndarray) -> dict[str, Any]:
        measured = {"spearman": rounded(rank_correlation(s, d)), "n": int((np.isfinite(s) & np.isfinite(d)).sum())}
        for threshold in AUROC_THRESHOLDS:
            measured[f"auroc_dice_below_{threshold}"] = rounded(auroc_below(s, d, threshold))
            measured[f"n_dice_below_{threshold}"] = int((d < threshold).sum())
        return measured

    structures = {name: measures(scores[:, k], truth[:, k]) for k, name in enumerate(names)}
    return {**measures(scores.ravel(), truth.ravel()), "structures": structures}


def evaluate_correction(
    result: RunResult, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """True Dice of the structures that any round flagged, before the first and after the last round, and what became of
    the others.
    """
    if not before:
        return {}
    n_structures = len(next(iter(before.values())))
    flagged = {image_id: np.zeros(n_structures, bool) for image_id in before}
    for told in result.rounds:
        for image_id, of_image in told["flagged"].items():
            if image_id in flagged:
                flagged[image_id] |= np.array(of_image, bool)
    old, new = np.array([before[i] for i in before]), np.array([after[i] for i in before])
    is_flagged = np.array([flagged[i] for i in before])
    return {
        "n_flagged_structures": int(is_flagged.sum()),
        "n_structures": int(np.isfinite(old).sum()),
        "dice_before": _mean(old[is_flagged]),
        "dice_after": _mean(new[is_flagged]),
        **compare_labels(before, after),
    }


def compare_labels(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """True Dice before and after, (K,) an image: of all structures, of those that were bad, and how many of the good
    ones lost more than HARM.
    """
    old, new = np.array([before[i] for i in before]), np.array([after[i] for i in before])
    was_good, was_bad = old > GOOD_DICE, old < AUROC_THRESHOLDS[0]
    return {
        "all_dice_before": _mean(old),
        "all_dice_after": _mean(new),
        "n_bad": int(was_bad.sum()),
        "bad_dice_before": _mean(old[was_bad]),
        "bad_dice_after": _mean(new[was_bad]),
        "n_good": int(was_good.sum()),
        "good_harmed_share": _mean((new < old - HARM)[was_good]),
    }


def evaluate_flags(flagged: Mapping[str, Sequence[bool]], true_dice: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How well the flags of structures find bad labels: those with a Dice below 0.8, and those below the set's median.

    Args:
        flagged: Image id to (K,) flags; images that are missing have none.
        true_dice: Image id to (K,) of the labels that were flagged.

    Returns:
        `flagged_share`, and `flagged_precision` and `flagged_recall` for 0.8, with the suffix `_below_median` for the
        median; None where nothing is flagged or bad.
    """
    dice_values = np.array([true_dice[i] for i in true_dice])
    is_flagged = np.array([flagged.get(i, [False] * dice_values.shape[1]) for i in true_dice], dtype=bool)
    told = {"flagged_share": _mean(is_flagged[np.isfinite(dice_values)])}
    for suffix, threshold in (("", AUROC_THRESHOLDS[0]), ("_below_median", float(np.nanmedian(dice_values)))):
        is_bad = dice_values < threshold
        told[f"flagged_precision{suffix}"] = _mean(is_bad[is_flagged & np.isfinite(dice_values)])
        told[f"flagged_recall{suffix}"] = _mean(is_flagged[is_bad])
    return told


def _mean(values: np.ndarray) -> float | None:
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[np.isfinite(defined)]
    return rounded(float(defined.mean())) if len(defined) else None
