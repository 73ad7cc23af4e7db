"""The arms of the comparison over several seeds, on any data set in four folders, images or volumes.

All arms share network, steps, augmentation, averaging of weights and seeds. `huang2023` is the best of its noise rates
by the Dice on the test images, which favours it. An arm whose boxes come from the truth is `prompted` and is compared
with no student. `ablation` is samcorrect without one part each. Intervals are bootstrapped over cases, after averaging
each image over the seeds. `--box-noise` repeats three arms with boxes that are shifted and scaled by these shares.

example:
  python benchmarks/arms.py --images jsrt/images --labels jsrt/labels --test-images jsrt/test-images \\
      --test-labels jsrt/test-labels --protocol protocols/jsrt_lungs.yaml --json out/jsrt.json --pixel-mm 0.7 \\
      --box-noise 0 0.05 0.1 0.2 0.3
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    case_means,
    cases_by_name,
    open_run,
    open_test,
    open_truth,
    original_cohort,
    out_dir,
    paired,
    parse,
    parser_of,
    run_main,
    tell,
    tell_quarantined,
    write_json,
)
from noise import require_boxes, write_shifted_protocol

from samcorrect.lib.core.metrics import bootstrap_mean, rounded
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.arms import (
    by_case,
    how_training_went,
    last_student,
    sam_predictor,
    student_predictor,
    train_baseline,
    true_cohort,
    why_left_out,
)
from samcorrect.lib.loop.cohort import original_labels
from samcorrect.lib.loop.evaluation import (
    Case,
    CaseScores,
    GroundTruth,
    compare_labels,
    evaluate_cases,
    evaluate_flags,
    label_dice,
    summarise_arm,
)
from samcorrect.lib.loop.outcome import build_report
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.rounds import RunResult, run_loop
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.settings import MODULES
from samcorrect.lib.store.studies import LocalStudies

ARMS = ("sam_only", "sam_to_student", "sam_search_to_student", "huang2023", "samcorrect", "supervised")
HUANG = {f"huang2023_{rate}": {"preset": "huang2023", "huang_noise_rate": rate / 100} for rate in (25, 50, 75)}
ABLATIONS = {f"without_{m}": {"modules": ",".join(other for other in MODULES if other != m)} for m in MODULES}
NOISE_ARMS = ("sam_to_student", "huang2023_75", "samcorrect")
LABEL_FIGURES = (
    *("label_dice_before", "label_dice_chosen", "label_dice_after", "flagged_share", "flagged_precision"),
    *("flagged_recall", "flagged_precision_below_median", "flagged_recall_below_median"),
)


@dataclass
class SeedRun:
    """The arms of one seed: how each scores on the test images, and what else is told of it."""

    parsed: argparse.Namespace
    seed: int
    cases: list[Case]
    scores: dict[str, CaseScores] = field(default_factory=dict)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    def loop(self, name: str, changes: dict[str, Any], *, state: str = "", protocol: Path | None = None) -> RunResult:
        """An arm with rounds."""
        started = time.monotonic()
        workspace = self.open(state or name, protocol=protocol, **changes)
        result = run_loop(workspace, progress=tell)
        told = {"n_rounds": len(result.rounds), "stop_reason": result.stop_reason}
        told |= how_training_went(result.rounds[-1]["student"])
        self.score(name, student_predictor(last_student(workspace, result)), started, told)
        return result

    def baseline(self, name: str, workspace: Workspace, *, truth: GroundTruth | None = None) -> None:
        """A student of pseudo-labels as they are, or of the ground truth."""
        started = time.monotonic()
        if truth is None:
            cohort = original_cohort(workspace)
        else:
            cohort = true_cohort(workspace, original_labels(workspace), truth)
        trained = train_baseline(workspace, cohort, progress=tell)
        self.score(name, student_predictor(trained.student), started, how_training_went(vars(trained.curve)))

    def labelled(self, state: str, *, protocol: Path | None = None, **changes: Any) -> Workspace:
        """A workspace with pseudo-labels and nothing else."""
        workspace = self.open(state, protocol=protocol, **changes)
        pseudo_label_store(workspace, progress=tell)
        return workspace

    def open(self, state: str, *, protocol: Path | None = None, **changes: Any) -> Workspace:
        """A workspace of this seed."""
        return open_run(self.parsed, self.seed, state, protocol=protocol, **changes)

    def score(self, name: str, predictor: Any, started: float, told: dict[str, Any]) -> None:
        """Evaluate an arm on the test images."""
        indices = load_protocol(self.parsed.protocol).indices
        self.scores[name] = evaluate_cases(self.cases, predictor, indices, pixel_mm=self.parsed.pixel_mm)
        self.told[name] = {**told, "wall_s": round(time.monotonic() - started, 1)}
        dice, wall_s = np.nanmean(self.scores[name].case_dice), self.told[name]["wall_s"]
        print(f"seed {self.seed}: {name}: Dice {dice:.4f} in {wall_s} s", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every arm for every seed; the JSON file is written anew after each seed."""
    parser = parser_of(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="default all")
    parser.add_argument("--no-ablation", action="store_true", help="leave out samcorrect without one part each")
    parser.add_argument("--box-noise", type=share, nargs="+", default=[], help="shares by which boxes are moved")
    parsed = parse(parser, arguments)
    protocol = load_protocol(parsed.protocol)
    if any(parsed.box_noise):
        require_boxes(protocol)
    truth, cases, runs = open_truth(parsed), open_test(parsed), {}
    taught = [file.path for file in LocalStudies(parsed.images).scan()[0]]
    left_out = why_left_out(cases, protocol, taught) if "sam_only" in parsed.arms else {}
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
    parsed.arms = [name for name in parsed.arms if name not in left_out]
    if not parsed.arms:
        raise LabelError("no arm is left; name others with --arms")
    document: dict[str, Any] = {}
    for seed in parsed.seeds:
        runs[str(seed)] = run_seed(parsed, seed, cases, truth)
        document = {"seeds": runs, **over_seeds(list(runs.values())), "left_out": left_out}
        write_json(parsed.json, document)
    print_tables(document)
    return 0


