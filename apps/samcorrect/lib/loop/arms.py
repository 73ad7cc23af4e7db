"""The arms of the comparison: what SAM alone, the paper and full supervision reach with the same network, steps and
seed.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.core.metrics import rounded
from samcorrect.lib.errors import ProtocolError
from samcorrect.lib.loop.cohort import Cohort, load_cohort, original_labels
from samcorrect.lib.loop.evaluation import (
    Case,
    CaseScores,
    GroundTruth,
    compare_arms,
    evaluate_cases,
    label_dice,
    load_cases,
    summarise_arm,
)
from samcorrect.lib.loop.pseudo_label import pseudo_label_image
from samcorrect.lib.loop.rounds import RunResult, run_loop
from samcorrect.lib.loop.students import SEED_STRIDE, Trained, train_on
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.networks.student import Student
from samcorrect.lib.protocol import Protocol
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.schema import LabelVersionRow
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.transforms.frame import labels_to_frame

PRESETS = ("samcorrect", "huang2023")
TRAINED_ARMS = ("sam_to_student", "sam_search_to_student", "huang2023", "samcorrect", "supervised")
COMPARISONS = (
    ("samcorrect", "sam_to_student"),
    ("samcorrect", "huang2023"),
    ("samcorrect", "sam_search_to_student"),
    ("samcorrect", "supervised"),
)


def compare(
    workspace: Workspace,
    result: RunResult,
    truth: GroundTruth,
    *,
    out_dir: Path,
    test: tuple[Path, GroundTruth] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train and evaluate all arms.

    The other preset and the baselines have states of their own in `out_dir/arms`, so that the run itself is the same
    with and without ground truth.

    Args:
        workspace: Of the finished run.
        result: The run.
        truth: Of the studies, for the supervised arm.
        out_dir: Where the arms keep their state.
        test: Folder of test images and their ground truth; without, arms are evaluated on the studies themselves.
        progress: Told about every stage.

    Returns:
        `arms`, `comparisons`, `evaluated_on`, `label_dice` (mean true Dice of both presets' labels), `case_dice`,
        `left_out` (see `why_left_out`), and `test_quarantined`, the (image id, reason) of test images that cannot be
        read.
    """
    protocol, studies = workspace.require_protocol(), workspace.store.studies
    test_studies = LocalStudies(test[0]) if test else studies
    arms_dir = out_dir / "arms" / _name_of(studies.location, test_studies.location)
    results = {workspace.settings.preset: (workspace, result)}
    for preset in PRESETS:
        if preset not in results:
            other = _side_workspace(workspace, arms_dir / preset, preset=preset)
            results[preset] = (other, run_loop(other, progress=_named(progress, preset)))
    store = LabelStore(test_studies, arms_dir / "test") if test else workspace.store
    cases = load_cases(store, test[1] if test else truth, protocol)
    baselines = _side_workspace(workspace, arms_dir / "baselines")
    trained = _train_arms(baselines, results, truth, progress)
    box_only = results["huang2023"][0].with_settings(n_candidates=1)
    taught = [image.path for image in workspace.store.ledger.images()] if test else ()
    left_out, scores = why_left_out(cases, protocol, taught), {}
    if not left_out:
        scores["sam_only"] = evaluate_cases(cases, sam_predictor(box_only), protocol.indices)
    for name, (student, _) in trained.items():
        scores[name] = evaluate_cases(cases, student_predictor(student), protocol.indices)
    told = {name: summarise_arm(s, protocol.names, is_prompted=name == "sam_only") for name, s in scores.items()}
    return {
        "arms": {name: {**arm, **(trained[name][1] if name in trained else {})} for name, arm in told.items()},
        "comparisons": {f"{a} - {b}": compare_arms(scores[a], scores[b]) for a, b in COMPARISONS},
        "evaluated_on": "test images" if test else "the studies themselves: supervised has seen these labels",
        "label_dice": {preset: _label_dice(*results[preset], truth) for preset in PRESETS},
        "case_dice": {name: by_case(cases, s) for name, s in scores.items()},
        "left_out": left_out,
        "test_quarantined": store.ledger.quarantined() if test else [],
    }


def _train_arms(
    baselines: Workspace, results: Mapping[str, tuple[Workspace, RunResult]], truth: GroundTruth, progress: Progress
) -> dict[str, tuple[Student, dict[str, Any]]]:
    """The student of each arm and how its training went; those without rounds of their own are trained here, from the
    same seed and of no label of a person's, which the preset that was run may have seen.
    """
    box, searched = results["huang2023"][0], results["samcorrect"][0]
    cohorts = {
        "sam_to_student": load_cohort(box, original_labels(box)),
        "sam_search_to_student": load_cohort(searched, original_labels(searched)),
        "supervised": true_cohort(box, original_labels(box), truth),
    }
    arms = {}
    for name, cohort in cohorts.items():
        trained = train_baseline(baselines, cohort, progress=_named(progress, name))
        arms[name] = trained.student, how_training_went(vars(trained.curve))
    for preset in PRESETS:
        told = results[preset][1].rounds[-1]["student"]
        arms[preset] = last_student(*results[preset]), how_training_went(told)
    return {name: arms[name] for name in TRAINED_ARMS}


