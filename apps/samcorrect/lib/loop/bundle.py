"""A student as a MONAI bundle (docs.monai.io/en/latest/mb_specification.html): a folder of metadata, an inference
workflow and plain weights, and back.

The network is MONAI's own; what lies before and after it is `bundle_transforms`, so whoever runs the workflow needs
samcorrect too. Reading a bundle back executes nothing in it: only the metadata and the weights count.
"""

import importlib.metadata
import io
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from samcorrect import __version__
from samcorrect.lib.errors import WeightsError
from samcorrect.lib.networks.student import FORMAT, Student, load_student, network_arguments, student_bytes
from samcorrect.lib.store.files import write_bytes_atomically
from samcorrect.lib.store.volumes import IMAGE_SUFFIXES

METADATA, INFERENCE, WEIGHTS = "configs/metadata.json", "configs/inference.json", "models/model.pt"
README = "docs/README.md"
# Key of the metadata under which samcorrect finds what it needs to read the bundle back.
OURS = "samcorrect"
BUNDLE_VERSION = "1.0.0"
TRANSFORMS = "samcorrect.lib.loop.bundle_transforms"


def is_bundle(folder: Path) -> bool:
    """Whether a folder has the two files that make it a MONAI bundle."""
    return all((folder / name).is_file() for name in (METADATA, WEIGHTS))


def write_bundle(folder: Path, student: Student, metrics: Mapping[str, Any]) -> None:
    """Write a student into a new folder.

    Args:
        folder: The bundle.
        student: The student.
        metrics: What the promotion gate found, for the metadata.

    Raises:
        StoreError: The folder cannot be written.
    """
    weights = io.BytesIO()
    state = student.network.state_dict().items()
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state}, weights)
    write_bytes_atomically(folder / WEIGHTS, weights.getvalue())
    write_bytes_atomically(folder / METADATA, _json(_metadata(student, metrics)))
    write_bytes_atomically(folder / INFERENCE, _json(_inference(student)))
    write_bytes_atomically(folder / README, _readme(student).encode())


def read_bundle(folder: Path) -> tuple[Student, bytes]:
    """The student of a bundle that `write_bundle` wrote, and its file, equal to the one that was exported.

    Raises:
        WeightsError: The folder is no such bundle, or its weights do not fit.
    """
    if not is_bundle(folder):
        raise WeightsError(f"{folder} is no MONAI bundle: {METADATA} and {WEIGHTS} are wanted in it")
    try:
        config = json.loads((folder / METADATA).read_text(encoding="utf-8"))[OURS]["config"]
        state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "student.pt"
            torch.save({"format": FORMAT, "config": config, "state_dict": state}, path)
            student = load_student(path)
            path.write_bytes(content := student_bytes(student.network, student.config))
            return load_student(path), content
    except Exception as error:  # a stranger's files trip json and torch's reader in many ways
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{folder} is no bundle that samcorrect exported, or it is damaged: {reason}") from error


def _metadata(student: Student, metrics: Mapping[str, Any]) -> dict[str, Any]:
    arguments, structures = network_arguments(student.config), dict(zip(student.names, student.indices, strict=True))
    # MONAI's notation for "any multiple of", for the slice axis of a network that has one.
    shape = [student.config.side_px] * 2 + [f"{_slice_step(arguments)}*n"] * (arguments["spatial_dims"] - 2)
    common = {"type": "image", "modality": "n/a", "dtype": "float32", "is_patch_data": False, "spatial_shape": shape}
    slices = {str(k): "slice" for k in range(arguments["in_channels"])}
    image = {"format": "magnitude", "num_channels": len(slices), "value_range": [0, 1], "channel_def": slices}
    channels = {str(k): name for k, name in enumerate(("background", *student.names))}
    pred = {"format": "segmentation", "num_channels": len(channels), "value_range": [], "channel_def": channels}
    return {
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: f"exported by samcorrect {__version__}"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": importlib.metadata.version("torch").partition("+")[0],
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {
            name: importlib.metadata.version(name) for name in ("samcorrect", "pytorch-ignite", "nibabel")
        },
        "name": f"samcorrect student {student.digest[:12]}",
        "task": f"Segmentation of {', '.join(student.names)}",
        "description": "A U-Net trained by samcorrect on corrected pseudo-labels. configs/inference.json prepares "
        "images with transforms of samcorrect, which has to be installed; the network alone needs MONAI.",
        "authors": "made with samcorrect",
        "copyright": "that of the images and labels that it was trained on",
        "intended_use": "Research; not a medical device.",
        "eval_metrics": {key: metrics.get(key) for key in ("dice", "n_labels", "is_provisional", "reason")},
        "network_data_format": {"inputs": {"image": common | image}, "outputs": {"pred": common | pred}},
        OURS: {"config": asdict(student.config), "structures": structures, "digest": student.digest},
    }


def _inference(student: Student) -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "datalist": f"$[p for p in sorted(glob.glob(@dataset_dir + '/*')) if p.lower().endswith({IMAGE_SUFFIXES!r})]",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", **network_arguments(student.config)},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": f"{TRANSFORMS}.ReadFramed",
                    "keys": "image",
                    "side_px": student.config.side_px,
                    "window_hu": student.config.window_hu,
                }
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False},
        "inferer": {"_target_": f"{TRANSFORMS}.StudentInferer", "in_one_piece": student.config.in_one_piece},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{TRANSFORMS}.ToLabelMapd", "keys": "pred", "indices": student.indices},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "",
                    "output_dtype": "$torch.uint8",
                    "resample": False,
                    "squeeze_end_dims": False,
                    "separate_folder": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": [
            "$@network.load_state_dict("
            f"torch.load(@bundle_root + '/{WEIGHTS}', map_location=@device, weights_only=True))"
        ],
        "run": ["$@evaluator.run()"],
    }


def _readme(student: Student) -> str:
    structures = ", ".join(f"{name} ({index})" for name, index in zip(student.names, student.indices, strict=True))
    return (
        f"# samcorrect student {student.digest[:12]}\n\n"
        f"Segments {structures} in frames of {student.config.side_px} pixels. In this folder, with samcorrect "
        "installed:\n\n    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES "
        "--output_dir LABELS\n\n`samcorrect models import FOLDER` takes it into another store. Research software: not "
        "a medical device.\n"
    )


def _slice_step(arguments: Mapping[str, Any]) -> int:
    return math.prod(stride if isinstance(stride, int) else stride[-1] for stride in arguments["strides"])


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