def share(text: str) -> float:
    """A share of --box-noise. Raises argparse.ArgumentTypeError unless it is from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of a box's side; give one from 0 to below 1")
    return value


def run_seed(parsed: argparse.Namespace, seed: int, cases: list[Case], truth: GroundTruth) -> dict[str, Any]:
    """All arms of one seed; samcorrect first, so that its times are those of a run alone."""
    started, run = time.monotonic(), SeedRun(parsed, seed, cases)
    told: dict[str, Any] = {"wall_s": {}}
    box = run.labelled("box", preset="huang2023")
    tell_quarantined(box.store)
    if "samcorrect" in parsed.arms:
        result = run.loop("samcorrect", {})
        told = _of_labels(run.open("samcorrect"), result, box, truth)
        told["wall_s"] = dict(result.seconds)
    for name, changes in HUANG.items() if "huang2023" in parsed.arms else ():
        run.loop(name, changes)
    if "sam_to_student" in parsed.arms:
        run.baseline("sam_to_student", box)
    if "sam_search_to_student" in parsed.arms:
        run.baseline("sam_search_to_student", run.labelled("samcorrect"))
    if "supervised" in parsed.arms:
        run.baseline("supervised", box, truth=truth)
    if "sam_only" in parsed.arms:
        run.score("sam_only", sam_predictor(box.with_settings(n_candidates=1)), time.monotonic(), {})
    for name, changes in ABLATIONS.items() if "samcorrect" in parsed.arms and not parsed.no_ablation else ():
        run.loop(name, changes)
    told |= _tables(run)
    told["label_noise"] = {f"{share:g}": _with_noise(run, share, box) for share in parsed.box_noise}
    told["wall_s"]["total"] = round(time.monotonic() - started, 1)
    return told


def _of_labels(workspace: Workspace, result: RunResult, box: Workspace, truth: GroundTruth) -> dict[str, Any]:
    """The report of a run, and what its labels are worth: the box as given, chosen, and after the rounds."""
    before = label_dice(box, original_labels(box), truth)
    chosen, after = (label_dice(workspace, labels, truth) for labels in (result.labels_first, result.labels_last))
    stages = {"before": before, "chosen": chosen, "after": after}
    return {
        **build_report(workspace, result, truth, None)[0],
        **{f"label_dice_{stage}": rounded(np.nanmean(np.array([*of.values()]))) for stage, of in stages.items()},
        "labels": {
            "before to after": compare_labels({i: before[i] for i in after if i in before}, after),
            "chosen to after": compare_labels(chosen, after),
        },
        **evaluate_flags(result.rounds[0]["flagged"], chosen),
    }


def _tables(run: SeedRun) -> dict[str, Any]:
    """`arms`, `ablation`, `comparisons`, `recovered` and `case_dice` of what a seed has run."""
    protocol = load_protocol(run.parsed.protocol)
    boxes_of_truth = any(s.prompt.source == "boxes_file" for s in protocol.structures)
    summaries = {}
    for name, scores in run.scores.items():
        is_prompted = name == "sam_only"
        summary = summarise_arm(scores, protocol.names, is_prompted=is_prompted)
        summaries[name] = {**summary, "prompted": is_prompted and boxes_of_truth, **run.told[name]}
    case_dice = {name: by_case(run.cases, scores) for name, scores in run.scores.items()}
    rates = [name for name in HUANG if name in summaries]
    if rates:
        best = max(rates, key=lambda name: summaries[name]["dice_mean"] or 0)
        summaries["huang2023"] = {**summaries[best], "chosen": best}
        case_dice["huang2023"] = case_dice[best]
    order = [name for name in (*ARMS, *HUANG) if name in summaries]
    return {
        "arms": {name: summaries[name] for name in order},
        "ablation": {name: summaries[name] for name in ABLATIONS if name in summaries},
        "case_dice": case_dice,
        **_differences(
            {name: case_means([values]) for name, values in case_dice.items()},
            cases_by_name(case.image_id for case in run.cases),
        ),
    }


def _differences(means: dict[str, np.ndarray], cases: Sequence[str]) -> dict[str, Any]:
    """Paired comparisons of (n,) Dice of images, none with what is prompted; and the share of the gap recovered."""
    students = [name for name in (*ARMS, *HUANG, *ABLATIONS) if name in means and name != "sam_only"]
    pairs = [("samcorrect", name) for name in students if name != "samcorrect"]
    pairs += [("sam_search_to_student", "sam_to_student"), ("supervised", "sam_to_student")]
    comparisons = {f"{a} - {b}": paired(means[a], means[b], cases=cases) for a, b in pairs if a in means and b in means}
    wanted = [means.get(name) for name in ("samcorrect", "sam_to_student", "supervised")]
    share = None if any(m is None for m in wanted) else recovered(*wanted, cases=cases)
    return {"comparisons": comparisons, "recovered": share}


def recovered(
    ours: np.ndarray, floor: np.ndarray, ceiling: np.ndarray, *, cases: Sequence[str] | None = None
) -> float | None:
    """Share of the gap between two arms, (n,) Dice each, that a third closes; None unless the gap's interval over the
    images' cases is above 0.
    """
    gap = bootstrap_mean(ceiling - floor, cases=cases)
    return rounded(bootstrap_mean(ours - floor).mean / gap.mean) if gap.ci95[0] > 0 else None


def _with_noise(run: SeedRun, share: float, box: Workspace) -> dict[str, Any]:
    """Arm to its mean Dice where the boxes of the training images are off by a share; at 0 the arms as they are."""
    prefix, protocol = "", None
    if share > 0:
        prefix = f"noise{share:g}-"
        protocol = write_shifted_protocol(box, out_dir(run.parsed) / f"seed{run.seed}" / f"boxes{share:g}", share=share)
    noisy = SeedRun(run.parsed, run.seed, run.cases)
    noisy.baseline("sam_to_student", noisy.labelled(f"{prefix}box", protocol=protocol, preset="huang2023"))
    noisy.loop("huang2023_75", HUANG["huang2023_75"], state=f"{prefix}huang2023_75", protocol=protocol)
    noisy.loop("samcorrect", {}, state=f"{prefix}samcorrect", protocol=protocol)
    return {
        **{name: rounded(np.nanmean(noisy.scores[name].case_dice)) for name in NOISE_ARMS},
        "case_dice": {name: by_case(run.cases, noisy.scores[name]) for name in NOISE_ARMS},
        "students": {name: how_training_went(noisy.told[name]) for name in NOISE_ARMS},
    }


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The tables of all seeds, each image averaged over them."""
    cases = cases_by_name(next(iter(runs[0]["case_dice"].values())))
    means = {name: case_means([run["case_dice"][name] for run in runs]) for name in runs[0]["case_dice"]}
    told = {
        table: {
            name: _arm_over_seeds([run[table][name] for run in runs], means[name], cases) for name in runs[0][table]
        }
        for table in ("arms", "ablation")
    }
    figures = {key: [run[key] for run in runs] for key in LABEL_FIGURES if key in runs[0]}
    labels = {key: [run["labels"][key] for run in runs] for key in runs[0].get("labels", ())}
    noise = {share: _noise_over_seeds([run["label_noise"][share] for run in runs]) for share in runs[0]["label_noise"]}
    return {
        **told,
        **_differences(means, cases),
        **{key: _mean(values) for key, values in figures.items()},
        "labels": {
            key: {name: _mean([of[name] for of in values]) for name in values[0]} for key, values in labels.items()
        },
        "label_noise": noise,
    }


