"""What an exported bundle names besides MONAI's own parts, so that MONAI segments exactly as samcorrect does.

MONAI's own transforms come near it and do not equal it: its percentiles and its antialiasing are other ones.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.nets import UNet
from monai.transforms import MapTransform

from samcorrect.lib.errors import RequestError
from samcorrect.lib.networks.student import predict_frames, probs_to_grid, probs_to_label_map, without_stray_pieces
from samcorrect.lib.store.volumes import read_image
from samcorrect.lib.transforms.frame import normalise_intensity, to_frame

# Key of a MetaTensor's `meta`: (H, W, D) of the image.
SHAPE = "spatial_shape"


class ReadFramed(MapTransform):
    """A file of `store.volumes` becomes the student's frames: (1, side, side, D) float32 in [0, 1], D slices."""

    def __init__(
        self,
        keys: KeysCollection,
        side_px: int,
        window_hu: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ):
        """Read the files at `keys` into frames of `side_px`, CT by its window."""
        super().__init__(keys, allow_missing_keys)
        self.side_px = side_px
        self.window_hu = None if window_hu is None else tuple(window_hu)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raises ImageError where a file cannot be read."""
        told = dict(data)
        for key in self.key_iterator(told):
            volume = read_image(Path(told[key]))
            frames = to_frame(normalise_intensity(volume.array, self.window_hu), self.side_px).permute(1, 2, 0)[None]
            meta = {"filename_or_obj": str(told[key]), SHAPE: np.array(volume.array.shape)}
            told[key] = MetaTensor(frames, affine=torch.from_numpy(volume.affine), meta=meta)
        return told


class StudentInferer(Inferer):
    """Frames (1, 1, side, side, D) of one image to probabilities (1, K + 1, side, side, D), as a Student predicts."""

    def __init__(self, in_one_piece: Sequence[bool] = ()):
        """`in_one_piece` is that of the student's configuration."""
        super().__init__()
        self.in_one_piece = tuple(in_one_piece)

    def __call__(self, inputs: torch.Tensor, network: UNet, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Raises RequestError where several images come at once: each has slices of its own number."""
        if len(inputs) != 1:
            raise RequestError(f"the student takes one image at a time, so a batch size of 1; got {len(inputs)}")
        frames = torch.as_tensor(inputs[0, 0]).permute(2, 0, 1)
        probs = predict_frames(network, frames).cpu()
        return without_stray_pieces(probs, self.in_one_piece).permute(1, 2, 3, 0)[None]


class ToLabelMapd(MapTransform):
    """Probabilities (K + 1, side, side, D) become the label map on the image's grid: (1, H, W, D) uint8."""

    def __init__(
        self, keys: KeysCollection, indices: Sequence[int], ref_image: str = "image", allow_missing_keys: bool = False
    ):
        """`indices` are the label indices of channels 1 to K; `ref_image` is the key that `ReadFramed` filled."""
        super().__init__(keys, allow_missing_keys)
        self.indices = tuple(indices)
        self.ref_image = ref_image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The label map keeps the affine and the file name of the image."""
        told = dict(data)
        meta = told[self.ref_image].meta
        rows, columns = (int(n) for n in meta[SHAPE][:2])
        for key in self.key_iterator(told):
            probs = torch.as_tensor(told[key]).permute(3, 0, 1, 2).cpu()
            label_map = probs_to_label_map(probs_to_grid(probs, (rows, columns)), self.indices)
            told[key] = MetaTensor(torch.from_numpy(label_map)[None], meta=meta)
        return told
