"""Every runtime gives the masks of torch in fp32; the rule that picks one; what is exported is made once."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from samcorrect.lib.core.boxes import box_of_mask
from samcorrect.lib.errors import DependencyError, SettingsError
from samcorrect.lib.networks import runtimes
from samcorrect.lib.networks.registry import CATALOGUE, DEFAULT_MODEL, load_model
from samcorrect.lib.networks.runtimes import choose_runtime, has_fast_bf16, import_openvino
from samcorrect.lib.transforms.frame import boxes_to_frame, normalise_intensity, to_frame

needs_bf16 = pytest.mark.skipif(not has_fast_bf16(), reason="the CPU has no bf16")


@pytest.fixture(scope="module")
def prompted(phantoms, sam) -> list[tuple[torch.Tensor, np.ndarray, torch.Tensor]]:
    """Frame and boxes of two phantoms, and the masks of torch in fp32."""
    found = []
    for name in ("case0.png", "case1.png"):
        pixels = np.asarray(Image.open(phantoms.images / name)).T
        label = np.asarray(Image.open(phantoms.labels / name)).T
        frame = to_frame(normalise_intensity(pixels[..., None]), sam.side_px)[0]
        boxes = np.stack([box_of_mask(label == index).T.ravel() for index in (7, 3)])
        boxes = boxes_to_frame(boxes, label.shape, sam.mask_px)
        found.append((frame, boxes, sam.decode(sam.encode(frame), boxes=boxes)[0] > 0))
    return found


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("encoders")


@pytest.mark.parametrize(
    ("runtime", "lowest", "lowest_mean"),
    [
        pytest.param("torch-bf16", 0.95, 0.99, marks=needs_bf16),
        ("openvino-fp32", 0.999, 0.999),
        pytest.param("openvino-bf16", 0.95, 0.99, marks=needs_bf16),
        pytest.param("onnx-fp32", 0.999, 0.999, marks=pytest.mark.slow),
    ],
)
def test_masks_agree_with_torch_in_fp32(runtime, lowest, lowest_mean, prompted, export_dir):
    sam = load_model(CATALOGUE[DEFAULT_MODEL], runtime=runtime, export_dir=export_dir)
    assert sam.runtime == runtime
    dice = []
    for frame, boxes, wanted in prompted:
        masks = sam.decode(sam.encode(frame), boxes=boxes)[0] > 0
        assert wanted.flatten(1).sum(1).min() > 500
        dice += (2 * (masks & wanted).flatten(1).sum(1) / (masks.flatten(1).sum(1) + wanted.flatten(1).sum(1))).tolist()
    assert min(dice) >= lowest
    assert np.mean(dice) >= lowest_mean


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_openvino_keeps_no_thread_on_one_core(prompted, export_dir):
    """Two workers of one thread each would both take the first core."""
    encoder = load_model(CATALOGUE[DEFAULT_MODEL], runtime="openvino-fp32", export_dir=export_dir)
    frame = prompted[0][0]
    encoder.encode(frame)
    n_cores, is_done = set(), threading.Event()

    def watch() -> None:
        while not is_done.is_set():
            for thread in os.listdir("/proc/self/task"):
                with suppress(ProcessLookupError):
                    n_cores.add(len(os.sched_getaffinity(int(thread))))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        encoder.encode(frame)
        is_done.set()
        watching.result()
    assert n_cores == {len(os.sched_getaffinity(0))}


def test_openvino_reports_to_nobody():
    """Importing openvino and converting a model tell Google Analytics unless its telemetry is not to be had."""
    import_openvino()
    reporter = sys.modules["openvino.tools.ovc.telemetry_utils"].tm
    assert reporter.__name__ == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.parametrize(
    ("has_gpu", "has_openvino", "has_bf16", "chosen"),
    [
        (True, True, True, "cuda"),
        (False, True, True, "openvino-bf16"),
        (False, True, False, "openvino-fp32"),
        (False, False, True, "torch-bf16"),
        (False, False, False, "torch-fp32"),
    ],
)
def test_auto_is_the_fastest_that_is_here(has_gpu, has_openvino, has_bf16, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda _name: has_openvino or None)
    monkeypatch.setattr(runtimes, "has_fast_bf16", lambda: has_bf16)
    assert choose_runtime("auto") == chosen


def test_what_cannot_run_here_is_refused(monkeypatch):
    monkeypatch.setattr(runtimes, "has_fast_bf16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_runtime("torch-bf16") == "torch-bf16"
    with pytest.raises(SettingsError, match="this CPU has no bf16; openvino-fp32 runs on any"):
        choose_runtime("openvino-bf16")
    with pytest.raises(SettingsError, match="torch finds no GPU"):
        choose_runtime("cuda")
    with pytest.raises(SettingsError, match="no runtime 'tensorrt' for SAM; there are auto, torch-fp32, "):
        choose_runtime("tensorrt")


@pytest.mark.parametrize(
    ("runtime", "package", "extra"),
    [("openvino-fp32", "openvino", "openvino"), ("onnx-fp32", "onnxruntime", "onnx"), ("onnx-fp32", "onnx", "onnx")],
)
def test_a_missing_package_is_named_with_how_to_install_it(runtime, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=rf"{package}; pip install 'samcorrect\[{extra}\]'"):
        choose_runtime(runtime)
