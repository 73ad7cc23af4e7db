"""How well the quality score ranks labels that nobody has looked at, on any data set in two folders.

Ground truth is read here alone, to measure. Rows: every feature, the fusion ("fused"), and baselines: SAM's predicted
IoU (a feature too), the loss of arXiv 2308.00883 as released and as repaired in the preset huang2023, cleanlab's
`segmentation.rank` (with `pip install cleanlab`; left out without), and chance. `students_of_truth` is no rival but a
ceiling: the Dice with out-of-fold students that learnt the truth, better ones than any that learn from labels.

example:
  python benchmarks/quality.py --images jsrt/images --labels jsrt/labels --protocol protocols/jsrt_lungs.yaml \\
      --json out/jsrt_lungs.json --seeds 0 1 2 --noise box,chosen
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import open_run, open_truth, parse, run_main, tell, tell_quarantined, write_json
from measures import measure_scores
from noise import NOISES, make_labels, require_noise

from samcorrect.lib.core.losses import cross_entropy_map
from samcorrect.lib.core.metrics import bootstrap_mean, rounded
from samcorrect.lib.core.quality import FEATURES, agreement
from samcorrect.lib.loop.arms import true_cohort
from samcorrect.lib.loop.asked_again import ask_sam
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.pseudo_label import masks_to_grid, see_along_all_axes
from samcorrect.lib.loop.scoring import HUANG_DROPOUT, Scores, score_cohort
from samcorrect.lib.loop.students import cases_of, out_of_fold_probs, train_on
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.student import predict_frames
from samcorrect.lib.networks.training import WeighBatch
from samcorrect.lib.store.volumes import Volume
from samcorrect.lib.transforms.frame import to_frame

try:
    from cleanlab.segmentation.rank import get_label_quality_scores
except ImportError:
    get_label_quality_scores = None

UNION, CEILING = "_union", "students_of_truth"
# With fewer, the interval of a rank correlation of 0.7 reaches down to 0.3.
MIN_LABELS = 20
CHOOSERS = (
    "box",
    "mean_of_prompts",
    "predicted_iou",
    "stability",
    "first_pass",
    "second_pass",
    "asked_again",
    "oracle",
)
Rows = dict[str, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every noise and seed; the table of the choosing goes beside the JSON file."""
    parsed = parse(_parser(), arguments)
    noises = [noise.strip() for noise in parsed.noise.split(",")]
    for noise in noises:
        require_noise(noise)
    name = parsed.dataset or parsed.protocol.stem
    measured: dict[str, Any] = {}
    choosing: dict[str, Any] = {}
    truth = open_truth(parsed)
    if get_label_quality_scores is None:
        print("no row of cleanlab: it is not installed (pip install cleanlab)", file=sys.stderr)
    for noise in noises:
        for seed in parsed.seeds:
            started = time.monotonic()
            workspace = open_run(parsed, seed, noise)
            make_labels(workspace, noise, truth, tell)
            tell_quarantined(workspace.store)
            cohort = load_cohort(workspace, best_labels(workspace))
            scores = score_cohort(workspace, cohort, seed=seed, progress=tell)
            rows = _rows(workspace, cohort, scores, seed=seed, with_losses=not parsed.no_losses)
            if not parsed.no_losses:
                rows[CEILING] = _agreement_with_students_of_truth(workspace, cohort, truth, seed=seed)
            _enter(measured, noise, seed, cohort, rows, *_true_dice(workspace, cohort, truth))
            for structure, told in zip(cohort.config.names, scores.doubts, strict=True):
                measured[structure][noise]["fused"][str(seed)]["doubt"] = told
            if noise == "chosen":
                choosing[str(seed)] = _choosing(workspace, cohort, scores, truth)
                write_json(parsed.json.with_name(f"{parsed.json.stem}-choosing.json"), {name: choosing})
            few = f"; {len(cohort)} labels say little of a ranking" if len(cohort) < MIN_LABELS else ""
            print(f"{name} {noise} seed {seed}: {time.monotonic() - started:.0f} s{few}", file=sys.stderr, flush=True)
            write_json(parsed.json, {name: measured})
    if choosing:
        _print_choosing(choosing)
    _print_table(measured)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "labels", "protocol", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--noise", default=",".join(NOISES), help="comma-separated: box, chosen, corrected, morph<percent>"
    )
    parser.add_argument("--dataset", help="name in the JSON file; default that of the protocol file")
    parser.add_argument(
        "--out", type=Path, help="state and caches, kept for the next run; default beside the JSON file"
    )
    parser.add_argument("--no-losses", action="store_true", help="leave out the rows with trainings of their own")
    return parser


