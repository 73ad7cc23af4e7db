"""The student: a small MONAI U-Net on slices or blocks of slices, saved as one file that loads without pickle."""

import hashlib
import io
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet

from samcorrect.lib.core.pieces import drop_stray_pieces
from samcorrect.lib.errors import WeightsError
from samcorrect.lib.networks.windows import OFFSETS, PATCH_SLICES, slice_windows
from samcorrect.lib.protocol import MAX_INDEX
from samcorrect.lib.settings import StudentDims
from samcorrect.lib.transforms.frame import from_frame, normalise_intensity, to_frame

FORMAT = "samcorrect-student-1"
CHANNELS = (16, 32, 64, 128, 128)
STRIDES = (2, 2, 2, 2)
# Slices are mostly thicker than pixels are wide, so 3D halves the frame first and the slice axis after it.
STRIDES_3D = ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
SLICES_PER_BATCH = 16
# Weights are drawn from the process's generator, of one network at a time.
_SEEDING = threading.Lock()


@dataclass(frozen=True)
class StudentConfig:
    """What a student segments, how its network is built and in which window it sees CT.

    `indices[k]` is the label index of output channel k + 1, and of structures that are `in_one_piece` only the largest
    piece counts; empty says that none is.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    side_px: int
    dropout: float = 0.0
    dims: StudentDims = "2d"
    window_hu: tuple[float, float] | None = None
    in_one_piece: tuple[bool, ...] = ()


class Student:
    """A trained segmentation network with its preprocessing.

    Attributes:
        network: The MONAI network, in evaluation mode.
        config: Names, indices and architecture.
        digest: SHA-256 of its file.
    """

    def __init__(self, network: UNet, config: StudentConfig, digest: str):
        self.network = network.eval()
        self.config = config
        self.digest = digest

    @property
    def names(self) -> tuple[str, ...]:
        """Structure names in channel order."""
        return self.config.names

    @property
    def indices(self) -> tuple[int, ...]:
        """Label indices in channel order."""
        return self.config.indices

    def predict_probs(self, array_hwd: np.ndarray) -> np.ndarray:
        """Probabilities on the image's grid.

        Args:
            array_hwd: (H, W, D) raw intensities.

        Returns:
            (K + 1, H, W, D) float32, channel 0 is background, sums to 1 over channels.
        """
        frames = to_frame(normalise_intensity(array_hwd, self.config.window_hu), self.config.side_px)
        return probs_to_grid(self.predict_frames(frames), array_hwd.shape[:2])

    def predict_frames(self, frames: torch.Tensor, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """What its network says of frames, see `predict_frames`, without stray pieces of structures in one piece."""
        probs = predict_frames(self.network, frames, lengths)
        return without_stray_pieces(probs, self.config.in_one_piece, lengths)

    def predict(self, array_hwd: np.ndarray) -> np.ndarray:
        """The label map (H, W, D) uint8 with the protocol's indices."""
        return probs_to_label_map(self.predict_probs(array_hwd), self.indices)


def network_arguments(config: StudentConfig) -> dict[str, Any]:
    """The arguments of MONAI's UNet: 0.6 million parameters in 2D, 1.8 million in 3D."""
    is_3d = config.dims == "3d"
    return {
        "spatial_dims": 3 if is_3d else 2,
        "in_channels": 1 if is_3d else len(OFFSETS[config.dims]),
        "out_channels": len(config.indices) + 1,
        "channels": CHANNELS,
        "strides": STRIDES_3D if is_3d else STRIDES,
        "num_res_units": 1,
        # MONAI's default, PReLU, takes a fifth of a training step on a CPU. A plain ReLU can switch off one of the
        # K + 1 channels before the last convolution for good, and its structure with it.
        "act": ("leakyrelu", {"negative_slope": 0.1, "inplace": True}),
        "norm": "batch",
        "dropout": config.dropout,
    }


def build_network(config: StudentConfig, *, seed: int) -> UNet:
    """A MONAI U-Net with initial weights that depend on `seed` alone."""
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(**network_arguments(config))
    return network.to(memory_format=torch.channels_last if network.dimensions == 2 else torch.preserve_format)


def network_input(windows: torch.Tensor, *, is_3d: bool) -> torch.Tensor:
    """(B, W, side, side) windows of slices as (B, W, side, side) channels, or in 3D as (B, 1, side, side, W)."""
    if is_3d:
        return windows.permute(0, 2, 3, 1)[:, None].contiguous()
    return windows.contiguous(memory_format=torch.channels_last)


def with_dropout_on(network: UNet) -> UNet:
    """The network in evaluation mode with its dropout layers active; batch statistics stay frozen."""
    network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.train()
    return network


