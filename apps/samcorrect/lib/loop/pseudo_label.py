"""Stage 1: a pseudo-label for every image, by search over prompts (preset samcorrect) or from the box as given
(huang2023).
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from samcorrect.lib.core.metrics import rounded
from samcorrect.lib.core.pseudo_label import CohortShape, choose_candidate, cohort_shape, mask_shapes, merge_structures
from samcorrect.lib.core.quality import confidence_agreement, prompt_agreement
from samcorrect.lib.errors import ImageError, ProtocolError, SamCorrectError, WorkerDiedError
from samcorrect.lib.loop.candidates import Candidates, find_candidates, prompting_student
from samcorrect.lib.loop.views import with_shared
from samcorrect.lib.loop.workers import ImageFunction, ImageTask, MapImages, open_workers
from samcorrect.lib.loop.workspace import Models, Progress, Workspace, no_progress
from samcorrect.lib.store.files import image_sha256, write_bytes_atomically
from samcorrect.lib.store.image_ids import log_name
from samcorrect.lib.store.schema import TAG_ORIGINAL, ImageRow, LabelVersionRow
from samcorrect.lib.store.volumes import Volume, read_image
from samcorrect.lib.transforms.frame import from_frame

logger = logging.getLogger(__name__)

MAKER = "sam:"
COHORT_NAME = "cohort.json"
STAGE_CANDIDATES, STAGE_CHOOSE = "SAM candidates", "pseudo-labels"
# Behind the recipe of a label that was chosen without knowing its like.
ALONE = " alone"


# What is usual of each structure, where it is known.
KnownShapes = list[CohortShape | None]


@dataclass(frozen=True)
class PseudoLabel:
    """A label map made from prompts, the prompts, and what SAM said of each structure."""

    label_map: np.ndarray
    prompts: dict[str, Any]
    info: dict[str, Any]


def pseudo_label_image(workspace: Workspace, volume: Volume, image_name: str) -> PseudoLabel:
    """The pseudo-label of one image, chosen with what is known of the cohort.

    Args:
        workspace: With a protocol.
        volume: The image.
        image_name: File name, as a boxes file has it.

    Raises:
        ProtocolError: There is no prompt for this image.
    """
    cohort = _load_cohort(workspace)
    made = _label_of(workspace, volume, image_name, cohort)
    return replace(made, info={**made.info, "recipe": _recipe(workspace) + ("" if cohort else ALONE)})


def see_along_all_axes(
    workspace: Workspace, volume: Volume, image_name: str, candidates: list[Candidates]
) -> list[Candidates]:
    """Candidates from `find_candidates` with what is shared along all axes, for structures of which SAM's confidence is
    not believed."""
    return _with_shared(workspace, volume, image_name, candidates, _load_cohort(workspace))


def choose_candidates(workspace: Workspace, candidates: list[Candidates]) -> list[int]:
    """The candidate of each structure that the preset takes, with what is known of the cohort but no student."""
    return _choose(workspace, candidates, _load_cohort(workspace))


def choose_of_structure(workspace: Workspace, candidates: Candidates, k: int) -> int:
    """The same of candidates of structure number k alone, whatever prompts gave them."""
    return _choose(workspace, [candidates], (_load_cohort(workspace) or [])[k : k + 1])[0]


def pseudo_label_store(
    workspace: Workspace, *, image_ids: Sequence[str] | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Label every image that has no pseudo-label of this protocol, model and preset yet; each finished image is a
    checkpoint.

    An image that cannot be read or prompted, or that two worker processes died of, is quarantined with its reason, and
    the others go on. Those quarantined before get another try where all images are asked for, since files get repaired.
    Workers (settings `workers` and `engine`) share the cache on the disk; this process alone writes labels. How many
    there are and where they run changes no label.

    Args:
        workspace: With a protocol.
        image_ids: Only these; all by default.
        progress: Told about each image.

    Returns:
        Counts: `n_labelled`, `n_kept`, `n_quarantined`.

    Raises:
        StoreError: There are no images, the disk is full, or a Ray cluster does not answer or cannot be used.
        ProtocolError: As `Protocol.require_own_boxes`.
        DependencyError: Ray is asked for and not installed.
    """
    if image_ids is None:
        workspace.store.ledger.release_from_quarantine()
    rows = workspace.store.require_images()
    workspace.require_protocol().require_own_boxes(row.path for row in rows)
    if image_ids is not None:
        rows = [workspace.store.ledger.image(image_id) for image_id in image_ids]
    recipe = _recipe(workspace)
    latest = workspace.store.ledger.latest_labels(with_rejected=True)
    todo = [row for row in rows if _is_missing(workspace, latest.get((row.id, TAG_ORIGINAL)), recipe, row)]
    told: dict[str, np.ndarray] = {}
    n_labelled = 0
    with open_workers(workspace, len(todo)) if todo else nullcontext() as map_images:
        for image_id, found in _made(workspace, todo, map_images, _tell_cohort, STAGE_CANDIDATES, progress):
            told[image_id] = found
        if told and image_ids is None:
            # With the labels made before, so that a killed pass ends as an undisturbed one.
            _save_cohort(workspace, np.array([*told.values(), *_told_by(workspace, latest, recipe)]))
        cohort = _load_cohort(workspace)
        if cohort is None:
            # Chosen without knowing its like; a pass over the whole store chooses again.
            recipe += ALONE
        for name in _doubted(workspace, cohort):
            logger.warning(
                "%s: SAM is surest of masks that its other prompts contradict; taking the box as given "
                "(of a volume what is found along all its axes, where voxels are about as long along each)",
                name,
            )
        usable = [row for row in todo if row.id in told]
        make = partial(_make_label, cohort=cohort)
        for image_id, made in _made(workspace, usable, map_images, make, STAGE_CHOOSE, progress):
            _save_label(workspace, image_id, made, recipe)
            n_labelled += 1
    return {"n_labelled": n_labelled, "n_kept": len(rows) - len(todo), "n_quarantined": len(todo) - n_labelled}


