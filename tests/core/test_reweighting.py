"""Which labels and pixels a training believes: the mixture over labels and the repaired rule of arXiv 2308.00883."""

import numpy as np
import pytest
import torch

from samcorrect.lib.core.losses import cross_entropy_map
from samcorrect.lib.core.reweighting import (
    MIN_LABELS_FOR_MIXTURE,
    below_better_half,
    favour_approved,
    huang_weights,
    posterior_good,
)

NAN = float("nan")
BEFORE, AFTER = 0.0, 0.2


@pytest.fixture
def two_populations() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(np.concatenate([rng.normal(0.9, 0.02, 60), rng.normal(0.4, 0.05, 30)]), 0, 1)


def logits_of_losses(losses: torch.Tensor) -> torch.Tensor:
    """Two-channel logits whose cross entropy for target 0 is `losses`, (B, H, W) above 0."""
    return torch.stack([torch.zeros_like(losses), torch.log(torch.expm1(losses))], 1)


def test_two_populations_are_told_apart(two_populations):
    posterior = posterior_good(two_populations)

    assert (posterior[:60] > 0.95).all()
    assert (posterior[60:] < 0.05).all()


@pytest.mark.parametrize("seed", range(5))
def test_one_population_is_trusted_whole(seed):
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-rng.normal(2, 0.4, 100)))

    np.testing.assert_array_equal(posterior_good(scores), np.ones(100))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n", [8, 12, 16, 24])
def test_a_small_population_is_trusted_too(n):
    rng = np.random.default_rng(0)
    draws = 1 / (1 + np.exp(-rng.normal(2.3, 0.6, (40, n))))

    is_halved = [(posterior_good(scores) < 0.5).mean() >= 0.5 for scores in draws]

    assert np.mean(is_halved) <= 0.05


def test_empty_labels_are_judged_by_themselves():
    rng = np.random.default_rng(0)
    scores = np.append(1 / (1 + np.exp(-rng.normal(2.9, 0.4, 39))), [1.0, 1.0, 0.0, NAN])
    is_empty = np.arange(43) >= 39

    assert (posterior_good(scores[:41]) < 0.5).mean() > 0.9  # as if only the empty ones were good
    posterior = posterior_good(scores, is_empty=is_empty)

    np.testing.assert_array_equal(posterior[:39], posterior_good(scores[:39]))
    assert (posterior[:39] == 1).all()
    np.testing.assert_array_equal(posterior[39:], [1, 1, 0, NAN])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_equal_scores_are_one_population():
    np.testing.assert_array_equal(posterior_good(np.full(20, 0.7)), np.ones(20))


def test_undefined_scores_have_no_posterior_and_no_say(two_populations):
    with_nan = np.insert(two_populations, [0, 45, 90], NAN)

    posterior = posterior_good(with_nan)

    np.testing.assert_array_equal(np.isnan(posterior), np.isnan(with_nan))
    np.testing.assert_array_equal(posterior[np.isfinite(with_nan)], posterior_good(two_populations))


def test_too_few_scores_are_trusted():
    few = np.array([0.9] * 4 + [0.1] * (MIN_LABELS_FOR_MIXTURE - 5) + [NAN] * 5)

    np.testing.assert_array_equal(posterior_good(few), [1.0] * (MIN_LABELS_FOR_MIXTURE - 1) + [NAN] * 5)
    assert posterior_good(np.array([])).shape == (0,)