def predict_frames(network: UNet, frames: torch.Tensor, lengths: Sequence[int] | None = None) -> torch.Tensor:
    """Class probabilities of slices in the frame.

    Args:
        network: In evaluation mode, unless dropout passes are wanted.
        frames: (N, side, side) float in [0, 1].
        lengths: Slices of each image, in order; one image by default. A slice is seen with neighbours of its own image
            alone, and in 2D by itself.

    Returns:
        (N, K + 1, side, side) float32.
    """
    lengths = [len(frames)] if lengths is None else lengths
    with torch.inference_mode():
        if network.dimensions == 3:
            return torch.cat([_predict_volume(network, volume) for volume in frames.split(list(lengths))])
        n_context = network.in_channels // 2
        windows, _ = slice_windows(lengths, range(-n_context, n_context + 1))
        batches = (network_input(frames[numbers], is_3d=False) for numbers in windows.split(SLICES_PER_BATCH))
        return torch.cat([network(batch).float().softmax(1) for batch in batches])


def _predict_volume(network: UNet, frames: torch.Tensor) -> torch.Tensor:
    """(D, side, side) to (D, K + 1, side, side), block by block; a volume that is too thin repeats its last slices."""
    logits = sliding_window_inference(
        network_input(frames[None], is_3d=True),
        roi_size=(*frames.shape[1:], PATCH_SLICES),
        sw_batch_size=1,
        predictor=network,
        overlap=0.5,
        mode="gaussian",
        padding_mode="replicate",
    )
    return logits[0].float().softmax(0).permute(3, 0, 1, 2)


def without_stray_pieces(
    probs: torch.Tensor, in_one_piece: Sequence[bool], lengths: Sequence[int] | None = None
) -> torch.Tensor:
    """(N, K + 1, side, side) probabilities after `core.pieces.drop_stray_pieces` in each image, which changes them."""
    for volume in probs.split([len(probs)] if lengths is None else list(lengths)):
        drop_stray_pieces(volume.numpy().swapaxes(0, 1), in_one_piece)
    return probs


def probs_to_grid(probs: torch.Tensor, shape_hw: tuple[int, int]) -> np.ndarray:
    """(D, K + 1, side, side) in the frame to (K + 1, H, W, D) float32 on the image's grid."""
    return np.stack([from_frame(probs[:, k], shape_hw).permute(1, 2, 0).numpy() for k in range(probs.shape[1])])


def probs_to_label_map(probs: np.ndarray, indices: tuple[int, ...]) -> np.ndarray:
    """(K + 1, H, W, D) probabilities to an (H, W, D) uint8 label map of the most probable class."""
    table = np.array([0, *indices], dtype=np.uint8)
    return table[probs.argmax(0)]


def student_bytes(network: UNet, config: StudentConfig) -> bytes:
    """The file of a student; equal weights give equal bytes."""
    buffer = io.BytesIO()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    torch.save({"format": FORMAT, "config": asdict(config), "state_dict": state}, buffer)
    return buffer.getvalue()


def load_student(path: Path) -> Student:
    """Load a student's file, without executing anything in it.

    Raises:
        WeightsError: The file is missing, is no student or does not fit the architecture.
    """
    if not path.is_file():
        raise WeightsError(f"no student at {path}; train one with `samcorrect train`")
    content = path.read_bytes()
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise WeightsError(f"{path} is not a student of samcorrect; wanted the format {FORMAT!r}")
        config = _read_config(document["config"])
        network = build_network(config, seed=0)
        network.load_state_dict(document["state_dict"])
    except Exception as error:  # a stranger's bytes trip torch's reader in many ways, IndexError among them
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} cannot be loaded as a student: {' '.join(str(error).split())[:200]}") from error
    return Student(network, config, hashlib.sha256(content).hexdigest())


def _read_config(fields: dict) -> StudentConfig:
    """The configuration in a student's file; ValueError where no image could be segmented with it."""
    window_hu = fields.get("window_hu")
    config = StudentConfig(
        names=tuple(map(str, fields["names"])),
        indices=tuple(map(int, fields["indices"])),
        side_px=int(fields["side_px"]),
        dropout=float(fields["dropout"]),
        dims=fields.get("dims", "2d"),
        window_hu=None if window_hu is None else tuple(map(float, window_hu)),
        in_one_piece=tuple(map(bool, fields.get("in_one_piece", ()))),
    )
    n_indices, step_px = len(config.indices), math.prod(STRIDES)
    if n_indices == 0 or len(config.names) != n_indices:
        raise ValueError(f"{len(config.names)} names for {n_indices} indices; wanted one name an index, at least one")
    if len(set(config.indices)) < n_indices or not all(1 <= index <= MAX_INDEX for index in config.indices):
        raise ValueError(f"the indices {config.indices}; wanted different numbers from 1 to {MAX_INDEX}")
    if config.side_px < step_px or config.side_px % step_px:
        raise ValueError(f"side_px {config.side_px}; wanted a multiple of {step_px}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout {config.dropout}; wanted a share in [0, 1)")
    if config.dims not in get_args(StudentDims):
        raise ValueError(f"dims {config.dims!r}; wanted one of {', '.join(get_args(StudentDims))}")
    if config.window_hu is not None and not (len(config.window_hu) == 2 and np.diff(config.window_hu) > 0):
        raise ValueError(f"window_hu {config.window_hu}; wanted two values, the lower first")
    if len(config.in_one_piece) not in (0, n_indices):
        raise ValueError(f"in_one_piece of {len(config.in_one_piece)} structures; wanted {n_indices}, or none")
    return config
