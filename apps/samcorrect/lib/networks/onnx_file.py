"""A student as ONNX: the network alone, from frames to logits; what it segments is in the file's metadata."""

import importlib
import io
import json
import warnings
from types import ModuleType

import torch

from samcorrect.lib.errors import DependencyError, RequestError
from samcorrect.lib.networks.student import Student, network_arguments

OPSET = 18
INPUT, OUTPUT = "frames", "logits"
# A batch of one would be taken for a constant.
EXAMPLE_BATCH = 2


def onnx_bytes(student: Student) -> bytes:
    """The content of an ONNX file: `frames` (N, channels, side, side) in [0, 1] to `logits` (N, K + 1, side, side).

    Both are float32 and N is free; where a student sees neighbouring slices, they are its channels, in order.
    `metadata_props` has `structures` (JSON, name to label index, in channel order from channel 1 on),
    `indices` (JSON), `in_one_piece` (JSON, of each structure whether only its largest piece counts; empty: of none),
    `side_px`, `window_hu` (JSON; null where images are scaled by percentiles) and `digest`, that of the student's own
    file.

    Raises:
        DependencyError: The packages that write ONNX are not installed.
        RequestError: The student's network is 3D.
    """
    onnx = _require_onnx()
    arguments, side_px = network_arguments(student.config), student.config.side_px
    if arguments["spatial_dims"] != 2:
        raise RequestError("students on slices are exported as onnx, and this one is 3D; export it as bundle")
    example = torch.zeros(EXAMPLE_BATCH, arguments["in_channels"], side_px, side_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        program = torch.onnx.export(
            student.network,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n_slices")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    told = {
        "structures": json.dumps(dict(zip(student.names, student.indices, strict=True))),
        "indices": json.dumps(student.indices),
        "in_one_piece": json.dumps(student.config.in_one_piece),
        "side_px": str(side_px),
        "window_hu": json.dumps(student.config.window_hu),
        "digest": student.digest,
    }
    onnx.helper.set_model_props(model, told)
    onnx.checker.check_model(model)
    content = io.BytesIO()
    onnx.save_model(model, content)
    return content.getvalue()


def _require_onnx() -> ModuleType:
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise DependencyError(
            "students are written as ONNX with onnx and onnxscript, which are not installed: "
            "pip install 'samcorrect[onnx]'"
        ) from error
