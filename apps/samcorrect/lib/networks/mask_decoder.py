"""SAM's mask decoder for many prompts of one image: the same results from much less work."""

import torch
from torch import nn
from torch.nn import functional


class SharedMaskDecoder(nn.Module):
    """The same network as segment-anything's MaskDecoder, and LiteMedSAM's and MobileSAM's, which are like it.

    That repeats the image's keys for each prompt before anything is computed. Here they stay one until the first layer
    adds what a prompt's tokens say about them; attention between a few tokens and thousands of keys projects the tokens
    alone; normalisation of channels is one pass; and only the mask that is wanted is made.
    """

    def __init__(self, decoder: nn.Module, positions: torch.Tensor):
        """Take over a decoder.

        Args:
            decoder: With its weights; it is changed, and of no use elsewhere then.
            positions: (1, C, h, w) of its prompt encoder (`get_dense_pe`).
        """
        super().__init__()
        decoder.output_upscaling[1] = _ChannelNorm(decoder.output_upscaling[1])
        transformer = decoder.transformer
        for layer in transformer.layers:
            layer.cross_attn_token_to_image = _TokensToImage(layer.cross_attn_token_to_image)
            layer.cross_attn_image_to_token = _ImageToTokens(layer.cross_attn_image_to_token)
        transformer.final_attn_token_to_image = _TokensToImage(transformer.final_attn_token_to_image)
        self._decoder = decoder
        self.register_buffer("_positions", positions.contiguous(memory_format=torch.channels_last))

    def forward(self, keys: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts.

        Args:
            keys: (1, C, h, w) embedding of the image and, added to it, of the mask prompt; fastest in channels_last.
            prompts: (N, T, C) embedding of each prompt's boxes and points.

        Returns:
            (N, 4 h, 4 w) logits and (N,) predicted IoU.
        """
        decoder = self._decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts], 1)
        tokens, told = decoder.transformer(keys, self._positions, tokens)
        upscaled = decoder.output_upscaling(told.transpose(1, 2).unflatten(2, keys.shape[2:]))
        weights = decoder.output_hypernetworks_mlps[0](tokens[:, 1])
        logits = (weights[:, None] @ upscaled.flatten(2))[:, 0].unflatten(1, upscaled.shape[2:])
        return logits, decoder.iou_prediction_head(tokens[:, 0])[:, 0]


class _FoldedAttention(nn.Module):
    """segment-anything's Attention between few tokens and many keys: (x W) y = x (W y), with the keys as x."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self._attention, self._n_heads = attention, attention.num_heads
        self._scale = (attention.internal_dim // attention.num_heads) ** -0.5

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(N, T, D) to (N, heads, T, D / heads)."""
        return projected.unflatten(-1, (self._n_heads, -1)).transpose(1, 2)


class _TokensToImage(_FoldedAttention):
    """The tokens (N, T, C) ask the keys (n, P, C), n = 1 or N."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own, heads = self._attention, (self._n_heads, -1)
        # What the bias of the keys adds is the same for all keys, and so nothing.
        asked = (self._heads(own.q_proj(q)) @ own.k_proj.weight.unflatten(0, heads)).flatten(1, 2)
        weights = (k @ (self._scale * asked).transpose(1, 2)).transpose(1, 2).contiguous().softmax(2)
        found = (weights @ v).unflatten(1, heads) @ own.v_proj.weight.unflatten(0, heads).transpose(1, 2)
        return own.out_proj(found.transpose(1, 2).flatten(2) + own.v_proj.bias)


class _ImageToTokens(_FoldedAttention):
    """The keys (n, P, C), n = 1 or N, ask the tokens (N, T, C)."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own, heads = self._attention, (self._n_heads, -1)
        of_tokens = self._scale * self._heads(own.k_proj(k))
        asked = (of_tokens @ own.q_proj.weight.unflatten(0, heads)).flatten(1, 2)
        bias = (of_tokens @ own.q_proj.bias.unflatten(0, heads)[..., None]).flatten(1)[:, None]
        # Along the keys, as torch is slow at many small sums.
        weights = (q @ asked.transpose(1, 2) + bias).transpose(1, 2).contiguous()
        weights = weights.unflatten(1, heads).softmax(2).flatten(1, 2).transpose(1, 2)
        told = (self._heads(own.v_proj(v)) @ own.out_proj.weight.T.unflatten(0, heads)).flatten(1, 2)
        return weights @ told + own.out_proj.bias


class _ChannelNorm(nn.Module):
    """segment-anything's LayerNorm2d."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        normed = functional.layer_norm(pixels.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self._eps)
        return normed.permute(0, 3, 1, 2)
