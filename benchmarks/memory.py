"""How much memory scoring, correcting and retraining need as the slices of a store grow.

The images are volumes of ellipses under noise, a fifth of their labels shifted. Every size runs in its own process,
whose private memory (what the system cannot take away and read again from a file) is read from the kernel ten times a
second; that takes Linux. Below eight volumes there are no students that judge.

example:
  python benchmarks/memory.py --slices 500 2000 8000 --json memory.json
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from samcorrect.lib.loop.correction import correct_store
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings

SIDE_VOX, DEPTH = 128, 50
PROTOCOL = """
structures:
  - {name: right ellipse, index: 1, prompt: {source: box, xyxy: [0.1, 0.1, 0.5, 0.9]}}
  - {name: left ellipse, index: 2, prompt: {source: box, xyxy: [0.5, 0.1, 0.9, 0.9]}}
"""
# Of the side, rows before columns.
CENTRES, RADII = ((0.5, 0.3), (0.5, 0.7)), (0.3, 0.14)
BAD_SHARE, BAD_SHIFT_VOX = 0.2, 14
MAX_MOVE_VOX = 8
EVERY_S = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--slices",
        type=int,
        nargs="+",
        default=[500, 2000, 8000],
        help=f"multiples of {DEPTH}",
    )
    parser.add_argument("--steps", type=int, default=100, help="of every training (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="where the volumes are made (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parsed = parser.parse_args(arguments)
    told: dict[str, dict[str, Any]] = {}
    for n_slices in parsed.slices:
        spawn = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory(dir=parsed.work) as name, ProcessPoolExecutor(1, mp_context=spawn) as pool:
            told[str(n_slices)] = pool.submit(measure, Path(name), n_slices, steps=parsed.steps).result()
        print(f"{n_slices} slices: {json.dumps(told[str(n_slices)])}", file=sys.stderr, flush=True)
    table = Table("", *told)
    for row in next(iter(told.values())):
        table.add_row(row, *(str(of[row]) for of in told.values()))
    Console().print(table)
    if parsed.json:
        parsed.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


def measure(folder: Path, n_slices: int, *, steps: int) -> dict[str, Any]:
    """`peak_mib` of the process, `before_mib` without any image, `n_corrected` and `seconds` of one pass."""
    studies = folder / "studies"
    studies.mkdir()
    (studies / "protocol.yaml").write_text(PROTOCOL, encoding="utf-8")
    settings = Settings(state=folder / "state", student_steps=steps, judge_steps=steps, threads=1, audit_share=0)
    rng = np.random.default_rng(0)
    maps = {f"volume{n}": _write_volume(studies / f"volume{n}.nii.gz", rng) for n in range(n_slices // DEPTH)}
    workspace = open_workspace(studies, settings)
    workspace.store.rescan()
    for number, (image_id, label_map) in enumerate(maps.items()):
        shifted = np.roll(label_map, BAD_SHIFT_VOX if number < BAD_SHARE * len(maps) else 0, axis=1)
        workspace.store.save_label_map(image_id, shifted, tag="original", maker="benchmark", affine=np.eye(4))
    del maps
    before, peak, is_over = private_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(EVERY_S):
            peak[0] = max(peak[0], private_mib())

    watcher, started = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    try:
        corrected = correct_store(workspace)
        train_student(workspace)
    finally:
        is_over.set()
        watcher.join()
    return {
        "before_mib": round(before),
        "peak_mib": round(peak[0]),
        "n_corrected": corrected["n_corrected"],
        "seconds": round(time.monotonic() - started),
    }


def private_mib() -> float:
    """Memory of this process that belongs to no file."""
    told = psutil.Process().memory_info()
    return (told.rss - told.shared) / 2**20


def _write_volume(path: Path, rng: np.random.Generator) -> np.ndarray:
    """(SIDE_VOX, SIDE_VOX, DEPTH) uint8, the true label map of the volume."""
    rows, columns = np.mgrid[:SIDE_VOX, :SIDE_VOX] / SIDE_VOX
    move = rng.integers(-MAX_MOVE_VOX, MAX_MOVE_VOX + 1, 2)
    flat = np.zeros((SIDE_VOX, SIDE_VOX), np.uint8)
    for index, (row, column) in enumerate(CENTRES, start=1):
        flat[((rows - row) / RADII[0]) ** 2 + ((columns - column) / RADII[1]) ** 2 < 1] = index
    label_map = np.repeat(np.roll(flat, move, (0, 1))[:, :, None], DEPTH, 2)
    array = 60.0 * label_map + rng.normal(0, 20, label_map.shape)
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), path)
    return label_map


if __name__ == "__main__":
    sys.exit(main())
