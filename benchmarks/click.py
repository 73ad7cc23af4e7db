"""A click on a CT volume over HTTP, from prompt to mask, beside the bare decoder and MONAI Label's own SAM2 task.

The volumes are made from a seed. Everything that is compared runs in turn, repeat by repeat, in one process each: the
decoder alone on an embedding at hand, a live server, and `Sam2InferTask` with its smallest model and random weights,
which take the same time as trained ones. What a first click costs is measured on a server with nothing in its caches
that encodes nothing ahead, and on one that has served the image as the next sample before.

examples:
  python benchmarks/click.py --json click.json
  python benchmarks/click.py --side 128 --slices 20 --clicks 3
"""

import argparse
import gzip
import itertools
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
import torch
from rich.console import Console
from rich.table import Table
from sam2_task import open_sam2, sam2_click
from store import percentiles, running, wait_for_server

from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.workspace import count_cores, count_threads, open_workspace
from samcorrect.lib.settings import load_settings

TIMEOUT_S = 600
# Voxels by which prompts are moved along each axis.
MAX_SHIFT = 16
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="voxels along a slice (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=200, help="slices of a volume (default: %(default)s)")
    parser.add_argument("--clicks", type=int, default=20, help="clicks of each kind (default: %(default)s)")
    parser.add_argument("--sam2-clicks", type=int, default=5, help="clicks of SAM2's task (default: %(default)s)")
    parser.add_argument("--look", type=float, default=15, help="seconds before a click (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        studies = make_studies(folder / "studies", parsed.side, parsed.slices)
        numbers = measure_first_clicks(studies, parsed)
        numbers |= measure_clicks(studies, parsed)
    _print_table(numbers)
    if parsed.json:
        machine = {
            "cores": count_cores(),
            "threads": n_threads(),
            "cpu": _cpu_name(),
            "load": os.getloadavg(),
            "torch": torch.__version__,
        }
        told = {"machine": machine, "shape": [parsed.side, parsed.side, parsed.slices], "ms": numbers}
        parsed.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


def make_studies(studies: Path, side: int, n_slices: int) -> Path:
    """Two volumes of a body with an organ in it, in noise: int16, one of them packed, and a protocol; returns the
    folder."""
    studies.mkdir()
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:side, :side] / side - 0.5
    affine = np.diag([-0.8, -0.8, 1.5, 1.0])
    for name in ("first", "second"):
        volume = np.empty((side, side, n_slices), np.int16, order="F")
        for k in range(n_slices):
            organ = (x / (0.15 + 0.05 * k / n_slices)) ** 2 + (y / 0.1) ** 2 < 1
            body = (x / 0.45) ** 2 + (y / 0.35) ** 2 < 1
            volume[..., k] = -1000 + 1040 * body + 80 * (organ & body) + rng.normal(0, 20, (side, side))
        nib.save(nib.Nifti1Image(volume, affine), studies / f"{name}.nii")
    with (studies / "second.nii").open("rb") as raw, gzip.open(studies / "second.nii.gz", "wb", 1) as packed:
        shutil.copyfileobj(raw, packed)
    (studies / "second.nii").unlink()
    return studies


