"""A person in the loop, simulated: the Dice of the student against the number of labels that a person approved.

Approving replaces a label by the ground truth, through the store's own submit. Whose turn it is says one of the rules
  ours     the product's queue: worst score first, and its audit share at random;
  random   the product's queue in its random order;
  entropy  MONAI Label's epistemic rule: highest entropy of the mean of ten passes with dropout on;
  loss     lowest exp(-loss) of arXiv 2308.00883, its faults repaired.
All start from the same scored labels, and the order is fixed there. After each number of approvals the loop's own
recipe trains a student; no approval counts as an audit, so the promotion gate holds out none and each rule teaches with
all that it served. `full_loop` is samcorrect's whole loop where `--loop-approvals` labels were approved before its
first round, as a hospital would look at the worst and then let it run; 0 is the loop with nobody in it.
"""

import argparse
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import (
    case_means,
    cases_by_name,
    open_run,
    open_test,
    open_truth,
    out_dir,
    paired,
    parse,
    parser_of,
    tell,
    tell_quarantined,
    write_json,
)

from samcorrect.lib.core.metrics import bootstrap_mean, rounded
from samcorrect.lib.errors import LabelError
from samcorrect.lib.loop.arms import by_case, last_student, student_predictor
from samcorrect.lib.loop.cohort import Cohort, best_labels, load_cohort
from samcorrect.lib.loop.evaluation import Case, GroundTruth, evaluate_cases, label_dice
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.queue import next_image
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.scoring import HUANG_DROPOUT, score_cohort
from samcorrect.lib.loop.students import SEED_STRIDE, train_on
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.student import Student, predict_frames, with_dropout_on
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.store.schema import TAG_FINAL
from samcorrect.lib.store.studies import LocalStudies
from samcorrect.lib.store.volumes import write_label_map

