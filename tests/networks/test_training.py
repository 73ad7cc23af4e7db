"""Training learns, repeats itself to the byte, and moves image and target together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion

from samcorrect.lib.core.losses import IGNORE
from samcorrect.lib.networks.augmentation import augment
from samcorrect.lib.networks.samples import TrainingData
from samcorrect.lib.networks.student import StudentConfig, predict_frames, student_bytes
from samcorrect.lib.networks.training import Training, train_network

SIDE_PX = 64
CONFIG = StudentConfig(names=("disc",), indices=(1,), side_px=SIDE_PX)
# The averaged weights look back over 50 steps, so that fewer than 200 are still half the initial ones.
LONG = {"steps": 200, "batch_size": 4, "learning_rate": 1e-2}
SHORT = {"steps": 4, "batch_size": 2, "learning_rate": 2e-3}


def discs(n: int, *, seed: int = 0) -> TrainingData:
    """Bright noisy discs of random place and radius on a dark ground."""
    generator = torch.Generator().manual_seed(seed)
    centers = 20 + 24 * torch.rand(n, 2, 1, 1, generator=generator)
    radii = 8 + 8 * torch.rand(n, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(SIDE_PX), torch.arange(SIDE_PX), indexing="ij")
    inside = (rows - centers[:, 0]) ** 2 + (columns - centers[:, 1]) ** 2 <= radii**2
    frames = torch.where(inside, 0.8, 0.2) + 0.05 * torch.randn(n, SIDE_PX, SIDE_PX, generator=generator)
    return TrainingData(frames.clamp(0, 1), inside.long(), torch.ones(n, SIDE_PX, SIDE_PX), torch.ones(n))


def disc_dice(training: Training, data: TrainingData) -> float:
    found = predict_frames(training.network, data.frames).argmax(1) == 1
    truth = data.targets == 1
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


@pytest.fixture(scope="module")
def trained() -> Training:
    return train_network(CONFIG, discs(16), seed=0, **LONG)


def test_a_bright_disc_is_learnt(trained):
    assert disc_dice(trained, discs(8, seed=1)) > 0.9
    assert not trained.network.training


def test_the_loss_curve_falls_and_ends_with_the_training(trained):
    steps, losses = zip(*trained.losses, strict=True)

    assert steps == (*range(0, 200, 10), 199)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] / 2


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before():
    data, config = discs(4), replace(CONFIG, dropout=0.2)
    torch.manual_seed(1)
    one = train_network(config, data, seed=3, **SHORT)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    same = train_network(config, data, seed=3, **SHORT)

    assert student_bytes(one.network, config) == student_bytes(same.network, config)
    assert one.losses == same.losses
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_gives_other_weights():
    data = discs(4)
    one, other = (student_bytes(train_network(CONFIG, data, seed=s, **SHORT).network, CONFIG) for s in (3, 4))

    assert one != other


def test_the_data_are_left_as_they_were_and_every_step_is_told():
    data, copy, told = discs(4), discs(4), []

    train_network(CONFIG, data, seed=0, on_step=lambda done, total: told.append((done, total)), **SHORT)

    for name in ("frames", "targets", "weights", "sampling"):
        assert torch.equal(getattr(data, name), getattr(copy, name))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_slice_that_is_never_drawn_teaches_nothing():
    data = discs(4)
    frames, targets = data.frames.clone(), data.targets.clone()
    frames[1], targets[1] = 0.5, 1
    sampling = torch.tensor([1.0, 0.0, 1.0, 1.0])

    one = train_network(CONFIG, replace(data, sampling=sampling), seed=0, **SHORT)
    other = train_network(CONFIG, replace(data, frames=frames, targets=targets, sampling=sampling), seed=0, **SHORT)

    assert student_bytes(one.network, CONFIG) == student_bytes(other.network, CONFIG)


def test_without_any_slice_to_draw_there_is_no_training():
    with pytest.raises(RuntimeError, match="sum of probabilities"):
        train_network(CONFIG, replace(discs(2), sampling=torch.zeros(2)), seed=0, **SHORT)


def test_pixels_of_weight_0_do_not_teach():
    """On every other square of a chessboard the target is inverted and weighs 0: without weights, Dice 0.2."""
    data, test = discs(16), discs(8, seed=1)
    squares = torch.arange(SIDE_PX) // 8
    is_wrong = ((squares[:, None] + squares[None]) % 2 == 1).expand(16, -1, -1)
    targets = torch.where(is_wrong, 1 - data.targets, data.targets)

    training = train_network(CONFIG, replace(data, targets=targets, weights=(~is_wrong).float()), seed=0, **LONG)

    assert disc_dice(training, test) > 0.8


def test_the_rule_for_batches_sees_the_progress_and_is_obeyed():
    data, seen = discs(4), []

    def nothing(logits: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append((tuple(logits.shape), tuple(targets.shape), progress))
        return torch.zeros(targets.shape)

    training = train_network(CONFIG, data, seed=0, weigh_batch=nothing, **SHORT)

    assert seen == [((2, 2, SIDE_PX, SIDE_PX), (2, SIDE_PX, SIDE_PX), step / 4) for step in range(4)]
    assert [loss for _, loss in training.losses] == [0.0, 0.0]
    assert all(torch.isfinite(p).all() for p in training.network.parameters())


def augmented(seed: int, data: TrainingData) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return augment(data.frames, data.targets, data.weights, torch.Generator().manual_seed(seed))


@pytest.fixture
def masks() -> TrainingData:
    """An L-shaped object, alike under no turn or mirroring, as image, target and weight at once."""
    inside = torch.zeros(12, SIDE_PX, SIDE_PX)
    inside[:, 16:48, 18:30] = inside[:, 38:48, 18:46] = 1
    return TrainingData(inside, inside.long(), inside.clone(), torch.ones(12))


def test_image_target_and_weight_move_together(masks):
    frames, targets, weights = augmented(0, masks)

    for frame, target, weight in zip(frames, targets, weights, strict=True):
        inside = (target == 1).numpy()
        # At the outline interpolation mixes the two sides; elsewhere the noise (SD 0.04) stays far below a quarter.
        assert (frame[torch.from_numpy(binary_erosion(inside, iterations=2))] > 0.75).all()
        assert (frame[torch.from_numpy(~binary_dilation(inside, iterations=2))] < 0.25).all()
        assert torch.equal(weight == 1, target == 1)
        assert 0.6 < inside.sum() / (masks.targets[0] == 1).sum() < 1.5


def test_every_slice_moves_and_each_differently(masks):
    _, targets, _ = augmented(0, masks)

    assert len(torch.unique((targets == 1).flatten(1), dim=0)) == len(targets)
    assert all(not torch.equal(target == 1, masks.targets[0] == 1) for target in targets)


def test_nothing_is_mirrored(masks):
    _, targets, _ = augmented(0, masks)

    def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
        """Best Dice over shifts, by correlation."""
        spectra = torch.fft.rfft2(one.float()), torch.fft.rfft2(other.float())
        common = torch.fft.irfft2(spectra[0] * spectra[1].conj(), s=one.shape).max()
        return float(2 * common / (one.sum() + other.sum()))

    original = masks.targets[0] == 1
    for target in targets == 1:
        assert overlap(target, original) > max(
            overlap(target, original.flip(0)), overlap(target, original.flip(1)), overlap(target, original.T)
        )


def test_what_comes_from_outside_is_ignored():
    data = TrainingData(
        torch.ones(12, SIDE_PX, SIDE_PX),
        torch.full((12, SIDE_PX, SIDE_PX), 2),
        torch.ones(12, SIDE_PX, SIDE_PX),
        torch.ones(12),
    )

    frames, targets, weights = augmented(0, data)

    assert set(targets.unique().tolist()) == {IGNORE, 2}
    outside = targets == IGNORE
    assert 0 < outside.float().mean() < 0.3
    assert (weights[outside] == 0).all()
    for frame, is_outside in zip(frames, outside, strict=True):
        assert (frame[torch.from_numpy(binary_erosion(is_outside.numpy(), border_value=1))] < 0.25).all()
        assert (frame[~is_outside][:100] > 0.25).all()


def test_ignored_and_background_pixels_stay_so():
    targets = torch.full((4, SIDE_PX, SIDE_PX), IGNORE)
    targets[:, 20:44, 20:44] = 0
    data = TrainingData(torch.zeros(4, SIDE_PX, SIDE_PX), targets, torch.ones(4, SIDE_PX, SIDE_PX), torch.ones(4))

    _, moved, _ = augmented(0, data)

    assert set(moved.unique().tolist()) == {IGNORE, 0}
    assert moved.dtype == torch.int64
    assert (moved[:, 30:34, 30:34] == 0).all()


def test_the_generator_alone_decides_and_the_arguments_stay_as_they_were():
    data, copy = discs(4), discs(4)
    torch.manual_seed(1)
    one = augmented(7, data)
    torch.manual_seed(2)
    same, other = augmented(7, data), augmented(8, data)

    for first, second, third in zip(one, same, other, strict=True):
        assert torch.equal(first, second)
        assert first.shape == data.frames.shape
        assert not torch.equal(first, third) or first is one[2]
    for name in ("frames", "targets", "weights"):
        assert torch.equal(getattr(data, name), getattr(copy, name))
    assert one[0].min() >= 0
    assert one[0].max() <= 1