def measure_first_clicks(studies: Path, parsed: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of first clicks: with nothing in the caches, on the next slice, and on what was served before."""
    side, n_slices, numbers = parsed.side, parsed.slices, {}
    with serving(studies, warm_slices=0) as click:
        for image in ("first", "second"):
            for where, k in (("", n_slices // 2), ("_next_slice", n_slices // 2 + 1)):
                numbers |= _once(f"cold_{image}{where}", lambda i=image, k=k: click(i, box(side, k)))
    with serving(studies) as click:
        image = click.next_sample()
        # A person looks at what was served before they click; meanwhile its middle slices are encoded.
        time.sleep(parsed.look)
        numbers |= _once("served_before", lambda: click(image, box(side, n_slices // 2)))
        time.sleep(parsed.look)
        numbers |= _once("served_before_next_slice", lambda: click(image, box(side, n_slices // 2 + 1)))
    return numbers


class Clicks:
    """Clicks on a server; a client of its own for each thread."""

    def __init__(self, url: str):
        self._url = url
        self._session = requests.Session()

    def __call__(self, image: str, prompt: dict[str, Any], reply: dict[str, Any] = SLICER) -> dict[str, float]:
        """Click, read all of the reply, and return the server's own latencies in seconds, with the reply's bytes."""
        target = f"{self._url}/infer/sam_prompt?image={image}"
        # As OHIF asks, or as Slicer does.
        target += "&output=image" if "result_compress" in reply else ""
        answer = self._session.post(target, data={"params": json.dumps({**reply, **prompt})}, timeout=TIMEOUT_S)
        answer.raise_for_status()
        told = {"bytes": float(len(answer.content))}
        if "output" not in target:
            head = answer.content[:4096].split(b"\r\n\r\n", 1)[1].split(b"\r\n", 1)[0]
            told |= json.loads(head)["latencies"]
        return told

    def next_sample(self) -> str:
        """The id of the image that the server serves next."""
        reply = self._session.post(f"{self._url}/activelearning/lowest_quality", json={}, timeout=TIMEOUT_S)
        reply.raise_for_status()
        return reply.json()["id"]

    def other(self) -> "Clicks":
        """Another client of the same server."""
        return Clicks(self._url)


@contextmanager
def serving(studies: Path, **settings: object) -> Iterator[Clicks]:
    """A server of its own, with empty caches, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "samcorrect.cli", "serve", "--studies", str(studies), "--port", str(port)]
    with tempfile.TemporaryDirectory(dir=studies.parent) as state:
        given = {"state": state, "audit_share": 0, **settings}
        variables = {f"SAMCORRECT_{key.upper()}": str(value) for key, value in given.items()}
        log = Path(state) / "server.log"
        with running(command, variables, log) as process:
            wait_for_server(port, process, log)
            yield Clicks(f"http://127.0.0.1:{port}")


def measure_clicks(studies: Path, parsed: argparse.Namespace) -> dict[str, float]:
    """Milliseconds with warm caches: decoder, server, and SAM2's task, in turn; then with a second user."""
    side, middle = parsed.side, parsed.slices // 2
    seconds: dict[str, list[float]] = {}
    sam2_home = studies.parent / "sam2"
    sam2_home.mkdir()
    with (
        serving(studies) as click,
        ProcessPoolExecutor(1, get_context("spawn"), open_sam2, (sam2_home, n_threads())) as other_process,
    ):
        decode = bare_decoder(studies, parsed.side, middle)
        sam2 = {"image": str(studies / "first.nii"), "slice": middle, **point(side, middle)}
        if parsed.sam2_clicks:
            # Its first click also compiles and warms up, as ours did before the loop.
            other_process.submit(sam2_click, sam2).result()
        for image in ("first", "second"):
            for prompt in (box(side, middle), point(side, middle)):
                click(image, prompt)
        time.sleep(parsed.look)
        for number in range(parsed.clicks):
            _timed(seconds, "decoder", decode)
            # Never the same prompt twice: its mask would be remembered.
            new_box, new_point = box(side, middle, 2 * number + 1), point(side, middle, number + 1)
            for kind, prompt in (("box", new_box), ("point", new_point)):
                began = time.perf_counter()
                told = click("first", prompt)
                whole = time.perf_counter() - began
                seconds.setdefault(f"{kind}_whole_compressed", []).append(whole)
                seconds.setdefault(f"{kind}_server_without_encoding", []).append(told["total"] - told["write"])
                seconds.setdefault(f"{kind}_whole_without_encoding", []).append(whole - told["write"])
                for part in ("pre", "infer", "post", "write"):
                    seconds.setdefault(f"{kind}_{part}", []).append(told[part])
            raw = box(side, middle, 2 * number + 2)
            _timed(seconds, "box_whole_raw", lambda raw=raw: click("first", raw, OHIF))
            if number < parsed.sam2_clicks:
                seconds.setdefault("sam2_point", []).append(other_process.submit(sam2_click, sam2).result())
        measure_second_user(click, parsed, seconds)
    numbers: dict[str, float] = {}
    for kind, measured in seconds.items():
        numbers |= percentiles(kind, measured)
    return numbers | _ratios(seconds)