def _true_dice(workspace: Workspace, cohort: Cohort, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """(n, K + 1) Dice and true sizes in voxels on the images' grids, the last column of all structures as one mask.

    The Dice of an empty label of an empty truth is 1; nan is where an image has no truth.
    """
    indices = cohort.config.indices
    values, sizes = (np.full((len(cohort), len(indices) + 1), np.nan) for _ in range(2))
    for number, label in enumerate(cohort.labels):
        if label.image_id not in truth:
            continue
        volume = workspace.store.read_image(label.image_id)
        label_map, true_map = workspace.store.read_label(label, volume), truth.label_map(label.image_id, volume)
        for k, of in enumerate([*((index,) for index in indices), indices]):
            mask = np.isin(true_map, of)
            values[number, k], sizes[number, k] = agreement(np.isin(label_map, of), mask), mask.sum()
    return values, sizes


def _rows(workspace: Workspace, cohort: Cohort, scores: Scores, *, seed: int, with_losses: bool) -> Rows:
    """Row name to (n, K) scores, higher is better."""
    shape = (len(cohort), cohort.n_structures)
    rows = {name: np.stack([f[name] for f in scores.features], 1) for name in FEATURES}
    rows["fused"] = scores.structure_scores
    if with_losses:
        rows["paper_loss_released"] = _paper_loss(workspace, cohort, seed, weigh_batch=_drop_samples, scaled=False)
        repaired = score_cohort(workspace.with_settings(preset="huang2023"), cohort, seed=seed, progress=tell)
        rows["paper_loss_repaired"] = repaired.structure_scores
    if get_label_quality_scores is not None and scores.peer_probs is not None:
        rows["cleanlab"] = _cleanlab(cohort, scores.peer_probs)
    rows["random"] = np.random.default_rng(seed).random(shape)
    return rows


def _drop_samples(logits: torch.Tensor, targets: torch.Tensor, *, progress: float) -> torch.Tensor:
    """Image-level reweighting alone: the released code's pixel weights multiply a loss that is averaged already."""
    losses = cross_entropy_map(logits.detach(), targets)
    weights = torch.ones_like(losses)
    weights[losses.flatten(1).mean(1).topk(max(1, round(0.1 * len(losses)))).indices] = 0
    return weights


def _paper_loss(
    workspace: Workspace, cohort: Cohort, seed: int, *, weigh_batch: WeighBatch, scaled: bool
) -> np.ndarray:
    """(n, K) of exp(-loss) of each image; unless `scaled`, of raw intensities, as the released code ranks."""
    everything = np.arange(len(cohort))
    trained = train_on(
        workspace,
        cohort,
        everything,
        name="student of the paper's loss",
        seed=seed,
        dropout=HUANG_DROPOUT,
        weigh_batch=weigh_batch,
        progress=tell,
    )
    frames = cohort.frames
    if not scaled:
        volumes = [workspace.store.read_image(row.id) for row in cohort.images]
        frames = torch.cat([to_frame(v.array, cohort.config.side_px) for v in volumes])
    probs = predict_frames(trained.network, frames, cohort.lengths())
    losses = cross_entropy_map(probs.clamp(min=1e-7).log(), cohort.targets)
    return np.repeat([[float(torch.exp(-losses[span].mean()))] for span in cohort.spans], cohort.n_structures, 1)


def _agreement_with_students_of_truth(
    workspace: Workspace, cohort: Cohort, truth: GroundTruth, *, seed: int
) -> np.ndarray:
    """(n, K) Dice of the labels with what students of the other fold's true masks predict."""
    labels = {label.image_id: label for label in cohort.labels}
    taught = true_cohort(workspace, labels, truth)
    found, _ = out_of_fold_probs(workspace, taught, seed=seed, name="truth-taught student", progress=tell)
    channels = found.argmax(1)
    spans = {row.id: span for row, span in zip(taught.images, taught.spans, strict=True)}
    values = np.full((len(cohort), cohort.n_structures), np.nan)
    for number, row in enumerate(cohort.images):
        for k in range(cohort.n_structures) if row.id in spans else ():
            values[number, k] = agreement(cohort.mask(number, k + 1), (channels[spans[row.id]] == k + 1).numpy())
    return values


def _cleanlab(cohort: Cohort, probs: torch.Tensor) -> np.ndarray:
    """(n, K) cleanlab scores of each structure against the rest; the mean over the slices of a volume."""
    columns = []
    for channel in range(1, cohort.n_structures + 1):
        pair = torch.stack([1 - probs[:, channel], probs[:, channel]], 1).numpy()
        of_slices, _ = get_label_quality_scores((cohort.targets == channel).long().numpy(), pair, verbose=False)
        columns.append([float(np.mean(of_slices[span])) for span in cohort.spans])
    return np.array(columns).T


def _enter(
    measured: dict[str, Any],
    noise: str,
    seed: int,
    cohort: Cohort,
    rows: Rows,
    true_dice: np.ndarray,
    sizes: np.ndarray,
) -> None:
    """Add one noise and seed to the document."""
    cases = _cases(cohort)
    areas = np.array(
        [[cohort.mask(number, k + 1).sum() for k in range(cohort.n_structures)] for number in range(len(cohort))]
    )
    for column, structure in enumerate([*cohort.config.names, UNION]):
        scores = {row: _of_union(v, areas) if structure == UNION else v[:, column] for row, v in rows.items()}
        for row, values in scores.items():
            told = measure_scores(
                values,
                true_dice[:, column],
                cases=cases,
                sizes=sizes[:, column],
                rng=np.random.default_rng(seed),
                fused=None if row == "fused" else scores["fused"],
            )
            measured.setdefault(structure, {}).setdefault(noise, {}).setdefault(row, {})[str(seed)] = told


def _cases(cohort: Cohort) -> list[str]:
    return cases_of([row.id for row in cohort.images], [row.case_id for row in cohort.images])


def _of_union(values: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Scores of all structures as one mask, as their Dice would: the mean weighted by area; an undefined one is left
    out. What is equal stays equal: the mean is that of the differences to one of the values.
    """
    is_defined = np.isfinite(values)
    weights = np.where(is_defined, np.maximum(areas, 1), 0)
    first = np.take_along_axis(values, is_defined.argmax(1)[:, None], 1)
    with np.errstate(invalid="ignore"):
        return first[:, 0] + (np.where(is_defined, values - first, 0) * weights).sum(1) / weights.sum(1)


def _choosing(workspace: Workspace, cohort: Cohort, scores: Scores, truth: GroundTruth) -> dict[str, Any]:
    """Structure to chooser to the mean Dice of what it takes, with its interval over cases."""
    taken: dict[str, dict[str, list[float]]] = {n: {c: [] for c in CHOOSERS} for n in cohort.config.names}
    cases = [case for case, label in zip(_cases(cohort), cohort.labels, strict=True) if label.image_id in truth]
    for number, label in enumerate(cohort.labels):
        if label.image_id not in truth:
            continue
        volume = workspace.store.read_image(label.image_id)
        true_map = truth.label_map(label.image_id, volume)
        found = find_candidates(workspace, volume, cohort.images[number].path)
        found = see_along_all_axes(workspace, volume, cohort.images[number].path, found)
        for k, (name, index) in enumerate(zip(cohort.config.names, cohort.config.indices, strict=True)):
            values = np.array(
                [agreement(masks_to_grid(m, volume.array.shape[:2]) > 0.5, true_map == index) for m in found[k].masks]
            )
            offered = values.copy()
            if found[k].shared is not None:
                shared = masks_to_grid(found[k].shared, volume.array.shape[:2]) > 0.5
                offered[0] = agreement(shared, true_map == index)
            asked = _asked_again(workspace, cohort, scores, number, k, volume)
            picks = {
                "box": values[0],
                "mean_of_prompts": values.mean(),
                "predicted_iou": values[np.argmax(found[k].predicted_iou)],
                "stability": values[np.argmax(found[k].stability)],
                # A structure that is not in the image has empty candidates, of which none was chosen.
                "first_pass": offered[label.info["structures"][name].get("candidate", 0)],
                "second_pass": np.nan if scores.chosen is None else offered[scores.chosen[number, k]],
                "asked_again": np.nan if asked is None else agreement(asked, true_map == index),
                "oracle": values.max(),
            }
            for chooser, value in picks.items():
                taken[name][chooser].append(float(value))
    told = {}
    for name, choosers in taken.items():
        told[name] = {}
        for chooser, values in choosers.items():
            summary = bootstrap_mean(np.array(values), cases=cases)
            told[name][chooser] = {
                "dice_mean": rounded(summary.mean),
                "dice_ci95": [rounded(v) for v in summary.ci95],
                "n": summary.n,
            }
    return told


def _asked_again(
    workspace: Workspace, cohort: Cohort, scores: Scores, number: int, k: int, volume: Volume
) -> np.ndarray | None:
    """What SAM takes of structure k when it is asked with the box of the students, on the image's grid; None where it
    is not asked."""
    asked = scores.peers and scores.peers.asked
    boxes_vox = asked.boxes(cohort.spans[number], k) if asked else None
    if boxes_vox is None:
        return None
    found, which = ask_sam(workspace, volume, k, boxes_vox)
    return masks_to_grid(found.masks[which], volume.array.shape[:2]) > 0.5


def _print_choosing(choosing: dict[str, Any]) -> None:
    for name in next(iter(choosing.values())):
        means = {c: np.mean(np.array([t[name][c]["dice_mean"] for t in choosing.values()], float)) for c in CHOOSERS}
        print(f"choosing {name}: " + ", ".join(f"{c} {m:.3f}" for c, m in means.items()))


def _print_table(measured: dict[str, Any]) -> None:
    print("| structure | noise | row | Spearman | SD over seeds | AUROC median | AUROC 0.8 | AUROC 0.9 | n |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for structure, noises in measured.items():
        for noise, rows in noises.items():
            for row, seeds in rows.items():
                told = list(seeds.values())
                rho = [np.nan if t["spearman"] is None else t["spearman"] for t in told]
                aurocs = [[np.nan if t["auroc"][k] is None else t["auroc"][k] for t in told] for k in told[0]["auroc"]]
                cells = " | ".join(f"{np.mean(a):.3f}" for a in aurocs)
                mean_sd = f"{np.mean(rho):.3f} | {np.std(rho):.3f}"
                print(f"| {structure} | {noise} | {row} | {mean_sd} | {cells} | {told[0]['n']} |")


if __name__ == "__main__":
    sys.exit(run_main(main))