def train_baseline(workspace: Workspace, cohort: Cohort, *, progress: Progress = no_progress) -> Trained:
    """A student of all labels of a cohort as they are, from the seed that the rounds train theirs from."""
    how = {"seed": workspace.settings.seed + 10 * SEED_STRIDE, "steps": workspace.settings.student_steps}
    return train_on(workspace, cohort, np.arange(len(cohort)), name="student", progress=progress, **how)


def how_training_went(told: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is told of a student, see `trainings.Curve`, what says whether its training collapsed; rounds of earlier
    releases lack it.
    """
    return {key: told[key] for key in ("n_restarts", "fault") if key in told}


def last_student(workspace: Workspace, result: RunResult) -> Student:
    """The student of a run's last round, whether it was promoted or not."""
    digest = result.rounds[-1]["student"]["digest"]
    row = next(row for row in workspace.store.ledger.models() if row.digest == digest)
    return workspace.load_student(row)


def by_case(cases: list[Case], scores: CaseScores) -> dict[str, float | None]:
    """Image id to mean Dice."""
    values = scores.case_dice
    return {case.image_id: rounded(v) for case, v in zip(cases, values, strict=True)}


def _name_of(*locations: str) -> str:
    """A name for what belongs to these folders: a report folder that is used again for other images mixes nothing."""
    return hashlib.sha256("\n".join(locations).encode()).hexdigest()[:12]


def _side_workspace(workspace: Workspace, state_dir: Path, **changes: Any) -> Workspace:
    settings = workspace.with_settings(**changes).settings
    store = LabelStore(workspace.store.studies, state_dir)
    return Workspace(store, workspace.protocol, settings, cache_dir=workspace.cache_dir)


def true_cohort(workspace: Workspace, labels: Mapping[str, LabelVersionRow], truth: GroundTruth) -> Cohort:
    """The cohort of the labelled images that have ground truth, with it in place of their labels."""
    cohort = load_cohort(workspace, {i: row for i, row in labels.items() if i in truth})
    targets = cohort.scratch.copy(cohort.targets)
    for row, span in zip(cohort.images, cohort.spans, strict=True):
        true_map = truth.label_map(row.id, workspace.store.read_image(row.id))
        targets[span] = labels_to_frame(true_map, cohort.config.indices, cohort.config.side_px)
    return replace(cohort, targets=targets)


def student_predictor(student: Student) -> Callable[[Case], np.ndarray]:
    """What a student says of a case; it is asked no prompt."""
    return lambda case: student.predict(case.volume.array)


def sam_predictor(workspace: Workspace) -> Callable[[Case], np.ndarray]:
    """What SAM says of a case from the protocol's prompts."""

    def predict(case: Case) -> np.ndarray:
        return pseudo_label_image(workspace, case.volume, case.file_name).label_map

    return predict


def why_left_out(cases: Sequence[Case], protocol: Protocol, taught: Iterable[str] = ()) -> dict[str, str]:
    """`sam_only` and the reason, where a boxes file lacks a box of some case; no mean over the others is given in its
    place, since it would be of easier or harder images than that of the other arms.

    Args:
        cases: Test images.
        protocol: Whose boxes are asked for.
        taught: Paths of the training images, where they lie in another folder than the test images: a row of the boxes
            file that one of them is prompted with is no box of a test image of the same name.
    """
    faults = []
    rows_taught = {(s.name, protocol.boxes_row(s, path)) for path in taught for s in protocol.structures}
    for case in cases:
        try:
            for structure in protocol.structures:
                protocol.box_vox(structure, case.file_name, case.volume.array.shape)
                row = protocol.boxes_row(structure, case.file_name)
                if row is not None and (structure.name, row) in rows_taught:
                    raise ProtocolError(f"{row}: the box of {structure.name!r} is that of a training image")
        except ProtocolError as error:
            faults.append(str(error))
    told = f"SAM cannot be prompted on {len(faults)} of {len(cases)} images; the first: "
    return {"sam_only": told + faults[0]} if faults else {}


def _label_dice(workspace: Workspace, result: RunResult, truth: GroundTruth) -> dict[str, float | None]:
    stages = {"before": result.labels_first, "after": result.labels_last}
    dice = {stage: list(label_dice(workspace, labels, truth).values()) for stage, labels in stages.items()}
    return {stage: rounded(np.nanmean(v)) if np.isfinite(v).any() else None for stage, v in dice.items()}


def _named(progress: Progress, arm: str) -> Progress:
    return lambda stage, done, total: progress(f"{arm}: {stage}", done, total)