RULES = ("ours", "random", "entropy", "loss")
STRATEGIES = {"ours": "lowest_quality", "random": "random"}
# As MONAI Label 0.8.5 has them (tasks/scoring/epistemic.py).
N_PASSES, MIN_PROB = 10, 5e-5
PERSON = "simulated"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every rule for every seed; the JSON file is written anew after each seed."""
    parser = parser_of(__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="default all")
    parser.add_argument("--approvals", type=int, nargs="+", default=[0, 5, 10, 20, 40], help="numbers of approvals")
    parser.add_argument("--after-rounds", type=int, default=0, help="rounds of the loop before the first approval")
    parser.add_argument("--loop-approvals", type=int, default=10, help="of the full loop; 0 leaves it out")
    parser.add_argument("--loop-rules", nargs="+", choices=RULES, default=["ours", "random"], help="of the full loop")
    parser.add_argument("--plot", type=Path, help="draw the curves into this PNG file")
    parsed = parse(parser, arguments)
    truth, cases, runs, document = open_truth(parsed, is_needed_of_all=True), open_test(parsed), {}, {}
    clip_approvals(parsed, len(LocalStudies(parsed.images).scan()[0]))
    for seed in parsed.seeds:
        runs[str(seed)] = run_seed(parsed, seed, cases, truth)
        document = {"seeds": runs, **over_seeds(list(runs.values()), cases_by_name(c.image_id for c in cases))}
        write_json(parsed.json, document)
        if parsed.plot:
            plot(parsed.plot, document["curves"])
    print_tables(document)
    return 0


def clip_approvals(parsed: argparse.Namespace, n_images: int) -> None:
    """Leave out numbers of approvals that a set of images has no labels for; says on the console which.

    Raises:
        LabelError: None is left, or one is negative.
    """
    wanted = sorted({*parsed.approvals, parsed.loop_approvals})
    if wanted[0] < 0:
        raise LabelError(f"{wanted[0]} labels cannot be approved; give 0 or more")
    beyond = [n for n in wanted if n > n_images]
    if beyond:
        told = ", ".join(map(str, beyond))
        print(f"there are {n_images} images, so {told} approvals are left out", file=sys.stderr)
    parsed.approvals = [n for n in parsed.approvals if n <= n_images]
    parsed.loop_approvals = 0 if parsed.loop_approvals > n_images else parsed.loop_approvals
    if not parsed.approvals:
        raise LabelError(f"no number of approvals is left for {n_images} images; give smaller ones with --approvals")


def run_seed(parsed: argparse.Namespace, seed: int, cases: list[Case], truth: GroundTruth) -> dict[str, Any]:
    """The curve of every rule, and the full loop."""
    started = time.monotonic()
    indices = load_protocol(parsed.protocol).indices

    def dice_of(student: Student) -> dict[str, float | None]:
        return by_case(cases, evaluate_cases(cases, student_predictor(student), indices))

    base, orders = _base(parsed, seed)
    told: dict[str, Any] = {"curves": {}, "served_dice_mean": {}, "full_loop": {}}
    for rule in parsed.rules:
        workspace = _copy(parsed, seed, base, rule)
        before = label_dice(workspace, best_labels(workspace), truth)
        served = approve(workspace, rule, orders.get(rule, []), truth)
        curve, done = {}, []
        for n_approved in sorted(set(parsed.approvals)):
            done += islice(served, n_approved - len(done))
            digest = train_student(workspace, progress=tell)["digest"]
            curve[str(n_approved)] = dice_of(_student(workspace, digest))
            _say(seed, f"{rule}, {n_approved} approved", curve[str(n_approved)])
        told["curves"][rule] = curve
        told["served_dice_mean"][rule] = rounded(np.nanmean([before[i] for i in done])) if done else None
        workspace.store.ledger.close()
    for rule in ["nobody", *parsed.loop_rules] if parsed.loop_approvals else []:
        workspace = _copy(parsed, seed, base, f"loop-{rule}")
        if rule != "nobody":
            served = approve(workspace, rule, orders.get(rule, []), truth)
            list(islice(served, parsed.loop_approvals))
        told["full_loop"][rule] = dice_of(last_student(workspace, run_loop(workspace, progress=tell)))
        _say(seed, f"full loop, {rule}", told["full_loop"][rule])
        workspace.store.ledger.close()
    return {**told, "wall_s": round(time.monotonic() - started, 1)}


def approve(workspace: Workspace, rule: str, order: Sequence[str], truth: GroundTruth) -> Iterator[str]:
    """Approve one label after the other, each when the next image id is asked for; ends where all are approved.

    Args:
        workspace: Labels and scores.
        rule: Of RULES; those of the queue ask it.
        order: Image ids of the other rules.
        truth: What the person submits.
    """
    store, indices = workspace.store, workspace.require_protocol().indices
    rng, waiting = np.random.default_rng(workspace.settings.seed), iter(order)
    path = store.state_dir / "submitted.nii.gz"
    while True:
        if rule in STRATEGIES:
            served = next_image(workspace, PERSON, strategy=STRATEGIES[rule], rng=rng)
            image_id = None if served is None else served.image_id
        else:
            image_id = next(waiting, None)
        if image_id is None:
            return
        # What was not leased does not say that it is an audit.
        store.ledger.release(PERSON, now=time.time())
        volume = store.read_image(image_id)
        true_map = truth.label_map(image_id, volume)
        write_label_map(path, np.where(np.isin(true_map, indices), true_map, 0).astype(np.uint8), volume.affine)
        store.submit_label(image_id, path, tag=TAG_FINAL, user=PERSON)
        yield image_id


def _base(parsed: argparse.Namespace, seed: int) -> tuple[Path, dict[str, list[str]]]:
    """A state of scored labels that nobody approved, made once, and the orders that are decided there."""
    name = f"base{parsed.after_rounds}"
    random.seed(seed)  # an image's place in the queue's random order is drawn from it when the store is first opened
    workspace = open_run(parsed, seed, name, **({"rounds": parsed.after_rounds} if parsed.after_rounds else {}))
    if parsed.after_rounds:
        run_loop(workspace, progress=tell)
    else:
        pseudo_label_store(workspace, progress=tell)
        score_store(workspace, progress=tell)
    cohort, orders = load_cohort(workspace, best_labels(workspace)), {}
    wanted = {*parsed.rules, *parsed.loop_rules}
    if "entropy" in wanted:
        orders["entropy"] = _in_order(cohort, -entropies(workspace, cohort, seed=seed))
    if "loss" in wanted:
        huang = workspace.with_settings(preset="huang2023")
        orders["loss"] = _in_order(cohort, score_cohort(huang, cohort, seed=seed, progress=tell).scores)
    tell_quarantined(workspace.store)
    clip_approvals(parsed, len(cohort))
    workspace.store.ledger.close()
    return workspace.store.state_dir, orders


def entropies(workspace: Workspace, cohort: Cohort, *, seed: int) -> np.ndarray:
    """(n,) MONAI Label's epistemic score of each image: the entropy of the mean of passes with dropout on, summed over
    the structures, averaged over the voxels. Upstream turns its batch normalisation to training too; here it stays.
    """
    everything, offset = np.arange(len(cohort)), 11 * SEED_STRIDE
    trained = train_on(
        workspace, cohort, everything, name="dropout", seed=seed + offset, dropout=HUANG_DROPOUT, progress=tell
    )
    network = with_dropout_on(trained.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        passes = sum(predict_frames(network, cohort.frames) for _ in range(N_PASSES))
    probs = (passes / N_PASSES)[:, 1:].clamp(min=MIN_PROB)
    maps = -(probs * probs.log()).sum(1)
    return np.array([float(maps[span].mean()) for span in cohort.spans])


def _in_order(cohort: Cohort, values: np.ndarray) -> list[str]:
    """Image ids, the lowest value first."""
    return [cohort.images[number].id for number in np.argsort(values, kind="stable")]


def _copy(parsed: argparse.Namespace, seed: int, base: Path, name: str) -> Workspace:
    """A workspace over a copy of a state, without what an earlier run of this benchmark left in it."""
    state_dir = out_dir(parsed) / f"seed{seed}" / name
    shutil.rmtree(state_dir, ignore_errors=True)
    shutil.copytree(base, state_dir, symlinks=True)
    return open_run(parsed, seed, name)


def _student(workspace: Workspace, digest: str) -> Student:
    return workspace.load_student(next(row for row in workspace.store.ledger.models() if row.digest == digest))


def _say(seed: int, what: str, case_dice: dict[str, float | None]) -> None:
    mean = np.nanmean(np.array([*case_dice.values()], dtype=np.float64))
    print(f"seed {seed}: {what}: Dice {mean:.4f}", file=sys.stderr, flush=True)


def over_seeds(runs: list[dict[str, Any]], cases: Sequence[str]) -> dict[str, Any]:
    """Curves and paired differences of all seeds, each image averaged over them, with intervals over (n,) cases."""
    means = {
        rule: {n: case_means([run["curves"][rule][n] for run in runs]) for n in curve}
        for rule, curve in runs[0]["curves"].items()
    }
    others = [rule for rule in means if rule != "ours"]
    comparisons = {
        n: {f"ours - {rule}": paired(ours, means[rule][n], cases=cases) for rule in others if n in means[rule]}
        for n, ours in means.get("ours", {}).items()
    }
    loops = {rule: case_means([run["full_loop"][rule] for run in runs]) for rule in runs[0]["full_loop"]}
    pairs = [(a, b) for a, b in (("ours", "nobody"), ("ours", "random")) if a in loops and b in loops]
    return {
        "curves": {rule: {n: _summary(values, cases) for n, values in curve.items()} for rule, curve in means.items()},
        "comparisons": comparisons,
        "n_to_match": {rule: n_to_match(means["ours"], means[rule]) for rule in others if "ours" in means},
        "full_loop": {rule: _summary(values, cases) for rule, values in loops.items()},
        "full_loop_comparisons": {f"{a} - {b}": paired(loops[a], loops[b], cases=cases) for a, b in pairs},
    }


def n_to_match(ours: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, int | None]:
    """For each number of approvals of ours, the smallest measured one from which another rule reaches its mean Dice;
    None where none does.
    """
    reached = {int(n): float(np.nanmean(values)) for n, values in other.items()}
    return {
        n: min((k for k, dice in reached.items() if dice >= np.nanmean(values)), default=None)
        for n, values in ours.items()
    }


def _summary(values: np.ndarray, cases: Sequence[str]) -> dict[str, Any]:
    told = bootstrap_mean(values, cases=cases)
    return {"dice_mean": rounded(told.mean), "dice_ci95": [rounded(v) for v in told.ci95], "n": told.n}


def plot(path: Path, curves: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Draw the curves with their intervals over the test images into a PNG file."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for rule, curve in curves.items():
        approvals = [int(n) for n in curve]
        low, high = np.array([told["dice_ci95"] for told in curve.values()]).T
        line = axes.plot(approvals, [told["dice_mean"] for told in curve.values()], marker="o", label=rule)[0]
        axes.fill_between(approvals, low, high, color=line.get_color(), alpha=0.1, linewidth=0)
    axes.set(xlabel="labels approved by a person", ylabel="Dice of the student on the test images")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def print_tables(document: dict[str, Any]) -> None:
    """Print the curves of all seeds as Markdown, and what is compared with what."""
    numbers = list(next(iter(document["curves"].values()), {}))
    print(f"| rule | {' | '.join(numbers)} |\n| --- {'| --- ' * len(numbers)}|")
    for rule, curve in document["curves"].items():
        cells = [f"{curve[n]['dice_mean']:.4f}" if n in curve else "" for n in numbers]
        print(f"| {rule} | {' | '.join(cells)} |")
    for n, told in document["comparisons"].items():
        for name, of in told.items():
            low, high = of["ci95"]
            print(f"{n} approved, {name}: {of['dice_difference_mean']:+.4f} [{low:+.4f}, {high:+.4f}]")
    print(f"approvals that reach what ours does: {document['n_to_match']}")
    for rule, told in document["full_loop"].items():
        print(f"full loop, {rule}: {told['dice_mean']:.4f} {told['dice_ci95']}")
    print(f"full loop: {document['full_loop_comparisons']}")