def test_scores_of_0_and_1_are_usable():
    posterior = posterior_good(np.array([0.0] * 10 + [1.0] * 20))

    np.testing.assert_allclose(posterior, [0.0] * 10 + [1.0] * 20, atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_the_posterior_never_falls_as_the_score_rises(seed):
    # A wide bad population reaches beyond the narrow good one at both ends, where the mixture alone would trust the
    # best least.
    rng = np.random.default_rng(seed)
    scores = np.clip(np.concatenate([rng.normal(0.85, 0.01, 50), rng.normal(0.5, 0.25, 40)]), 0, 1)
    before = scores.copy()

    posterior = posterior_good(scores)

    assert (np.diff(posterior[np.argsort(scores, kind="stable")]) >= 0).all()
    assert posterior.min() >= 0
    assert posterior.max() <= 1
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(posterior, posterior_good(scores))


def test_huang_drops_the_worst_sample_of_a_batch():
    losses = torch.full((8, 4, 4), 0.5)
    losses[5] = 0.6
    # The highest pixel of the batch, in a sample that is better on the whole.
    losses[2] = 0.3
    losses[2, 0, 0] = 3.0

    weights = huang_weights(logits_of_losses(losses), torch.zeros(8, 4, 4, dtype=torch.int64), progress=BEFORE)

    expected = torch.ones(8, 4, 4)
    expected[5] = 0
    assert torch.equal(weights, expected)


@pytest.mark.parametrize(("n_batch", "n_dropped"), [(1, 0), (2, 1), (8, 1), (14, 1), (16, 2), (30, 3)])
def test_huang_drops_a_tenth_but_at_least_one_of_two(n_batch, n_dropped):
    losses = torch.linspace(0.1, 1.0, n_batch)[:, None, None].expand(n_batch, 3, 3)

    weights = huang_weights(logits_of_losses(losses), torch.zeros(n_batch, 3, 3, dtype=torch.int64), progress=BEFORE)

    assert (weights.flatten(1).amax(1) == 0).tolist() == [n >= n_batch - n_dropped for n in range(n_batch)]


def test_huang_drops_the_pixels_above_the_098_quantile_after_the_warm_up():
    # 101 different losses: the 0.98 quantile is the 99th, so two are above it.
    losses = torch.linspace(0.1, 2.0, 101)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    logits, targets = logits_of_losses(losses[None, None]), torch.zeros(1, 1, 101, dtype=torch.int64)

    before = huang_weights(logits, targets, progress=AFTER - 0.01)
    after = huang_weights(logits, targets, progress=AFTER)

    assert (before == 1).all()
    assert set(torch.flatten(after == 0).nonzero().flatten().tolist()) == set(losses.topk(2).indices.tolist())


def test_huang_weights_are_zeros_and_ones_without_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, 32, 32, generator=generator, requires_grad=True)
    targets = torch.randint(0, 3, (8, 32, 32), generator=generator)
    logits_before = logits.detach().clone()

    weights = huang_weights(logits, targets, progress=0.5)

    assert set(weights.unique().tolist()) == {0.0, 1.0}
    assert not weights.requires_grad
    assert weights.dtype == torch.float32
    assert torch.equal(logits.detach(), logits_before)
    kept, dropped = cross_entropy_map(logits_before, targets)[weights == 1], weights == 0
    assert kept.max() <= cross_entropy_map(logits_before, targets).quantile(0.98)
    # One sample of eight, and a fiftieth of the pixels, some of them in that sample.
    assert 1 / 8 < dropped.float().mean() < 1 / 8 + 0.021


def test_a_few_labels_far_below_the_others_are_not_trusted_although_they_are_no_population():
    logits = np.random.default_rng(3).normal(2.5, 0.3, 60)
    logits[[7, 31]] = -0.5  # ten deviations below
    posterior = posterior_good(1 / (1 + np.exp(-logits)))
    assert (posterior[[7, 31]] < 0.5).all()
    others = np.delete(posterior, [7, 31])
    assert (others > 0.5).mean() > 0.95


def test_what_lies_far_below_the_better_half_is_found_however_wide_the_worse_half_is():
    # The better half is 2, 2, 4, 4, 4, 4: mean 3.33, deviation 0.94, so the line is at 3.33 - 4 * 0.94 = -0.44.
    logits = np.array([2.0, 4, 2, 4, 2, 4, -0.3, -0.5, -3, 1.9, 2, 4])
    scores = 1 / (1 + np.exp(-logits))
    assert np.flatnonzero(below_better_half(scores)).tolist() == [7, 8]
    assert np.flatnonzero(below_better_half(np.append(scores, np.nan))).tolist() == [7, 8]


def test_equal_scores_and_too_few_have_nothing_below_their_better_half():
    assert not below_better_half(np.full(20, 0.7)).any()
    assert not below_better_half(np.array([0.1] + [0.9] * 6)).any()


def test_of_one_normal_population_a_twentieth_is_below_its_better_half():
    logits = np.random.default_rng(0).normal(2, 0.5, 20_000)
    assert below_better_half(1 / (1 + np.exp(-logits))).mean() == pytest.approx(0.054, abs=0.005)


@pytest.mark.parametrize(
    ("sampling", "approved", "expected"),
    [
        # 2 of people, 6 of others: three times as often.
        ([1, 1, 1, 1, 1, 1, 1, 1], [0, 1], [3, 3, 1, 1, 1, 1, 1, 1]),
        # What is little trusted counts as little: 1.5 of others.
        ([1, 0.5, 1], [0], [1.5, 0.5, 1]),
        # Ten times is the most.
        ([1] * 100, [99], [1] * 99 + [10]),
        # Half of it already.
        ([1, 1, 1], [0, 1], [1, 1, 1]),
        ([1, 1], [], [1, 1]),
        ([1, 0.1], [0, 1], [1, 0.1]),
        # What a training is not to see stays unseen.
        ([0, 1, 1, 1], [0, 1], [0, 2, 1, 1]),
        ([0, 1, 1], [0], [0, 1, 1]),
    ],
)
def test_what_people_approved_is_half_of_what_is_drawn(sampling, approved, expected):
    is_approved = torch.isin(torch.arange(len(sampling)), torch.tensor(approved))
    found = favour_approved(torch.tensor(sampling, dtype=torch.float32), is_approved)
    assert found.tolist() == pytest.approx(expected)
