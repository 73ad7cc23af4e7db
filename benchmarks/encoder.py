"""How fast SAM's encoders run: every runtime and precision against torch fp32, side by side, and against the machine.

    python benchmarks/encoder.py --models lite_medsam,sam_vit_b --repeats 5 --json encoder.json
    python benchmarks/encoder.py --models lite_medsam --old-machine

LiteMedSAM runs with its weights, the others with random ones, which take as long. The runtimes take turns in every
repeat, so that what else the machine does falls on all of them; a ratio is the median over the repeats. The floor of a
model is its multiplications (torch.utils.flop_counter) over the fastest matrix product of the same precision that torch
(oneDNN) made in the same run. `--old-machine` runs it all in a process in which torch may use no more than AVX2;
OpenVINO and ONNX Runtime heed no such limit, so their figures there, marked with *, are of the whole CPU. The peak
memory of a runtime is that of a process of its own that reads the network, prepares the runtime and encodes once.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from samcorrect.lib.errors import DependencyError, SettingsError
from samcorrect.lib.loop.workspace import count_cores
from samcorrect.lib.networks.architectures import ARCHITECTURES
from samcorrect.lib.networks.registry import CATALOGUE, read_network
from samcorrect.lib.networks.runtimes import RUNTIMES, choose_runtime, has_fast_bf16, make_encoder

BASELINE = "torch-fp32"
OLD_MACHINE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
OLD_MACHINE_GB = 8
PEAK_OPTION = "--peak-of"
GEMM_SIDE = 2048
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def main() -> None:
    """Measure and print, or hand over to a process with fewer instructions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="lite_medsam,sam_vit_b", help="of the catalogue (default: %(default)s)")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="those that run here (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each runtime (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=count_cores(), help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--old-machine", action="store_true", help="with AVX2 at most; peak memory against 8 GB")
    parser.add_argument(PEAK_OPTION, metavar="RUNTIME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.old_machine and os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2":
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | OLD_MACHINE, check=False).returncode)
    torch.set_num_threads(given.threads)
    if given.peak_of is not None:
        print(peak_rss_gb(given.models, given.peak_of))
        return
    report: dict[str, Any] = {"machine": describe_machine(), "models": {}}
    print(report["machine"])
    runtimes = usable(given.runtimes.split(","))
    too_large = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.models.split(","):
            measured = measure(name, runtimes, given.repeats, Path(scratch))
            for runtime, told in measured["runtimes"].items():
                told["peak_rss_gb"] = peak_rss_gb_alone(name, runtime, given.threads)
                if told["peak_rss_gb"] > OLD_MACHINE_GB:
                    too_large.append(f"{name} with {runtime}")
            report["models"][name] = measured
            show(name, measured)
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if given.old_machine and too_large:
        sys.exit(f"more than the {OLD_MACHINE_GB} GB of an old machine: {', '.join(too_large)}")


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor()),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "instructions": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "has_fast_bf16": has_fast_bf16(),
        "cores": count_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def usable(wanted: list[str]) -> list[str]:
    """The runtimes of these that run here, the baseline first; says why another does not."""
    found = [BASELINE]
    for runtime in wanted:
        try:
            if choose_runtime(runtime) not in found and (runtime != "torch-bf16" or has_fast_bf16()):
                found.append(runtime)
        except (DependencyError, SettingsError) as error:
            print(f"{runtime}: left out: {error}")
    return found


