"""The loss by hand, against MONAI, and for what a pixel without weight may do: nothing."""

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from samcorrect.lib.core.losses import IGNORE, cross_entropy_map, weighted_segmentation_loss


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def logits(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=generator).requires_grad_()


@pytest.fixture
def targets(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 3, (2, 16, 16), generator=generator)


def gradient(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(weighted_segmentation_loss(logits, targets, weights), logits)[0]


def test_two_pixels_by_hand():
    loss = weighted_segmentation_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]), torch.tensor([[[1.0, 3.0]]]))

    # Both channels have probability 1/2, so the cross entropy is ln 2 whatever the weights. Channel 1: overlap 1/2 x 3
    # = 1.5, sizes (1/2 + 0) x 1 + (1/2 + 1) x 3 = 5, Dice (3 + 1) / (5 + 1) = 2/3.
    assert loss.item() == pytest.approx(math.log(2) + 1 / 3)


def test_the_cross_entropy_is_averaged_by_weight():
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, 2.0]]]])
    targets = torch.tensor([[[1, 1]]])

    losses = cross_entropy_map(logits, targets)

    # ln 2 and ln(1 + e^-2).
    assert losses.flatten().tolist() == pytest.approx([0.693147, 0.126928], abs=1e-5)


def test_the_cross_entropy_of_an_ignored_pixel_is_0(logits, targets):
    targets[0, 3, 4] = IGNORE

    losses = cross_entropy_map(logits, targets)

    assert losses[0, 3, 4] == 0
    assert (losses >= 0).all()
    assert losses.shape == targets.shape


def test_weights_of_1_give_monais_loss(logits, targets):
    dice_loss = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )

    loss = weighted_segmentation_loss(logits, targets, torch.ones(targets.shape))

    expected = cross_entropy(logits, targets) + dice_loss(logits, targets[:, None])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("weight", [0.25, 4.0])
def test_constant_weights_are_no_weights(generator, weight):
    # Dice is smoothed by one pixel, which a weight makes lighter or heavier: on objects of 1000 pixels that is below
    # 0.1%.
    logits = torch.randn(2, 2, 48, 48, generator=generator)
    targets = torch.randint(0, 2, (2, 48, 48), generator=generator)

    weighted = weighted_segmentation_loss(logits, targets, torch.full(targets.shape, weight))

    torch.testing.assert_close(
        weighted, weighted_segmentation_loss(logits, targets, torch.ones(targets.shape)), rtol=1e-3, atol=0
    )


def test_weights_change_the_gradient(logits, targets):
    """The fault of the code of arXiv 2308.00883: there the weights change the gradient's length alone."""
    weights = torch.ones(targets.shape)
    weights[:, :8] = 0.1

    even, uneven = gradient(logits, targets, torch.ones(targets.shape)), gradient(logits, targets, weights)

    cosine = cosine_similarity(even.flatten(), uneven.flatten(), dim=0)
    assert cosine < 0.95
    assert uneven[:, :, :8].abs().sum() < 0.3 * even[:, :, :8].abs().sum()
    assert uneven[:, :, 8:].abs().sum() > even[:, :, 8:].abs().sum()


@pytest.mark.parametrize("how", ["weight 0", "ignored"])
def test_a_pixel_without_weight_has_no_influence_at_all(logits, targets, how):
    silent = torch.zeros(targets.shape, dtype=torch.bool)
    silent[0, 2:9, 3:12] = silent[1, 0] = True
    weights = torch.ones(targets.shape)
    if how == "ignored":
        targets = targets.masked_fill(silent, IGNORE)
        targets_after = targets
    else:
        weights = weights.masked_fill(silent, 0)
        targets_after = torch.where(silent, (targets + 1) % 3, targets)
    logits_after = torch.where(silent[:, None], 100 * torch.randn_like(logits), logits).detach().requires_grad_()

    assert weighted_segmentation_loss(logits, targets, weights) == weighted_segmentation_loss(
        logits_after, targets_after, weights
    )
    before, after = gradient(logits, targets, weights), gradient(logits_after, targets_after, weights)
    assert torch.equal(before, after)
    assert (before.movedim(1, -1)[silent] == 0).all()
    assert (before.movedim(1, -1)[~silent] != 0).any()


def test_ignored_pixels_are_weight_0_pixels(logits, targets):
    silent = torch.rand(targets.shape) < 0.3

    ignored = weighted_segmentation_loss(logits, targets.masked_fill(silent, IGNORE), torch.ones(targets.shape))
    unweighted = weighted_segmentation_loss(logits, targets, (~silent).float())

    assert ignored == unweighted


@pytest.mark.parametrize("how", ["weight 0", "ignored"])
def test_nothing_to_learn_from_is_loss_0_and_gradient_0(logits, targets, how):
    if how == "ignored":
        targets, weights = torch.full_like(targets, IGNORE), torch.ones(targets.shape)
    else:
        weights = torch.zeros(targets.shape)

    loss = weighted_segmentation_loss(logits, targets, weights)
    loss.backward()

    assert loss == 0
    assert (logits.grad == 0).all()


def test_a_better_prediction_has_a_lower_loss_and_nothing_is_changed(logits, targets):
    weights = torch.rand(targets.shape)
    copies = [t.detach().clone() for t in (logits, targets, weights)]
    right = 10 * one_hot(targets, 3).movedim(-1, 1).float()

    assert 0 <= weighted_segmentation_loss(right, targets, weights) < 0.02
    assert weighted_segmentation_loss(right, targets, weights) < weighted_segmentation_loss(logits, targets, weights)
    assert weighted_segmentation_loss(logits, targets, weights) < weighted_segmentation_loss(-right, targets, weights)
    for tensor, copy in zip((logits, targets, weights), copies, strict=True):
        assert torch.equal(tensor.detach(), copy)


def test_half_precision_logits_give_a_single_precision_loss(logits, targets):
    loss = weighted_segmentation_loss(logits.bfloat16(), targets, torch.ones(targets.shape))

    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, weighted_segmentation_loss(logits, targets, torch.ones(targets.shape)), rtol=0.02, atol=0
    )