def measure_second_user(click: Clicks, parsed: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    """Add the seconds of clicks on one volume while another user clicks on the other: on one slice, and on new ones."""
    side, middle = parsed.side, parsed.slices // 2
    shifts = itertools.count(2 * parsed.clicks + 1)

    def click_first() -> None:
        click("first", box(side, middle, next(shifts)))

    for kind in ("beside_clicks", "beside_new_slices"):
        for _ in range(parsed.clicks):
            _timed(seconds, f"box_alone_{kind}", click_first)
        is_over, other = threading.Event(), click.other()

        def click_on(kind: str = kind, is_over: threading.Event = is_over, other: Clicks = other) -> None:
            number = 0
            while not is_over.is_set():
                k = middle if kind == "beside_clicks" else number % parsed.slices
                other("second", box(side, k, number))
                number += 1

        user = threading.Thread(target=click_on)
        user.start()
        time.sleep(0.5)
        for _ in range(parsed.clicks):
            _timed(seconds, f"box_{kind}", click_first)
        is_over.set()
        user.join()


def bare_decoder(studies: Path, side: int, k: int) -> Callable[[], object]:
    """A function that decodes the box of a click on an embedding in memory: what no server can do without."""
    workspace = open_workspace(studies, load_settings({"state": studies.parent / "bare"}))
    volume = workspace.store.read_image("first")
    slices = Slices(workspace, volume, 2, None)
    embedding = slices.embedding(k)
    ends = np.array(box(side, k)["roi"][:4], dtype=np.float64).reshape(2, 2)
    boxes = slices.boxes(np.concatenate([ends[:, 0], ends[:, 1] + 1])[None])
    return lambda: workspace.sam.decode(embedding, boxes=boxes)


def n_threads() -> int:
    """Threads of everything that is measured: SAMCORRECT_THREADS, or one for each core."""
    return count_threads(load_settings({}))


def box(side: int, k: int, shift: int = 0) -> dict[str, Any]:
    """Slicer's box around the organ in one slice, another for every `shift` below MAX_SHIFT squared."""
    dx, dy = divmod(shift, MAX_SHIFT)
    ends = [0.33 * side + dx, 0.67 * side + dx, 0.38 * side + dy, 0.62 * side + dy]
    return {"roi": [*(round(e) for e in ends), k, k], "slice": k, "label": "organ"}


def point(side: int, k: int, shift: int = 0) -> dict[str, Any]:
    """Slicer's click near the middle of the organ, in another pixel of a mask for every `shift` (two voxels at 512)."""
    dx, dy = divmod(shift, MAX_SHIFT)
    return {"foreground": [[side // 2 + 2 * dx, side // 2 + 2 * dy, k]], "background": [], "label": "organ"}


def _once(kind: str, call: Callable[[], object]) -> dict[str, float]:
    began = time.perf_counter()
    call()
    return {f"{kind}_ms": (time.perf_counter() - began) * 1000}


def _timed(seconds: dict[str, list[float]], kind: str, call: Callable[[], object]) -> None:
    began = time.perf_counter()
    call()
    seconds.setdefault(kind, []).append(time.perf_counter() - began)


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """What the issue asks for, of medians."""
    median = {kind: float(np.median(measured)) for kind, measured in seconds.items()}
    ratios = {
        "server_to_decoder": median["box_server_without_encoding"] / median["decoder"],
        "second_user_clicks": median["box_beside_clicks"] / median["box_alone_beside_clicks"],
        "second_user_new_slices": median["box_beside_new_slices"] / median["box_alone_beside_new_slices"],
    }
    if "sam2_point" in median:
        ratios["sam2_to_whole_point_click"] = median["sam2_point"] / median["point_whole_compressed"]
        ratios["sam2_to_whole_box_click"] = median["sam2_point"] / median["box_whole_compressed"]
    return {f"ratio_{name}": value for name, value in ratios.items()}


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _print_table(numbers: dict[str, float]) -> None:
    table = Table("measure", "value")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.2f}" if name.startswith("ratio") else f"{value:.1f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
