"""The next sample over HTTP, and all that Slicer asks at one, at several numbers of images; the host's own strategies,
on its own datastore, beside.

example:
  python benchmarks/next_sample.py --images 1000 10000 100000 --json next_sample.json
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import requests
from monailabel.datastore.local import LocalDatastore
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.random import Random
from rich.console import Console
from rich.table import Table
from store import SETTINGS, case_id, fill_ledger, make_studies, percentiles, running, seconds_of, wait_for_server

from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings

N_CLIENTS = 8
UPSTREAM = {"random": Random, "epistemic": Epistemic}
# The host's datastore opens a file for each image, and rewrites its index at each update.
MAX_UPSTREAM_IMAGES, N_UPSTREAM_CALLS = 10_000, 10
TIMEOUT_S = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--calls", type=int, default=100, help="next samples (default: %(default)s)")
    parser.add_argument("--sequences", type=int, default=10, help="Slicer's sequences (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder whose stores are used, and made where they are missing")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parsed = parser.parse_args(arguments)
    told: dict[str, dict[str, Any]] = {}
    for n_images in parsed.images:
        with nullcontext(parsed.keep) if parsed.keep else tempfile.TemporaryDirectory() as name:
            studies = Path(name) / str(n_images) / "studies"
            if not studies.is_dir():
                fill_ledger(open_workspace(make_studies(studies, n_images, is_flat=False), Settings(**SETTINGS)))
            numbers = measure_server(studies, n_calls=parsed.calls, n_sequences=parsed.sequences)
        if n_images <= MAX_UPSTREAM_IMAGES:
            with tempfile.TemporaryDirectory() as name:
                numbers |= measure_upstream(Path(name), n_images)
        told[str(n_images)] = numbers
        print(f"{n_images} images: {json.dumps(numbers)}", file=sys.stderr, flush=True)
    _print_table(told)
    if parsed.json:
        parsed.json.write_text(json.dumps({"load": os.getloadavg(), "sizes": told}, indent=1), encoding="utf-8")
    return 0


def measure_server(studies: Path, *, n_calls: int, n_sequences: int) -> dict[str, float]:
    """Milliseconds of single requests by several clients, and of Slicer's sequence with the parsing of the list."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "samcorrect.cli", "serve", "--studies", str(studies), "--port", str(port)]
    settings = {f"SAMCORRECT_{key.upper()}": str(value) for key, value in SETTINGS.items()}
    log, url, numbers = studies.parent / "server.log", f"http://127.0.0.1:{port}", {}
    with running(command, settings, log) as process, requests.Session() as session:
        wait_for_server(port, process, log)

        def get(target: str) -> bytes:
            reply = session.get(f"{url}{target}", timeout=TIMEOUT_S)
            reply.raise_for_status()
            return reply.content

        def sample(strategy: str, number: int) -> dict[str, Any]:
            body = {"client_id": f"reader{number % N_CLIENTS}"}
            reply = session.post(f"{url}/activelearning/{strategy}", json=body, timeout=TIMEOUT_S)
            reply.raise_for_status()
            return reply.json()

        def sequence(number: int) -> None:
            # MONAILabel.py of Slicer's extension, onNextSampleButton.
            image_id = sample("lowest_quality", number)["id"]
            get(f"/datastore/image?image={image_id}")
            info = json.loads(get("/datastore/?output=all"))["objects"][image_id]["labels"]["original"]["info"]
            if len(info["params"]["label_names"]) != 2:
                raise RuntimeError(f"{image_id} has the names {info}")
            get(f"/datastore/label?label={image_id}&tag=original")

        calls: dict[str, tuple[int, Callable[[int], Any]]] = {
            "next_worst": (n_calls, lambda n: sample("lowest_quality", n)),
            "next_random": (n_calls, lambda n: sample("random", n)),
            "queue_head": (n_sequences, lambda n: get("/samcorrect/queue")),
            "status": (n_sequences, lambda n: get("/datastore/?output=stats")),
            "list": (n_sequences, lambda n: get("/datastore/?output=all")),
            "slicer_sequence": (n_sequences, sequence),
        }
        for kind, (count, call) in calls.items():
            numbers |= percentiles(kind, seconds_of(lambda n, _, call=call: call(n), range(count)))
        numbers["list_mb"] = len(get("/datastore/?output=all")) / 1e6
        released = [f"reader{number}" for number in range(N_CLIENTS)]
        for client_id in released:
            session.post(f"{url}/samcorrect/release", json={"client_id": client_id}, timeout=TIMEOUT_S)
    return numbers


def measure_upstream(studies: Path, n_images: int) -> dict[str, Any]:
    """Milliseconds of a next sample with the host's strategies, or the error that they end with."""
    for number in range(n_images):
        (studies / f"{case_id(number, is_flat=True)}.nii.gz").write_bytes(b"voxels")
    datastore = LocalDatastore(str(studies))
    numbers: dict[str, Any] = {}
    for name, kind in UPSTREAM.items():
        strategy, began = kind(), time.perf_counter()
        try:
            strategy({"strategy": name}, datastore)
            timed = seconds_of(lambda n, _, s=strategy, k=name: s({"strategy": k}, datastore), range(N_UPSTREAM_CALLS))
            numbers |= percentiles(f"upstream_{name}", timed)
        except (ValueError, OverflowError) as error:
            numbers[f"upstream_{name}_fails"] = f"{type(error).__name__} after {time.perf_counter() - began:.1f} s"
    return numbers


def _print_table(told: dict[str, dict[str, Any]]) -> None:
    table = Table("measure", *(f"{int(n):,} images" for n in told))
    for name in dict.fromkeys(name for numbers in told.values() for name in numbers):
        values = [numbers.get(name, "") for numbers in told.values()]
        table.add_row(name, *(f"{value:.2f}" if isinstance(value, float) else value for value in values))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
