"""Dice after 1, 3 and 5 simulated clicks, beside the same points given straight to SAM and the box of the true mask.

The next click is at the middle of the largest error (core.clicks.next_click), in voxels of the image. Of a volume, each
structure is clicked in its largest slice. With a protocol, values of the label maps are named by it, and a structure's
box there is one more box that its first click can mean; leave it out to measure clicks alone.

example:
  python benchmarks/clicks.py --images jsrt/test-images --labels jsrt/test-labels --clicks 1 3 5 --json clicks.json
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import cases_by_name

from samcorrect.lib.core.boxes import box_of_mask
from samcorrect.lib.core.clicks import Click, next_click
from samcorrect.lib.core.metrics import bootstrap_mean, dice
from samcorrect.lib.loop.evaluation import GroundTruth
from samcorrect.lib.loop.prompted import Prompts, segment_prompts
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.workspace import Workspace, open_workspace
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.volumes import Volume

OURS, STRAIGHT, TRUE_BOX = "clicks", "points straight to SAM", "true box"


@dataclass(frozen=True)
class Target:
    """One structure in one slice of an image."""

    name: str
    volume: Volume
    slice_index: int
    truth: np.ndarray


def main(arguments: Sequence[str] | None = None) -> int:
    """Click through every structure of every image, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of their true label maps")
    parser.add_argument("--protocol", type=Path, help="names the values of the label maps")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 3, 5], help="Dice is told after these")
    parser.add_argument("--n", type=int, help="only the first images")
    parser.add_argument("--cache", type=Path, help="keeps SAM's embeddings between runs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as state:
        settings = Settings(state=Path(state), protocol=parsed.protocol, threads=1)
        workspace = open_workspace(parsed.images, settings, cache_dir=parsed.cache)
        told = measure(workspace, GroundTruth(parsed.labels), n_clicks=sorted(parsed.clicks), n_images=parsed.n)
        workspace.store.ledger.close()
    print_table(told)
    if parsed.json:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        parsed.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


def measure(
    workspace: Workspace, truth: GroundTruth, *, n_clicks: list[int], n_images: int | None = None
) -> dict[str, Any]:
    """Structure to the Dice of each way of prompting.

    Returns:
        By structure `n` and by way the `dice` after each number of clicks (mean, SD, 95% interval), and `click_s`, the
        median time of our clicks whose slice is encoded.
    """
    values: dict[str, dict[str, list[list[float]]]] = {}
    cases: dict[str, list[str]] = {}
    seconds: list[float] = []
    rows = [row for row in workspace.store.ledger.images() if row.id in truth][:n_images]
    for done, (row, case) in enumerate(zip(rows, cases_by_name(row.id for row in rows), strict=True), start=1):
        volume = workspace.store.read_image(row.id)
        for target in targets_of(workspace, volume, truth.label_map(row.id, volume)):
            of_structure = values.setdefault(target.name, {OURS: [], STRAIGHT: [], TRUE_BOX: []})
            cases.setdefault(target.name, []).append(case)
            of_structure[TRUE_BOX].append([dice(_true_box_mask(workspace, target), target.truth)])
            for name, way in ((OURS, _ours(workspace, target)), (STRAIGHT, _straight(workspace, target))):
                after, took_s = simulate(way, target.truth, n_clicks)
                of_structure[name].append(after)
                seconds += took_s if name == OURS else []
        print(f"{done} of {len(rows)} images", file=sys.stderr, flush=True)
    return {
        "structures": {
            name: {"n": len(ways[OURS])}
            | {way: _told(found, ["box"] if way == TRUE_BOX else n_clicks, cases[name]) for way, found in ways.items()}
            for name, ways in values.items()
        },
        "click_s": round(float(np.median(seconds)), 3) if seconds else None,
    }


def targets_of(workspace: Workspace, volume: Volume, label_map: np.ndarray) -> list[Target]:
    """Each structure of a true label map, in its largest slice."""
    protocol = workspace.protocol
    names = dict(zip(protocol.indices, protocol.names, strict=True)) if protocol else {}
    found = []
    for value in np.setdiff1d(np.unique(label_map), [0]):
        mask = label_map == value
        largest = int(mask.sum((0, 1)).argmax())
        found.append(Target(names.get(int(value), f"value {value}"), volume, largest, mask[:, :, largest]))
    return found


def simulate(
    way: Callable[[list[Click]], np.ndarray], truth: np.ndarray, n_clicks: list[int]
) -> tuple[list[float], list[float]]:
    """Dice after each number of clicks, and the seconds of each click."""
    mask, clicks, after, took_s = np.zeros(truth.shape, bool), [], [], []
    for number in range(1, n_clicks[-1] + 1):
        click = next_click(mask, truth)
        if click is not None:
            clicks.append(click)
            started_s = time.monotonic()
            mask = way(clicks)
            took_s.append(time.monotonic() - started_s)
        if number in n_clicks:
            after.append(dice(mask, truth))
    return after, took_s


def _ours(workspace: Workspace, target: Target) -> Callable[[list[Click]], np.ndarray]:
    def way(clicks: list[Click]) -> np.ndarray:
        points = [[(c[0], c[1], target.slice_index) for c in clicks if c[2] == kind] for kind in (True, False)]
        prompts = Prompts(target.name, slice_index=target.slice_index, foreground=points[0], background=points[1])
        return segment_prompts(workspace, target.volume, prompts)[:, :, target.slice_index]

    return way


def _straight(workspace: Workspace, target: Target) -> Callable[[list[Click]], np.ndarray]:
    window = workspace.protocol.window_of(target.name) if workspace.protocol else None
    slices = Slices(workspace, target.volume, 2, window)

    def way(clicks: list[Click]) -> np.ndarray:
        points = [(r + 0.5, c + 0.5, kind) for r, c, kind in (slices.click(*click) for click in clicks)]
        logits, _ = slices.sam.decode(slices.embedding(target.slice_index), points=points)
        return slices.to_grid((logits[0] > 0).numpy())

    return way


def _true_box_mask(workspace: Workspace, target: Target) -> np.ndarray:
    box = np.vstack([box_of_mask(target.truth), [target.slice_index, target.slice_index + 1]])
    mask = segment_prompts(workspace, target.volume, Prompts(target.name, boxes_vox=(box,)))
    return mask[:, :, target.slice_index]


def _told(found: list[list[float]], names: list, cases: list[str]) -> dict[str, Any]:
    told = {}
    for name, column in zip(names, np.array(found, dtype=np.float64).T, strict=True):
        mean = bootstrap_mean(column, cases=cases)
        told[str(name)] = {"mean": mean.mean, "sd": mean.sd if mean.n > 1 else None, "ci95": mean.ci95}
    return told


def print_table(told: dict[str, Any]) -> None:
    """Structure, way, and the mean Dice with its SD in a column for each number of clicks."""
    for name, ways in told["structures"].items():
        for way in (OURS, STRAIGHT, TRUE_BOX):
            cells = (f"{k}: {v['mean']:.3f} (SD {v['sd'] or 0:.3f})" for k, v in ways[way].items())
            print(f"| {name} (n = {ways['n']}) | {way} | {' | '.join(cells)} |")
    print(f"median time of a click, slice encoded: {told['click_s']} s")


if __name__ == "__main__":
    sys.exit(main())
