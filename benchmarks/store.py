"""How the store holds up as it grows: start, single calls and memory at several numbers of images, beside the host's
own local datastore.

Every size runs in processes of its own. The images are pictures of 8 x 8 pixels, in folders of 1,000 or all in one;
each has three label versions, the newest of them scored, and a label file on the disk.

example:
  python benchmarks/store.py --images 1000 10000 100000 --json store.json
"""

import argparse
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
from monailabel.datastore.local import LocalDatastore
from PIL import Image
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, update

from samcorrect.lib.loop.queue import next_image
from samcorrect.lib.loop.workspace import Workspace, open_workspace
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.datastore import LedgerDatastore
from samcorrect.lib.store.records.listing import relist
from samcorrect.lib.store.schema import ImageRow, LabelVersionRow, QualityRow
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

FOLDER_SIZE = 1000
SIDE_PX = 8
# Structure 0 is the whole label.
STRUCTURES = (0, 1, 2)
PROTOCOL = """
structures:
  - {name: right lung, index: 1, prompt: {source: box, xyxy: [0.1, 0.1, 0.5, 0.9]}}
  - {name: left lung, index: 2, prompt: {source: box, xyxy: [0.5, 0.1, 0.9, 0.9]}}
"""
VERSIONS = (("original", 0), ("corrected", 1), ("corrected", 2))
APPROVED_SHARE = 0.1
# The host's own datastore rewrites its whole file at every update: a quarter of a second at 10,000 images.
MAX_UPSTREAM_IMAGES, N_UPSTREAM_CALLS = 10_000, 20
SERVER_TIMEOUT_S = 600
# Of all calls of one kind together.
MAX_SECONDS = 30
SETTINGS = {"threads": 1, "audit_share": 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size, print the table and write it as JSON."""
    parsed = _parser().parse_args(arguments)
    spawn = multiprocessing.get_context("spawn")
    told: dict[str, dict[str, Any]] = {}
    for n_images in parsed.images:
        with tempfile.TemporaryDirectory(dir=parsed.work) as name:
            studies = make_studies(Path(name) / "studies", n_images, is_flat=parsed.flat)
            numbers: dict[str, Any] = {}
            # A new process a step: a start is measured in one that knows nothing, and memory is each one's own.
            for step in (measure_fresh_start, measure_calls):
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    numbers |= pool.submit(step, studies, n_calls=parsed.calls).result()
            numbers |= measure_server(studies)
        if n_images <= MAX_UPSTREAM_IMAGES:
            with tempfile.TemporaryDirectory(dir=parsed.work) as name:
                numbers |= measure_upstream(Path(name), n_images)
        told[str(n_images)] = numbers
        print(f"{n_images} images: {json.dumps(numbers)}", file=sys.stderr, flush=True)
    _print_table(told)
    if parsed.json:
        parsed.json.write_text(json.dumps({"is_flat": parsed.flat, "sizes": told}, indent=1), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--calls", type=int, default=200, help="calls of each kind (default: %(default)s)")
    parser.add_argument("--flat", action="store_true", help="all images in one folder, not 1,000 in each")
    parser.add_argument("--work", type=Path, help="where the images are made (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


def make_studies(studies: Path, n_images: int, *, is_flat: bool) -> Path:
    """Fill a studies folder with small pictures and a protocol; returns it."""
    studies.mkdir(parents=True)
    (studies / "protocol.yaml").write_text(PROTOCOL, encoding="utf-8")
    picture = studies / f"{case_id(0, is_flat=True)}.png"
    Image.new("L", (SIDE_PX, SIDE_PX), 90).save(picture)
    content = picture.read_bytes()
    picture.unlink()
    for number in range(n_images):
        path = studies / f"{case_id(number, is_flat=is_flat)}.png"
        if number % FOLDER_SIZE == 0:
            path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return studies


def measure_fresh_start(studies: Path, *, n_calls: int) -> dict[str, float]:
    """Seconds until a studies folder that no store has seen yet can be used; fills its ledger afterwards."""
    started = time.perf_counter()
    workspace = _open(studies)
    seconds = time.perf_counter() - started
    fill_ledger(workspace)
    return {"start_fresh_s": seconds}


def fill_ledger(workspace: Workspace) -> None:
    """Three label versions an image with one file, scores of the newest, and a tenth of the images approved."""
    store, rng = workspace.store, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "label.nii.gz"
        write_label_map(path, _label_map(), LPS_TO_RAS)
        first = store.save_label_map(
            store.ledger.images()[0].id, _label_map(), tag="original", maker="sam:x", affine=LPS_TO_RAS
        )
        content = path.read_bytes()
    images = [row.id for row in store.ledger.images()]
    labels, quality = [], []
    for number, image_id in enumerate(images):
        relative = f"labels/{image_id}/{Path(first.path).name}"
        (store.state_dir / relative).parent.mkdir(parents=True, exist_ok=True)
        (store.state_dir / relative).write_bytes(content)
        shared = {"image_id": image_id, "path": relative, "content_sha256": first.content_sha256, "created_at": 1.0}
        shared["info"] = {"present_indices": [1, 2], "recipe": "x" * 64, "image_sha256": "0" * 64}
        for version, (tag, round_number) in enumerate(VERSIONS):
            row_id = first.id + 1 + number * len(VERSIONS) + version
            labels.append({**shared, "id": row_id, "tag": tag, "round": round_number, "maker": "sam:x"})
        quality += [_quality_values(labels[-1]["id"], index, rng) for index in STRUCTURES]
    scores = quality[:: len(STRUCTURES)]
    with store.ledger.session(writes=True) as session:
        session.execute(insert(LabelVersionRow), labels)
        session.execute(insert(QualityRow), quality)
        queued = [
            {"id": i, "queue_score": q["score"], "is_approved": bool(rng.random() < APPROVED_SHARE)}
            for i, q in zip(images, scores, strict=True)
        ]
        session.execute(update(ImageRow), queued)
        relist(session)
    store.ledger.close()


def measure_calls(studies: Path, *, n_calls: int) -> dict[str, float]:
    """Start on a known state, then the milliseconds of each kind of call over random images, and the memory."""
    started = time.perf_counter()
    workspace = _open(studies)
    numbers = {"start_known_s": time.perf_counter() - started}
    datastore = LedgerDatastore(workspace.store, workspace.protocol)
    numbers["start_known_with_datastore_s"] = time.perf_counter() - started
    ledger, rng = workspace.store.ledger, np.random.default_rng(1)
    chosen = [row.id for row in ledger.images()]
    chosen = [chosen[n] for n in rng.choice(len(chosen), n_calls, replace=False)]
    best = {image_id: ledger.best_label(image_id).id for image_id in chosen}
    with tempfile.TemporaryDirectory() as name:
        submitted = Path(name) / "kept" / "label.nii.gz"
        write_label_map(submitted, _label_map(), LPS_TO_RAS)
        calls: dict[str, Callable[[int, str], Any]] = {
            "score_write": lambda n, i: ledger.set_quality(best[i], _scores(best[i], rng)),
            "image_info": lambda n, i: datastore.get_image_info(i),
            "info_update": lambda n, i: datastore.update_image_info(i, {"seen": n}),
            "label_info": lambda n, i: datastore.get_label_info(i, "original"),
            "best_label": lambda n, i: ledger.best_label(i),
            "next_worst": lambda n, i: next_image(workspace, f"reader{n % 8}", strategy="lowest_quality"),
            "next_random": lambda n, i: next_image(workspace, f"reader{n % 8}", strategy="random"),
            "label_submit": lambda n, i: datastore.save_label(i, str(submitted), "final", {"user": "reader"}),
        }
        for kind, call in calls.items():
            numbers |= percentiles(kind, seconds_of(call, chosen))
    # What Slicer and the host ask of the whole store, at every next sample.
    for kind, whole in {
        "list_images": datastore.list_images,
        "json": datastore.json,
        "status": datastore.status,
    }.items():
        numbers |= percentiles(kind, seconds_of(lambda n, i, whole=whole: whole(), range(3)))
    numbers["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ledger.close()
    return numbers


def measure_server(studies: Path) -> dict[str, float]:
    """Seconds from `samcorrect serve` to its first answer on /info, one more /info, and the server's memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "samcorrect.cli", "serve", "--studies", str(studies), "--port", str(port)]
    settings = {f"SAMCORRECT_{key.upper()}": str(value) for key, value in SETTINGS.items()}
    started = time.perf_counter()
    with running(command, settings, studies.parent / "server.log") as process:
        wait_for_server(port, process, studies.parent / "server.log")
        numbers = {"server_first_info_s": time.perf_counter() - started}
        again = time.perf_counter()
        wait_for_server(port, process, studies.parent / "server.log")
        numbers["server_info_s"] = time.perf_counter() - again
        numbers["server_memory_mb"] = psutil.Process(process.pid).memory_info().rss / 2**20
    return numbers


def measure_upstream(studies: Path, n_images: int) -> dict[str, float]:
    """The host's local datastore: start and one info update."""
    for number in range(n_images):
        (studies / f"{case_id(number, is_flat=True)}.nii.gz").write_bytes(b"voxels")
    started = time.perf_counter()
    datastore = LocalDatastore(str(studies))
    numbers = {"upstream_start_s": time.perf_counter() - started}
    chosen = [case_id(int(n), is_flat=True) for n in np.random.default_rng(1).choice(n_images, N_UPSTREAM_CALLS)]
    return numbers | percentiles(
        "upstream_info_update", seconds_of(lambda n, i: datastore.update_image_info(i, {"seen": n}), chosen)
    )


@contextmanager
def running(command: list[str], settings: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A process that says what it has to say into a file, until the block ends."""
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def wait_for_server(port: int, process: subprocess.Popen, log: Path) -> None:
    """Wait for the first answer of a server. Raises RuntimeError where it ends before that, or takes too long."""
    deadline_s = time.monotonic() + SERVER_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            requests.get(f"http://127.0.0.1:{port}/info/", timeout=SERVER_TIMEOUT_S).raise_for_status()
        except requests.ConnectionError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server does not answer:\n{log.read_text(encoding='utf-8')[-4000:]}")


def _open(studies: Path) -> Workspace:
    return open_workspace(studies, Settings(**SETTINGS))


def case_id(number: int, *, is_flat: bool) -> str:
    """The id of an image of `make_studies`."""
    folder = "" if is_flat else f"ward{number // FOLDER_SIZE:03d}/"
    return f"{folder}case{number:06d}"


def _label_map() -> np.ndarray:
    label_map = np.zeros((SIDE_PX, SIDE_PX, 1), np.uint8)
    label_map[:4], label_map[4:6] = 1, 2
    return label_map


def _quality_values(label_version_id: int, structure_index: int, rng: np.random.Generator) -> dict[str, Any]:
    score = float(rng.random())
    features = {name: round(float(rng.random()), 6) for name in ("surface_dice", "dice", "band", "agreement", "area")}
    values = {"score": score, "expected_dice": score, "expected_dice_low": 0.0, "expected_dice_high": 1.0}
    values |= {"posterior_good": score, "features": features, "reasons": ["the boundary differs from its peers"]}
    return {"label_version_id": label_version_id, "structure_index": structure_index, "created_at": 1.0, **values}


def _scores(label_version_id: int, rng: np.random.Generator) -> list[QualityRow]:
    return [QualityRow(**_quality_values(label_version_id, index, rng)) for index in STRUCTURES]


def seconds_of(call: Callable[[int, Any], Any], arguments: Sequence[Any]) -> list[float]:
    """Seconds of every call; no more calls than fit into MAX_SECONDS, and one at least."""
    seconds: list[float] = []
    for number, argument in enumerate(arguments):
        if sum(seconds) > MAX_SECONDS:
            break
        started = time.perf_counter()
        call(number, argument)
        seconds.append(time.perf_counter() - started)
    return seconds


def percentiles(kind: str, seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds, under the name of what was measured."""
    p50, p95 = np.percentile(seconds, (50, 95)) * 1000
    return {f"{kind}_p50_ms": float(p50), f"{kind}_p95_ms": float(p95)}


def _print_table(told: dict[str, dict[str, Any]]) -> None:
    table = Table("measure", *(f"{int(n):,} images" for n in told), "growth")
    names = dict.fromkeys(name for numbers in told.values() for name in numbers)
    for name in names:
        values = [numbers.get(name) for numbers in told.values()]
        has_growth = len(values) > 1 and None not in values
        growth = f"{values[-1] / values[0]:.1f}" if has_growth else ""
        table.add_row(name, *("" if value is None else f"{value:.2f}" for value in values), growth)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
