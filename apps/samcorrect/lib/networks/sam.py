"""A promptable model: one encoding per slice, many prompts per encoding.

Frames are this module's only input: (D, side, side) with the array axes (H, W) = (x, y) of `transforms.frame`. SAM
wants rows = y and columns = x, so slices are transposed on the way in and masks on the way out; XY order exists nowhere
else.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from samcorrect.lib.networks.architectures import Architecture
from samcorrect.lib.networks.mask_decoder import SharedMaskDecoder
from samcorrect.lib.networks.runtimes import Encoder, choose_runtime, make_encoder
from samcorrect.lib.transforms.frame import MASK_PX

# Measured on two Zen 4 cores: of as many prompts at once each takes 0.6 to 0.7 times as long as one alone, and of 16 no
# less than of 8 or 4; the decoder is bound by memory.
PROMPTS_PER_BATCH = 4
# segment-anything's stability score compares the mask at the threshold raised and lowered by this (build:
# stability_score_offset).
STABILITY_OFFSET = 1.0


class SamModel:
    """A promptable model with its weights loaded.

    Attributes:
        name: As `sam_model` names it.
        digest: SHA-256 of the weights.
        runtime: How it runs, for example "torch-bf16"; part of every label's provenance.
        side_px: Side of the frame that it encodes.
        mask_px: Side of its masks, which cover the same frame.
        prompts: What it was trained with, of "box", "point" and "mask".
        embedding_identity: What an embedding depends on beside the frame.
    """

    mask_px = MASK_PX

    def __init__(
        self,
        network: nn.Module,
        architecture: Architecture,
        *,
        name: str,
        digest: str,
        runtime: str = "auto",
        export_dir: Path | None = None,
    ):
        self.name, self.digest, self.runtime = name, digest, choose_runtime(runtime)
        self._is_exported = not self.runtime.startswith(("torch", "cuda"))
        self.side_px, self.prompts = architecture.side_px, architecture.prompts
        self.embedding_identity = f"{digest} {self.runtime} {architecture.name}"
        self._architecture, self._export_dir = architecture, export_dir
        self._network = network.eval()
        self._encoder: Encoder | None = None
        self._encoder_lock = threading.Lock()
        self._device = torch.device("cuda" if self.runtime == "cuda" else "cpu")
        self._network.to(self._device)
        self._precision = torch.float32 if self.runtime.endswith("fp32") else torch.bfloat16
        with torch.inference_mode():
            positions = self._network.prompt_encoder.get_dense_pe()
        self._decoder = SharedMaskDecoder(self._network.mask_decoder, positions).to(self._precision)

    def encode(self, frame: torch.Tensor) -> torch.Tensor:
        """Encode one slice.

        Args:
            frame: (side, side) float in [0, 1].

        Returns:
            (256, 64, 64) float16 embedding.
        """
        with self._encoder_lock:  # an export takes seconds; threads that start together make one
            if self._encoder is None:
                self._encoder = make_encoder(
                    self._network.image_encoder,
                    self.runtime,
                    side_px=self.side_px,
                    identity=f"{self.digest} {self._architecture.name}",
                    export_dir=self._export_dir,
                )
                if self._is_exported:
                    self._network.image_encoder = nn.Identity()  # the other runtime has its own copy of the weights
        return self._encoder(self._architecture.normalise(frame.T.float()))[0].to("cpu", torch.float16)

    def start_threads(self) -> None:
        """Encode once where the runtime then starts the threads of all later callers, and has not yet: they keep the
        priority of the thread that asks first.
        """
        if self._encoder is None and self._is_exported:
            self.encode(torch.zeros(self.side_px, self.side_px))

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
            boxes: (N, 4) of [start0, start1, stop0, stop1] in pixels of a mask along the array axes; one mask each.
            points: (axis 0, axis 1, is_foreground) in pixels of a mask, added to every box, or the only prompt.
            mask_logits: (mask_px, mask_px) logits of an earlier mask of the same slice.

        Returns:
            (N, mask_px, mask_px) float32 logits (a mask is where they are above 0) and (N,) predicted IoU.
        """
        scale = self.side_px / self.mask_px
        given = None if boxes is None else scale * torch.as_tensor(boxes, dtype=torch.float32, device=self._device)
        coordinates = scale * torch.tensor([[p[:2] for p in points]], dtype=torch.float32, device=self._device)
        signs = torch.tensor([[int(p[2]) for p in points]], dtype=torch.int64, device=self._device)
        dense = None if mask_logits is None else mask_logits.T[None, None].float().to(self._device)
        encode_prompts = self._network.prompt_encoder
        logits, ious = [], []
        with torch.inference_mode():
            keys = embedding[None].to(self._device) + encode_prompts(points=None, boxes=None, masks=dense)[1]
            keys = keys.to(self._precision, memory_format=torch.channels_last)
            for batch in (None,) if given is None else given.split(PROMPTS_PER_BATCH):
                n_batch = 1 if batch is None else len(batch)
                at = (coordinates.expand(n_batch, -1, -1), signs.expand(n_batch, -1)) if points else None
                prompts, _ = encode_prompts(points=at, boxes=batch, masks=None)
                low, iou = self._decoder(keys, prompts.to(self._precision))
                logits.append(low.float().transpose(1, 2).cpu())
                ious.append(iou.float().cpu())
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
