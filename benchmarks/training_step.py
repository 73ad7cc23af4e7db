"""How long a step of a training takes on one thread, on all, and of two trainings side by side, which is what the
product does; alone on the machine and beside a process that keeps one core busy.

Of two side by side, half of the time of a step of both is told, so that all figures are seconds of the clock for each
step done. Repeats are interleaved and their median counts. `samcorrect` sets the two variables of the example.

example:
  OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 python benchmarks/training_step.py --json training_step.json
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from common import write_json
from rich.console import Console
from rich.table import Table

from samcorrect.lib.loop.side_by_side import torch_threads
from samcorrect.lib.loop.workspace import count_cores, prepare_cpu
from samcorrect.lib.networks.samples import TrainingData
from samcorrect.lib.networks.student import StudentConfig
from samcorrect.lib.networks.training import train_network

N_IMAGES, SIDE_PX, BATCH_SIZE, LEARNING_RATE = 32, 128, 8, 1e-3
CONFIG = StudentConfig(names=("left", "right"), indices=(1, 2), side_px=SIDE_PX)
WARM_UP_STEPS = 5
ALONE, BESIDE = "alone, s", "beside a busy core, s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of every training (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parsed = parser.parse_args(arguments)
    prepare_cpu(count_cores())
    ways: dict[str, Callable[[], float]] = {
        "one thread": partial(step_s, 1, parsed.steps),
        "all threads": partial(step_s, count_cores(), parsed.steps),
        "two side by side, one thread each": partial(side_by_side_step_s, parsed.steps),
    }
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(parsed.repeats):
        for name, way in ways.items():
            taken[name, ALONE].append(way())
            busy = multiprocessing.get_context("spawn").Process(target=keep_busy, daemon=True)
            busy.start()
            taken[name, BESIDE].append(way())
            busy.kill()
    told = {
        name: {where: round(statistics.median(taken[name, where]), 4) for where in (ALONE, BESIDE)} for name in ways
    }
    table = Table("", ALONE, BESIDE)
    for name, of in told.items():
        table.add_row(name, *map(str, of.values()))
    Console().print(table)
    if parsed.json:
        write_json(parsed.json, told)
    return 0


def step_s(n_threads: int, steps: int) -> float:
    """Seconds of a step of one training on so many threads, without its beginning."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(N_IMAGES, SIDE_PX, SIDE_PX, generator=generator)
    targets = torch.zeros(N_IMAGES, SIDE_PX, SIDE_PX, dtype=torch.uint8)
    targets[:, 20:100, 20:50], targets[:, 20:100, 70:110] = 1, 2
    began_at = [0.0]

    def note(done: int, _total: int) -> None:
        if done == WARM_UP_STEPS:
            began_at[0] = time.perf_counter()

    with torch_threads(n_threads):
        train_network(
            CONFIG,
            TrainingData(frames, targets, weights=None, sampling=torch.ones(N_IMAGES)),
            steps=WARM_UP_STEPS + steps,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            seed=0,
            on_step=note,
        )
    return (time.perf_counter() - began_at[0]) / steps


def side_by_side_step_s(steps: int) -> float:
    """Seconds for each step done of two trainings at once."""
    with ThreadPoolExecutor(2) as pool:
        return statistics.mean(pool.map(partial(step_s, 1), [steps] * 2)) / 2


def keep_busy() -> None:
    """Use one core until it is ended."""
    while True:
        pass


if __name__ == "__main__":
    sys.exit(main())
