"""The arms of the comparison over several seeds, on any data set in four folders.

All arms share network, steps, augmentation and seed. Intervals are bootstrapped over cases, after averaging each case
over the seeds.

example:
  python benchmarks/arms.py --images jsrt/images --labels jsrt/labels --test-images jsrt/test-images \\
      --test-labels jsrt/test-labels --protocol protocols/jsrt_lungs.yaml --out out/jsrt --json out/jsrt.json
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.core.metrics import bootstrap_mean
from samcorrect.lib.loop.arms import COMPARISONS, compare
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.outcome import write_report
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loop and its arms for each seed and write the table."""
    parsed = _parser().parse_args(arguments)
    runs = {}
    for seed in parsed.seeds:
        started = time.monotonic()
        runs[str(seed)] = _run_seed(parsed, seed)
        runs[str(seed)]["wall_s"] = round(time.monotonic() - started, 1)
        print(f"seed {seed}: {runs[str(seed)]['wall_s']} s", file=sys.stderr)
    document = {"seeds": runs, **_over_seeds(list(runs.values()))}
    parsed.json.parent.mkdir(parents=True, exist_ok=True)
    parsed.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    _print_tables(document)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "labels", "test-images", "test-labels", "protocol", "out", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--student-steps", type=int, default=400)
    return parser


def _run_seed(parsed: argparse.Namespace, seed: int) -> dict[str, Any]:
    out_dir = parsed.out / f"seed{seed}"
    given = {"protocol": parsed.protocol, "state": out_dir / "state", "seed": seed}
    settings = load_settings(given | {"rounds": parsed.rounds, "student_steps": parsed.student_steps})
    # The embeddings do not depend on the seed.
    workspace = open_workspace(parsed.images, settings, cache_dir=parsed.out / "cache")
    truth = GroundTruth(parsed.labels)

    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            print(f"seed {seed}: {stage}: {done}", file=sys.stderr, flush=True)

    result = run_loop(workspace, progress=progress)
    test = (parsed.test_images, GroundTruth(parsed.test_labels))
    comparison = compare(workspace, result, truth, out_dir=out_dir, test=test, progress=progress)
    json_path, _ = write_report(workspace, result, out_dir, truth=truth, comparison=comparison)
    return json.loads(json_path.read_text(encoding="utf-8"))


def _over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    arms = {}
    for name in runs[0]["arms"]:
        per_case = _case_means(runs, name)
        of_cases = bootstrap_mean(per_case)
        by_seed = [run["arms"][name]["dice_mean"] for run in runs]
        arms[name] = {
            "dice_mean": of_cases.mean,
            "dice_sd_over_cases": of_cases.sd,
            "dice_sd_over_seeds": float(np.std(by_seed, ddof=1)) if len(runs) > 1 else None,
            "dice_ci95": of_cases.ci95,
            "surface_dice_mean": float(np.mean([run["arms"][name]["surface_dice_mean"] for run in runs])),
            "n": of_cases.n,
        }
    comparisons = {}
    for one, other in COMPARISONS:
        difference = bootstrap_mean(_case_means(runs, one) - _case_means(runs, other))
        comparisons[f"{one} - {other}"] = {"dice_difference_mean": difference.mean, "ci95": difference.ci95}
    return {"arms": arms, "comparisons": comparisons}


def _case_means(runs: list[dict[str, Any]], arm: str) -> np.ndarray:
    cases = runs[0]["case_dice"][arm]
    values = [[run["case_dice"][arm][case] for run in runs] for case in cases]
    return np.nanmean(np.array(values, dtype=np.float64), axis=1)


def _print_tables(document: dict[str, Any]) -> None:
    print("| arm | Dice | 95% interval | SD over cases | SD over seeds | surface Dice |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, arm in document["arms"].items():
        low, high = arm["dice_ci95"]
        seeds = "" if arm["dice_sd_over_seeds"] is None else f"{arm['dice_sd_over_seeds']:.4f}"
        dice = f"{arm['dice_mean']:.4f} | {low:.4f} to {high:.4f} | {arm['dice_sd_over_cases']:.4f} | {seeds}"
        print(f"| {name} | {dice} | {arm['surface_dice_mean']:.4f} |")
    for name, told in document["comparisons"].items():
        print(f"{name}: {told['dice_difference_mean']:+.4f} [{told['ci95'][0]:+.4f}, {told['ci95'][1]:+.4f}]")
    for seed, run in document["seeds"].items():
        quality, correction = run["quality"], run["correction"]
        told = {k: quality[k] for k in ("spearman", "auroc_dice_below_0.8", "auroc_dice_below_0.9")}
        told |= correction
        print(f"seed {seed}: {told} in {run['wall_s']} s")


if __name__ == "__main__":
    sys.exit(main())
