"""How an image encoder runs: by torch, OpenVINO or ONNX Runtime, in fp32 or bf16, and which of them fits a machine."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import torch
from torch import nn

from samcorrect.lib.errors import DependencyError, SettingsError
from samcorrect.lib.networks.exports import load_exported
from samcorrect.lib.settings import SamRuntime

# From (1, 3, side, side) float32 to a (1, 256, 64, 64) embedding.
Encoder = Callable[[torch.Tensor], torch.Tensor]

RUNTIMES = tuple(name for name in get_args(SamRuntime) if name != "auto")


def choose_runtime(wanted: str = "auto") -> str:
    """The runtime of a setting, on this machine.

    "auto" is a GPU where there is one; else OpenVINO where it is installed, else torch; in bf16 where the CPU
    multiplies it in hardware. So it depends on the machine and on what is installed alone. Measured with LiteMedSAM on
    two Zen 4 cores against torch in fp32: torch bf16 3.0 times as fast, OpenVINO fp32 6.8, ONNX Runtime 4.7, OpenVINO
    bf16 12.2 (benchmarks/README.md).

    Raises:
        SettingsError: This machine cannot run what is wanted.
        DependencyError: What is wanted is not installed.
    """
    has_gpu, precision = torch.cuda.is_available(), "bf16" if has_fast_bf16() else "fp32"
    if wanted == "auto":
        if has_gpu:
            return "cuda"
        return f"{'openvino' if importlib.util.find_spec('openvino') else 'torch'}-{precision}"
    if wanted not in RUNTIMES:
        raise SettingsError(f"no runtime {wanted!r} for SAM; there are auto, {', '.join(RUNTIMES)}")
    if wanted == "cuda" and not has_gpu:
        raise SettingsError("sam_runtime is cuda, and torch finds no GPU; leave it out, or install torch for CUDA")
    if wanted == "openvino-bf16" and precision == "fp32":
        raise SettingsError("sam_runtime is openvino-bf16, and this CPU has no bf16; openvino-fp32 runs on any")
    if wanted.startswith("openvino"):
        import_openvino()
    if wanted.startswith("onnx"):
        _import_onnx_runtime()
    return wanted


def make_encoder(module: nn.Module, runtime: str, *, side_px: int, identity: str, export_dir: Path | None) -> Encoder:
    """An encoder that runs as asked.

    Args:
        module: The image encoder, in evaluation mode and float32.
        runtime: Of RUNTIMES, as `choose_runtime` gives it.
        side_px: Side of its input.
        identity: Names its weights and architecture; what is exported is kept by it.
        export_dir: Where exports are kept; None keeps none.
    """
    engine, _, precision = runtime.partition("-")
    if engine in ("torch", "cuda"):
        return _torch_encoder(module, "cuda" if engine == "cuda" else "cpu", use_bf16=precision != "fp32")
    example = torch.zeros(1, 3, side_px, side_px)
    if engine == "openvino":
        openvino = import_openvino()
        name = f"{identity} openvino {openvino.get_version()} torch {torch.__version__}"
        return load_exported(
            export_dir,
            name,
            write=lambda folder: _export_openvino(openvino, module, example, folder),
            load=lambda folder: _openvino_encoder(openvino, folder, precision),
        )
    runtime_module = _import_onnx_runtime()
    name = f"{identity} onnx {version('onnx')} onnxscript {version('onnxscript')} torch {torch.__version__}"
    return load_exported(
        export_dir,
        name,
        write=lambda folder: _export_onnx(module, example, folder),
        load=lambda folder: _onnx_encoder(runtime_module, folder),
    )


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; emulated, it is slower than fp32."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    return (
        capabilities.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_flag("avx512_bf16")
    )


def _cpu_flag(flag: str) -> bool:
    path = Path("/proc/cpuinfo")
    return path.is_file() and flag in path.read_text(encoding="utf-8")


def _torch_encoder(module: nn.Module, device: str, *, use_bf16: bool) -> Encoder:
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=use_bf16):
            return module(pixels.to(device))

    return encode


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry. Raises DependencyError where it is not installed."""
    # Importing openvino and converting a model report to Google Analytics unasked. A name that is None in sys.modules
    # counts as not installed, and then openvino reports nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise DependencyError(
            "sam_runtime openvino-* needs the package openvino; pip install 'samcorrect[openvino]'"
        ) from error
    return openvino


def _export_openvino(openvino: ModuleType, module: nn.Module, example: torch.Tensor, folder: Path) -> None:
    with torch.no_grad():
        # Exported here: OpenVINO's own tracing of the module took ten times as long.
        program = torch.export.export(module, (example,))
        model = openvino.convert_model(program, input=list(example.shape))
    openvino.save_model(model, folder / "encoder.xml", compress_to_fp16=False)


def _openvino_encoder(openvino: ModuleType, folder: Path, precision: str) -> Encoder:
    options: Mapping[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Every process would take the first cores for itself: two workers of one thread each share one core then, and
        # an image takes twice as long.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(folder / "encoder.xml", "CPU", options)
    # A compiled model runs one request at a time, with all threads.
    lock = threading.Lock()

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with lock:
            return torch.from_numpy(compiled(pixels.contiguous().numpy())[0].copy())

    return encode


def _import_onnx_runtime() -> ModuleType:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"sam_runtime onnx-fp32 needs the package {error.name}; pip install 'samcorrect[onnx]'"
        ) from error
    return onnxruntime


def _export_onnx(module: nn.Module, example: torch.Tensor, folder: Path) -> None:
    with torch.no_grad():
        # Weights beside the graph: one file of it can hold 2 GB, and SAM ViT-H has more.
        torch.onnx.export(module, (example,), folder / "encoder.onnx", dynamo=True, external_data=True, verbose=False)


def _onnx_encoder(onnxruntime: ModuleType, folder: Path) -> Encoder:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / "encoder.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: torch.from_numpy(session.run(None, {name: pixels.contiguous().numpy()})[0])