def masks_to_grid(masks: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """(D, side, side) masks of SAM's frame to (H, W, D) float32 in [0, 1] on the image's grid."""
    return from_frame(torch.from_numpy(masks.astype(np.float32)), shape_hw).permute(1, 2, 0).numpy()


def _is_missing(workspace: Workspace, label: LabelVersionRow | None, recipe: str, row: ImageRow) -> bool:
    """Whether SAM has to label an image: none of this recipe and file yet, not even a rejected one; a mask that was
    brought along stays, unless it is rejected.
    """
    if label is None or not label.maker.startswith(MAKER):
        return label is None or label.is_rejected
    try:
        digest = image_sha256(workspace.store.image_path(row))
    except ImageError:
        return True  # gone or unreadable: set aside, with its reason, when its turn comes
    return (label.info.get("recipe"), label.info.get("image_sha256")) != (recipe, digest)


def _made(
    workspace: Workspace,
    rows: Sequence[ImageRow],
    map_images: MapImages,
    function: ImageFunction,
    stage: str,
    progress: Progress,
) -> Iterator[tuple[str, Any]]:
    """Image id and what `function` makes of it; an image of which it makes nothing is quarantined with the reason."""
    n_done = 0

    def tasks() -> Iterator[ImageTask]:
        nonlocal n_done
        for row in rows:
            try:
                yield ImageTask(row.id, row.path, workspace.store.image_path(row).absolute())
            except ImageError as error:
                _set_aside(workspace, row.id, error)
                n_done += 1
                progress(stage, n_done, len(rows))

    for task, result in map_images(function, tasks()) if rows else ():
        if isinstance(result, ImageError | ProtocolError | WorkerDiedError):
            _set_aside(workspace, task.image_id, result)
        elif isinstance(result, SamCorrectError):
            raise result
        else:
            yield task.image_id, result
        n_done += 1
        progress(stage, n_done, len(rows))


def _set_aside(workspace: Workspace, image_id: str, error: SamCorrectError) -> None:
    workspace.store.ledger.quarantine(image_id, str(error))
    logger.warning("image %s is quarantined: %s", log_name(image_id), type(error).__name__)


def _tell_cohort(models: Models, task: ImageTask) -> np.ndarray:
    """(K, 4) `_usual_shape` of each structure and its `confidence_agreement`; the candidates are on the disk
    afterwards."""
    found = find_candidates(models, read_image(task.file), task.name)
    return np.array([[*_usual_shape(c), confidence_agreement(c.overlaps, c.confidence)] for c in found])


@dataclass(frozen=True)
class _Made:
    label: PseudoLabel
    affine: np.ndarray
    image_sha256: str
    seconds: float


def _make_label(models: Models, task: ImageTask, *, cohort: KnownShapes | None) -> _Made:
    started = time.monotonic()
    volume = read_image(task.file)
    label = _label_of(models, volume, task.name, cohort)
    return _Made(label, volume.affine, image_sha256(task.file), time.monotonic() - started)


def _save_label(workspace: Workspace, image_id: str, made: _Made, recipe: str) -> None:
    workspace.store.save_label_map(
        image_id,
        made.label.label_map,
        tag=TAG_ORIGINAL,
        maker=f"{MAKER}{workspace.sam.name}",
        affine=made.affine,
        model_digest=workspace.sam.digest,
        runtime=workspace.sam.runtime,
        prompts=made.label.prompts,
        info={**made.label.info, "recipe": recipe, "image_sha256": made.image_sha256},
    )
    logger.info("pseudo-label of image %s in %.2f s", log_name(image_id), made.seconds)


def _label_of(models: Models, volume: Volume, image_name: str, cohort: KnownShapes | None) -> PseudoLabel:
    candidates = find_candidates(models, volume, image_name)
    candidates = _with_shared(models, volume, image_name, candidates, cohort)
    return _assemble(models, volume, candidates, _choose(models, candidates, cohort))


def _with_shared(
    models: Models, volume: Volume, image_name: str, candidates: list[Candidates], cohort: KnownShapes | None
) -> list[Candidates]:
    doubted = _doubted(models, cohort)
    is_wanted = [name in doubted for name in models.require_protocol().names]
    return with_shared(models, volume, image_name, candidates, is_wanted)


def _choose(models: Models, candidates: list[Candidates], cohort: KnownShapes | None) -> list[int]:
    if models.settings.preset == "huang2023":
        return [0] * len(candidates)
    known = cohort or [None] * len(candidates)
    return [
        choose_candidate(c.confidence, mask_shapes(c.masks), c.overlaps, k)
        for c, k in zip(candidates, known, strict=True)
    ]


def _assemble(models: Models, volume: Volume, candidates: list[Candidates], chosen: list[int]) -> PseudoLabel:
    protocol = models.require_protocol()
    masks, prompts, structures = [], {}, {}
    for structure, found, number in zip(protocol.structures, candidates, chosen, strict=True):
        masks.append(masks_to_grid(found.offered(number), volume.array.shape[:2]) > 0.5)
        prompts[structure.name] = {
            "source": structure.prompt.source,
            "box": found.box(number),
        }
        # Where a person said that the structure is not there, nobody asked SAM, which is not unsure of the empty mask.
        is_asked = structure.prompt.source != "boxes_file" or found.box(number) is not None
        structures[structure.name] = {
            **(found.info(number) if is_asked else {}),
            "prompt_agreement": rounded(prompt_agreement(found.overlaps)),
            "confidence_agreement": _none_if_nan(confidence_agreement(found.overlaps, found.confidence)),
            "usual_shape": [_none_if_nan(v) for v in _usual_shape(found)],
        }
    return PseudoLabel(merge_structures(masks, protocol.indices), prompts, {"structures": structures})


def _recipe(workspace: Workspace) -> str:
    settings, sam = workspace.settings, workspace.sam
    student = prompting_student(workspace)
    parts = [
        workspace.require_protocol().digest,
        student.digest if student else "",
        sam.digest,
        sam.runtime,
        settings.preset,
        settings.n_prompts,
        settings.seed,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _usual_shape(candidates: Candidates) -> np.ndarray:
    """(3,) of `mask_shapes`: the most confident candidate's, by which an image counts in the cohort."""
    return mask_shapes(candidates.masks)[int(np.argmax(candidates.confidence))]


def _told_by(workspace: Workspace, latest: Mapping[tuple[str, str], LabelVersionRow], recipe: str) -> list[np.ndarray]:
    """What `_tell_cohort` told of the images whose labels one recipe made."""
    names = workspace.require_protocol().names
    infos = [
        label.info["structures"]
        for (_, tag), label in latest.items()
        if tag == TAG_ORIGINAL and label.info.get("recipe") == recipe and not label.is_rejected
    ]
    return [
        # Labels of earlier releases tell nothing of the confidence.
        np.array([[*of[name]["usual_shape"], of[name].get("confidence_agreement")] for name in names], np.float64)
        for of in infos
    ]


def _save_cohort(workspace: Workspace, told: np.ndarray) -> None:
    cohort = [cohort_shape(told[:, k, :3], told[:, k, 3]) for k in range(told.shape[1])]
    document = {
        "protocol": workspace.require_protocol().digest,
        "structures": [
            c and {"center": c.center.tolist(), "spread": c.spread.tolist(), "believes": c.believes_confidence}
            for c in cohort
        ],
    }
    write_bytes_atomically(workspace.store.state_dir / COHORT_NAME, json.dumps(document, indent=1).encode())


def _doubted(workspace: Models, cohort: KnownShapes | None) -> list[str]:
    """The structures of which SAM's confidence would choose and is not believed."""
    names = workspace.require_protocol().names if workspace.settings.preset != "huang2023" else ()
    return [name for name, c in zip(names, cohort or (), strict=False) if c is not None and not c.believes_confidence]


def _load_cohort(workspace: Workspace) -> KnownShapes | None:
    path = workspace.store.state_dir / COHORT_NAME
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["protocol"] != workspace.require_protocol().digest:
        return None
    return [
        c and CohortShape(np.array(c["center"]), np.array(c["spread"]), c.get("believes", True))
        for c in document["structures"]
    ]