def _arm_over_seeds(told: list[dict[str, Any]], means: np.ndarray, cases: Sequence[str]) -> dict[str, Any]:
    of_cases = bootstrap_mean(means, cases=cases)
    by_seed = [of["dice_mean"] for of in told]
    others = [key for key in told[0] if key.endswith("_mean") and key != "dice_mean"]
    structures = {
        name: {key: _mean([of["structures"][name][key] for of in told]) for key in values if key.endswith("_mean")}
        for name, values in told[0]["structures"].items()
    }
    return {
        "dice_mean": rounded(of_cases.mean),
        "dice_sd_over_cases": rounded(of_cases.sd),
        "dice_sd_over_seeds": rounded(float(np.std(by_seed, ddof=1))) if len(told) > 1 else None,
        "dice_ci95": [rounded(v) for v in of_cases.ci95],
        **{key: _mean([of[key] for of in told]) for key in others},
        "n": of_cases.n,
        "structures": structures,
        "is_prompted": told[0]["is_prompted"],
        "prompted": told[0]["prompted"],
        **{key: [of.get(key) for of in told] for key in ("chosen", "n_restarts", "fault") if key in told[0]},
        "wall_s": _mean([of["wall_s"] for of in told]),
    }


def _noise_over_seeds(told: list[dict[str, Any]]) -> dict[str, Any]:
    means = {name: case_means([of["case_dice"][name] for of in told]) for name in NOISE_ARMS}
    cases = cases_by_name(told[0]["case_dice"]["samcorrect"])
    pairs = (("samcorrect", other) for other in NOISE_ARMS if other != "samcorrect")
    return {
        **{name: _mean([of[name] for of in told]) for name in NOISE_ARMS},
        "comparisons": {f"{a} - {b}": paired(means[a], means[b], cases=cases) for a, b in pairs},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return rounded(float(np.mean(known))) if known else None


def print_tables(document: dict[str, Any]) -> None:
    """Print the tables of all seeds as Markdown."""
    print("| arm | Dice | 95% interval | SD over cases | SD over seeds | surface Dice | 95% Hausdorff | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, arm in {**document["arms"], **document["ablation"]}.items():
        low, high = arm["dice_ci95"]
        mm, px = arm["hausdorff95_mm_mean"], arm["hausdorff95_px_mean"]
        distance = f"{mm:.2f} mm" if mm is not None else "" if px is None else f"{px:.1f} px"
        seeds = "" if arm["dice_sd_over_seeds"] is None else f"{arm['dice_sd_over_seeds']:.4f}"
        title = f"{name} (prompted)" if arm["is_prompted"] else name
        dice = f"{arm['dice_mean']:.4f} | {low:.4f} to {high:.4f} | {arm['dice_sd_over_cases'] or 0:.4f} | {seeds}"
        print(f"| {title} | {dice} | {arm['surface_dice_mean']:.4f} | {distance} | {arm['wall_s']:.0f} |")
    for name, told in document["comparisons"].items():
        print(f"{name}: {told['dice_difference_mean']:+.4f} [{told['ci95'][0]:+.4f}, {told['ci95'][1]:+.4f}]")
    print({key: document[key] for key in ("recovered", *LABEL_FIGURES) if key in document})
    for share, told in document["label_noise"].items():
        print(f"boxes off by {share}: { {name: told[name] for name in NOISE_ARMS} }")
    for seed, run in document["seeds"].items():
        if "labels" in run:
            print(f"seed {seed}: {run['labels']} in {run['wall_s']}")


if __name__ == "__main__":
    sys.exit(run_main(main))
