"""What the benchmarks over several runs share: options, workspaces that share their trainings, and test images."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samcorrect.lib.core.metrics import bootstrap_mean, rounded
from samcorrect.lib.errors import LabelError, SamCorrectError
from samcorrect.lib.loop.cohort import Cohort, load_cohort, original_labels
from samcorrect.lib.loop.evaluation import Case, GroundTruth, load_cases
from samcorrect.lib.loop.students import MODELS_NAME, cases_of
from samcorrect.lib.loop.workspace import Workspace, open_workspace
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.settings import load_settings
from samcorrect.lib.store.files import write_bytes_atomically
from samcorrect.lib.store.image_ids import case_of
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.studies import LocalStudies

SETTINGS = ("rounds", "student_steps", "judge_steps")
# Of images in one line.
MAX_TOLD = 10


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that name a data set in four folders, its protocol, seeds and where results go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "labels", "test-images", "test-labels", "protocol", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, help="states, models and caches, kept for the next run; default beside the JSON file"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name in SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"setting {name}; default the product's")
    parser.add_argument("--pixel-mm", type=float, help="side of a pixel of PNG and JPEG images, which do not say")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends with an error, before any work, where the results or the states have no place."""
    parsed = parser.parse_args(arguments)
    if parsed.json.is_dir():
        parser.error(f"--json {parsed.json} is a folder; give the name of a file in it")
    folder = out_dir(parsed)
    if folder == parsed.json:
        parser.error(f"the states would lie in --json {parsed.json} itself; give it the suffix .json, or give --out")
    if folder.exists() and not folder.is_dir():
        parser.error(f"the states belong in the folder {folder}, which is a file; give another --out")
    for name in ("images", "labels", "test_images", "test_labels"):
        given = getattr(parsed, name, None)
        if given is not None and folder.resolve().is_relative_to(given.resolve()):
            parser.error(f"the states would lie in {folder}, among what is read from {given}; give another --out")
    return parsed


def out_dir(parsed: argparse.Namespace) -> Path:
    """The folder of a benchmark's states."""
    return parsed.out or parsed.json.with_suffix("")


def open_run(
    parsed: argparse.Namespace, seed: int, name: str, *, protocol: Path | None = None, **changes: Any
) -> Workspace:
    """A workspace over the training images in a state of its own.

    Embeddings, candidates and trainings are kept by their inputs, so all runs and seeds of a benchmark share them.

    Args:
        parsed: The options.
        seed: Of the run.
        name: Of its state.
        protocol: Another one than that of the options.
        changes: Settings besides those of the options.
    """
    root = out_dir(parsed)
    state_dir, models_dir = root / f"seed{seed}" / name, root / MODELS_NAME
    given = {setting: getattr(parsed, setting, None) for setting in SETTINGS}
    given |= {"protocol": protocol or parsed.protocol, "state": state_dir, "seed": seed, **changes}
    workspace = open_workspace(parsed.images, load_settings(given), cache_dir=root / "cache")
    models_dir.mkdir(parents=True, exist_ok=True)
    if not (state_dir / MODELS_NAME).exists():
        (state_dir / MODELS_NAME).symlink_to(models_dir.absolute())
    return workspace


def open_test(parsed: argparse.Namespace) -> list[Case]:
    """The test images with their truth; says on the console which have none, and which cannot be read."""
    store = LabelStore(LocalStudies(parsed.test_images), out_dir(parsed) / "test")
    store.rescan()
    truth = GroundTruth(parsed.test_labels)
    lacking = [row.path for row in store.ledger.images() if row.id not in truth]
    cases = load_cases(store, truth, load_protocol(parsed.protocol))
    if lacking:
        print(f"left out: {_lacking(lacking, 'test image', truth)}", file=sys.stderr)
    tell_quarantined(store, "test image")
    store.ledger.close()
    return cases


def open_truth(parsed: argparse.Namespace, *, is_needed_of_all: bool = False) -> GroundTruth:
    """The truth of the training images, checked; says on the console of which images there is none.

    Raises:
        LabelError: As `GroundTruth.check`, or where every image needs one and some have none.
    """
    truth = GroundTruth(parsed.labels)
    lacking = truth.check(LocalStudies(parsed.images), load_protocol(parsed.protocol))
    told = _lacking(lacking, "image", truth)
    if lacking and is_needed_of_all:
        raise LabelError(f"{told}; here a person approves each of them")
    if lacking:
        print(told, file=sys.stderr)
    return truth


def _lacking(paths: Sequence[str], kind: str, truth: GroundTruth) -> str:
    more = f" and {len(paths) - MAX_TOLD} more" if len(paths) > MAX_TOLD else ""
    return f"{len(paths)} {kind}(s) have no ground truth in {truth.folder}: {', '.join(paths[:MAX_TOLD])}{more}"


def tell_quarantined(store: LabelStore, kind: str = "image") -> None:
    """Say on the console which images were set aside, and why."""
    for image_id, reason in store.ledger.quarantined():
        print(f"{kind} {image_id} is left out: {reason}", file=sys.stderr)


def run_main(main: Callable[[], int]) -> int:
    """Run a benchmark; a fault of the input is one line, and returns 1."""
    try:
        return main()
    except (SamCorrectError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def original_cohort(workspace: Workspace) -> Cohort:
    """All images with their pseudo-labels."""
    return load_cohort(workspace, original_labels(workspace))


def tell(stage: str, done: int, total: int) -> None:
    """A progress that says which stages are over."""
    if done == total:
        print(f"  {stage}: {done}", file=sys.stderr, flush=True)


def write_json(path: Path, document: Any) -> None:
    """Write a document, with the folder it lies in, in one step: a run that is killed keeps its earlier seeds."""
    write_bytes_atomically(path, json.dumps(document, indent=1, allow_nan=False).encode())


def case_means(by_seed: list[dict[str, float | None]]) -> np.ndarray:
    """(n,) mean over the seeds of each image's value; nan where no seed has one."""
    values = np.array([[of_seed[case] for case in by_seed[0]] for of_seed in by_seed], dtype=np.float64)
    known = np.isfinite(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def cases_by_name(image_ids: Iterable[str]) -> list[str]:
    """The case of each image of a folder, by the product's rule: its subfolder, or itself where these are too few."""
    ids = list(image_ids)
    return cases_of(ids, [case_of(image_id) for image_id in ids])


def paired(one: np.ndarray, other: np.ndarray, *, cases: Sequence[str] | None = None) -> dict[str, Any]:
    """Mean of the (n,) differences one - other of images, with its 95% bootstrap interval over their cases; without
    `cases` each image is one.
    """
    told = bootstrap_mean(one - other, cases=cases)
    return {"dice_difference_mean": rounded(told.mean), "ci95": [rounded(v) for v in told.ci95], "n": told.n}