def measure(name: str, runtimes: list[str], repeats: int, scratch: Path) -> dict[str, Any]:
    """Seconds of every runtime, its ratio to torch fp32, and what the machine could do at best."""
    network, pixels, side_px = network_and_pixels(name)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.image_encoder(pixels)
    encoders, preparing_s = {}, {}
    for runtime in runtimes:
        preparing_s[runtime] = seconds(
            lambda r=runtime: encoders.update(
                {r: make_encoder(network.image_encoder, r, side_px=side_px, identity=name, export_dir=scratch)}
            )
        )
        encoders[runtime](pixels)
    # Emulated, a product in bf16 takes minutes.
    precisions = ("fp32", "bf16") if has_fast_bf16() else ("fp32",)
    gemms = {precision: random_gemm(precision) for precision in precisions}
    times: dict[str, list[float]] = {key: [] for key in (*encoders, *gemms)}
    for _ in range(repeats):
        for precision, gemm in gemms.items():
            times[precision] += [seconds(gemm) for _ in range(3)]
        for runtime, encoder in encoders.items():
            times[runtime].append(seconds(lambda e=encoder: e(pixels)))
    n_flops = counter.get_total_flops()
    peak = {precision: 2 * GEMM_SIDE**3 / min(times[precision]) for precision in gemms}
    told = {}
    for runtime in runtimes:
        floor_s = n_flops / peak["fp32" if runtime.endswith("fp32") or "bf16" not in peak else "bf16"]
        told[runtime] = {
            "seconds": median(times[runtime]),
            "times_faster": median(b / t for b, t in zip(times[BASELINE], times[runtime], strict=True)),
            "over_floor": median(times[runtime]) / floor_s,
            "preparing_s": preparing_s[runtime],
        }
    return {
        "gflop": n_flops / 1e9,
        "peak_gflops": {precision: rate / 1e9 for precision, rate in peak.items()},
        "repeats": repeats,
        "runtimes": told,
    }


def network_and_pixels(name: str) -> tuple[torch.nn.Module, torch.Tensor, int]:
    """The network of a model, what its encoder is given, and the side of that."""
    architecture = ARCHITECTURES[CATALOGUE[name].architecture]
    weights = CATALOGUE[name].weights
    network = random_network(architecture.build) if weights is None else read_network(architecture, weights)
    frame = torch.rand(architecture.side_px, architecture.side_px, generator=torch.Generator().manual_seed(0))
    return network, architecture.normalise(frame).contiguous(), architecture.side_px


def peak_rss_gb_alone(name: str, runtime: str, threads: int) -> float:
    """Peak memory of a process that does nothing else."""
    command = [sys.executable, __file__, "--models", name, "--threads", str(threads), PEAK_OPTION, runtime]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def peak_rss_gb(name: str, runtime: str) -> float:
    """Peak memory of this process after it has read a model, prepared a runtime for it and encoded once."""
    network, pixels, side_px = network_and_pixels(name)
    with tempfile.TemporaryDirectory() as scratch:
        encode = make_encoder(network.image_encoder, runtime, side_px=side_px, identity=name, export_dir=Path(scratch))
        encode(pixels)
    # Not ru_maxrss, in which a process begins with what its parent had.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024**2


def random_network(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network of small random weights, of the size and the speed of the real one."""
    network = build().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02, generator=generator)
    return network.requires_grad_(False).eval()


def random_gemm(precision: str) -> Callable[[], torch.Tensor]:
    """A matrix product of torch, large enough to reach the machine's peak."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = torch.randn(2, GEMM_SIDE, GEMM_SIDE).to(dtype)
    return lambda: left @ right


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show(name: str, measured: dict[str, Any]) -> None:
    """Print a model's table."""
    peaks = ", ".join(f"{rate:.0f} GFLOP/s in {precision}" for precision, rate in measured["peak_gflops"].items())
    print(f"\n{name}: {measured['gflop']:.0f} GFLOP an image; the machine makes {peaks}")
    print(f"{'runtime':16s} {'seconds':>8s} {'x torch fp32':>13s} {'x floor':>8s} {'to prepare':>11s} {'peak':>8s}")
    for runtime, told in measured["runtimes"].items():
        figures = f"{told['seconds']:8.3f} {told['times_faster']:13.2f} {told['over_floor']:8.2f}"
        mark = "*" if "ONEDNN_MAX_CPU_ISA" in os.environ and not runtime.startswith("torch") else ""
        print(f"{runtime + mark:16s} {figures} {told['preparing_s']:9.1f} s {told['peak_rss_gb']:5.1f} GB")


if __name__ == "__main__":
    main()
