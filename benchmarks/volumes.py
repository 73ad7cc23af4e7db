"""A volume from one box on the middle slice of a structure, beside a true box in every slice (the upper bound).

The box is that of the true mask in the middle slice of its extent along the slice axis; nothing else is told.

example:
  python benchmarks/volumes.py --images hippocampus/test-images --labels hippocampus/test-labels --merged --json v.json
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import cases_by_name

from samcorrect.lib.core.boxes import box_of_mask
from samcorrect.lib.core.metrics import bootstrap_mean, dice
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.prompted import Prompts, segment_prompts
from samcorrect.lib.loop.workspace import Workspace, open_workspace
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.volumes import Volume

ONE_BOX, TRUE_BOXES = "one box", "true boxes"
MERGED = "merged"


def main(arguments: Sequence[str] | None = None) -> int:
    """Segment every structure of every volume, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of volumes")
    parser.add_argument("--labels", type=Path, required=True, help="folder of their true label maps")
    parser.add_argument("--merged", action="store_true", help="also all structures as one")
    parser.add_argument("--axis", type=int, choices=(0, 1, 2), default=2, help="slice axis (default: %(default)s)")
    parser.add_argument("--n", type=int, help="only the first volumes")
    parser.add_argument("--cache", type=Path, help="keeps SAM's embeddings between runs: times are then of warm ones")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as state:
        workspace = open_workspace(parsed.images, Settings(state=Path(state), threads=1), cache_dir=parsed.cache)
        truth = GroundTruth(parsed.labels)
        told = measure(workspace, truth, axis=parsed.axis, with_merged=parsed.merged, n_volumes=parsed.n)
        workspace.store.ledger.close()
    for name, of in told.items():
        for way in (ONE_BOX, TRUE_BOXES):
            mean = of[way]["dice"]
            print(
                f"| {name} (n = {of['n']}) | {way} | Dice {mean['mean']:.3f} (SD {mean['sd'] or 0:.3f}) | "
                f"{of[way]['seconds']:.1f} s a volume, of {of['slices']:.0f} slices |"
            )
    if parsed.json:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        parsed.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


def measure(
    workspace: Workspace, truth: GroundTruth, *, axis: int = 2, with_merged: bool = False, n_volumes: int | None = None
) -> dict[str, Any]:
    """Structure to `n`, its mean number of `slices`, and by way of prompting the `dice` and mean `seconds`."""
    values: dict[str, list[tuple[float, float, float, float, int]]] = {}
    cases: dict[str, list[str]] = {}
    rows = [row for row in workspace.store.ledger.images() if row.id in truth][:n_volumes]
    for done, (row, case) in enumerate(zip(rows, cases_by_name(row.id for row in rows), strict=True), start=1):
        volume = workspace.store.read_image(row.id)
        label_map = truth.label_map(row.id, volume)
        masks = {f"value {v}": label_map == v for v in np.setdiff1d(np.unique(label_map), [0])}
        if with_merged:
            masks = {MERGED: label_map > 0, **masks}
        for name, mask in masks.items():
            cases.setdefault(name, []).append(case)
            values.setdefault(name, []).append(_measure_mask(workspace, volume, mask, axis))
        print(f"{done} of {len(rows)} volumes", file=sys.stderr, flush=True)
    return {name: _told(np.array(rows_of), cases[name]) for name, rows_of in values.items()}


def _measure_mask(
    workspace: Workspace, volume: Volume, mask: np.ndarray, axis: int
) -> tuple[float, float, float, float, int]:
    filled = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
    middle = int(filled[len(filled) // 2])
    started_s = time.monotonic()
    # First, so that it pays for the encodings of the slices that it reaches.
    made = segment_prompts(workspace, volume, Prompts(axis=axis, boxes_vox=(_box(mask, axis, middle),), spreads=True))
    spread_s = time.monotonic()
    bound = np.zeros(mask.shape, bool)
    for number in filled:
        box = _box(mask, axis, int(number))
        bound |= segment_prompts(workspace, volume, Prompts(axis=axis, boxes_vox=(box,)))
    ended_s = time.monotonic()
    return dice(made, mask), dice(bound, mask), spread_s - started_s, ended_s - spread_s, len(filled)


def _box(mask: np.ndarray, axis: int, number: int) -> np.ndarray:
    """The box of a mask in one slice, (3, 2) along the image's axes."""
    one = np.zeros(mask.shape, bool)
    at = tuple(number if a == axis else slice(None) for a in range(3))
    one[at] = mask[at]
    return box_of_mask(one)


def _told(values: np.ndarray, cases: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"n": len(values), "slices": float(values[:, 4].mean())}
    for number, way in enumerate((ONE_BOX, TRUE_BOXES)):
        mean = bootstrap_mean(values[:, number], cases=cases)
        spread = {"mean": mean.mean, "sd": mean.sd if mean.n > 1 else None, "ci95": mean.ci95}
        told[way] = {"dice": spread, "seconds": float(values[:, 2 + number].mean())}
    return told


if __name__ == "__main__":
    sys.exit(main())
