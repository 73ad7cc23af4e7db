"""Trainings that are killed, collapse, end early or begin with another's weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samcorrect.lib.errors import TrainingError
from samcorrect.lib.networks import training as training_module
from samcorrect.lib.networks.samples import Samples, TrainingData
from samcorrect.lib.networks.student import StudentConfig, build_network, predict_frames, student_bytes
from samcorrect.lib.networks.training import train_network

SIDE_PX = 32
CONFIG = StudentConfig(names=("left", "right"), indices=(1, 2), side_px=SIDE_PX, dropout=0.1)
SHORT = {"steps": 6, "batch_size": 2, "learning_rate": 2e-3, "seed": 0}


class Memory:
    """A checkpoint that is always due."""

    def __init__(self, content: bytes | None = None):
        self.content, self.n_writes = content, 0

    def read(self) -> bytes | None:
        return self.content

    def is_due(self) -> bool:
        return True

    def write(self, content: bytes) -> None:
        self.content, self.n_writes = content, self.n_writes + 1


class KilledError(Exception):
    """The process ends."""


@pytest.fixture
def squares() -> TrainingData:
    """Eight slices with a bright square on the left and a dim one on the right, in two volumes."""
    targets = torch.zeros(8, SIDE_PX, SIDE_PX, dtype=torch.int64)
    for number, row in enumerate((4, 6, 8, 10, 12, 14, 6, 9)):
        targets[number, row : row + 12, 3:13], targets[number, row : row + 12, 19:29] = 1, 2
    frames = torch.tensor([0.1, 0.9, 0.5])[targets]
    return TrainingData(frames, targets, torch.ones(8, SIDE_PX, SIDE_PX), torch.ones(8), lengths=(5, 3))


def zeros(logits: torch.Tensor, targets: torch.Tensor, *, progress: float) -> torch.Tensor:
    return torch.zeros(targets.shape)


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_a_structure_is_looked_for_where_it_is_largest(dims):
    """A structure in one of sixty volumes, of which the slices that are spread over all of them miss the middle."""
    targets = torch.zeros(60 * 16, SIDE_PX, SIDE_PX, dtype=torch.int64)
    targets[:, 2:30, 2:30] = 1
    for depth, width in zip(range(3, 13), (1, 2, 4, 6, 8, 8, 6, 4, 2, 1), strict=True):
        targets[31 * 16 + depth, 10 : 10 + width, 10 : 10 + width] = 2
    data = TrainingData(torch.zeros(targets.shape), targets, None, torch.ones(len(targets)), lengths=(16,) * 60)

    samples = Samples(data, replace(CONFIG, dims=dims))

    assert {31 * 16 + 7, 31 * 16 + 8} <= set(samples.learnt.tolist())
    not_drawn = replace(data, sampling=torch.ones(len(targets)).index_fill(0, torch.arange(31 * 16, 32 * 16), 0))
    unknown = Samples(not_drawn, replace(CONFIG, dims=dims)).learnt
    assert not ((unknown >= 31 * 16) & (unknown < 32 * 16)).any()


@pytest.mark.parametrize(("dims", "is_held_out"), [("2d", False), ("2d", True), ("3d", False)])
def test_a_killed_training_goes_on_to_the_same_bytes(squares, monkeypatch, dims, is_held_out):
    monkeypatch.setattr(training_module, "CHECK_EVERY", 2)
    config = replace(CONFIG, dims=dims)
    data = replace(squares, held_out=torch.arange(8) == 4) if is_held_out else squares
    undisturbed = train_network(config, data, **SHORT)
    checkpoint, told = Memory(), []

    def kill(done: int, _total: int) -> None:
        if done == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train_network(config, data, checkpoint=checkpoint, on_step=kill, **SHORT)
    torch.manual_seed(99)
    resumed = train_network(
        config, data, checkpoint=checkpoint, on_step=lambda done, _total: told.append(done), **SHORT
    )

    assert told == [4, 5, 6]  # the step that was under way is taken again
    assert student_bytes(resumed.network, config) == student_bytes(undisturbed.network, config)
    assert (resumed.losses, resumed.held_out_dice) == (undisturbed.losses, undisturbed.held_out_dice)
    assert len(resumed.held_out_dice) == (3 if is_held_out else 0)
    assert checkpoint.n_writes == 3 + 2


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_checkpoint_that_cannot_be_read_is_told_and_the_training_begins_anew(squares, caplog, content):
    training = train_network(CONFIG, squares, checkpoint=Memory(content), **SHORT)

    assert student_bytes(training.network, CONFIG) == student_bytes(
        train_network(CONFIG, squares, **SHORT).network, CONFIG
    )
    assert "a training begins anew: a checkpoint cannot be read" in caplog.text


@pytest.fixture
def judged_early(monkeypatch) -> dict:
    """A training that is short, whose averaged weights soon forget the start, and that is judged nevertheless."""
    monkeypatch.setattr(training_module, "EMA_DECAY", 0.5)
    monkeypatch.setattr(training_module, "MIN_JUDGED_STEPS", 40)
    return {"steps": 40, "batch_size": 4, "learning_rate": 3e-2, "seed": 0}


def test_a_training_that_finds_nothing_begins_again_from_another_seed(squares, judged_early, caplog):
    n_steps = 0

    def dies_once(logits: torch.Tensor, targets: torch.Tensor, *, progress: float) -> torch.Tensor:
        nonlocal n_steps
        n_steps += 1
        # Only background teaches at first, so that nothing else is found.
        return (targets == 0).float() if n_steps <= judged_early["steps"] else torch.ones(targets.shape)

    training = train_network(CONFIG, squares, weigh_batch=dies_once, **judged_early)

    assert (training.n_restarts, training.fault) == (1, "")
    assert "begins again from another seed: after 40 steps it finds no left" in caplog.text
    found = predict_frames(training.network, squares.frames).argmax(1)
    assert {1, 2} <= set(found.unique().tolist())
    undisturbed = train_network(CONFIG, squares, **{**judged_early, "seed": training_module.RESTART_STRIDE})
    assert student_bytes(training.network, CONFIG) == student_bytes(undisturbed.network, CONFIG)


def test_a_structure_that_no_seed_finds_is_told_with_the_student(squares, judged_early):
    def only_background(logits: torch.Tensor, targets: torch.Tensor, *, progress: float) -> torch.Tensor:
        return (targets == 0).float()

    training = train_network(CONFIG, squares, weigh_batch=only_background, **judged_early)

    assert training.n_restarts == training_module.MAX_RESTARTS
    assert training.fault.startswith("after 40 steps it finds no ")
    assert training.fault.endswith("in the images that it learns from")


def test_a_loss_that_is_not_finite_from_any_seed_is_an_error(squares):
    squares.frames[:] = torch.nan

    with pytest.raises(TrainingError, match=r"collapsed from 3 seeds.*its loss was nan at step 0"):
        train_network(CONFIG, squares, **SHORT)


def test_a_short_training_is_not_judged(squares):
    assert train_network(CONFIG, squares, weigh_batch=zeros, **SHORT).n_restarts == 0


def test_a_training_ends_once_it_agrees_no_better_with_what_it_never_drew(squares, monkeypatch):
    monkeypatch.setattr(training_module, "CHECK_EVERY", 2)
    monkeypatch.setattr(training_module, "MIN_DICE_GAIN", 1.0)
    data, done = replace(squares, held_out=torch.arange(8) >= 5), []

    training = train_network(CONFIG, data, on_step=lambda step, _total: done.append(step), **{**SHORT, "steps": 60})

    # The first check and as many as are waited for.
    assert done[-1] == 2 * (1 + training_module.PATIENCE)
    assert [step for step, _ in training.held_out_dice] == [2, 4, 6, 8, 10, 12]
    assert all(0 <= dice <= 1 for _, dice in training.held_out_dice)


def test_what_comes_out_are_the_weights_that_agreed_best(squares, monkeypatch):
    monkeypatch.setattr(training_module, "CHECK_EVERY", 2)
    agreed, averages = [0.4, 0.8, 0.7, 0.75], []

    def overlap(attempt, _numbers):
        averages.append([parameter.detach().clone() for parameter in attempt.average.module.parameters()])
        common = agreed[len(averages) - 1]
        return np.array([[common, 1, 1]] * 2)

    monkeypatch.setattr(training_module._Attempt, "overlap", overlap)
    data = replace(squares, held_out=torch.arange(8) >= 5)

    training = train_network(CONFIG, data, **{**SHORT, "steps": 8})

    assert [dice for _, dice in training.held_out_dice] == agreed
    assert all(map(torch.equal, training.network.parameters(), averages[1]))
    assert not all(map(torch.equal, averages[1], averages[3]))


def test_what_comes_out_is_the_average_of_the_weights_of_all_steps(squares, monkeypatch):
    """Exponential, by hand: with step n the share of what is old is (1 + n) / (10 + n), at most EMA_DECAY."""
    monkeypatch.setattr(training_module, "EMA_DECAY", 0.25)
    weights, take_step = [], training_module._Attempt.take_step

    def noted(attempt):
        loss = take_step(attempt)
        weights.append([parameter.detach().clone() for parameter in attempt.network.parameters()])
        return loss

    monkeypatch.setattr(training_module._Attempt, "take_step", noted)

    training = train_network(CONFIG, squares, **SHORT)

    wanted = weights[0]
    for n, of_step in enumerate(weights[1:], start=1):
        old = min(0.25, (1 + n) / (10 + n))
        wanted = [old * average + (1 - old) * now for average, now in zip(wanted, of_step, strict=True)]
    for parameter, average, last in zip(training.network.parameters(), wanted, weights[-1], strict=True):
        torch.testing.assert_close(parameter.detach(), average, rtol=1e-5, atol=1e-6)
        assert not torch.equal(average, last)


def test_held_out_slices_teach_nothing(squares):
    held_out = torch.arange(8) >= 5
    spoiled = replace(squares, frames=squares.frames.clone(), held_out=held_out)
    spoiled.frames[held_out] = 0.5
    drawn = replace(squares, sampling=(~held_out).float())

    one, other = (train_network(CONFIG, data, **{**SHORT, "steps": 4}) for data in (spoiled, drawn))

    # One check, at the end: the best weights are the last.
    assert student_bytes(one.network, CONFIG) == student_bytes(other.network, CONFIG)


def test_a_training_begins_with_the_weights_it_is_given(squares):
    start = build_network(CONFIG, seed=5).state_dict()
    still = {**SHORT, "steps": 1, "learning_rate": 1e-9}

    started = train_network(CONFIG, squares, start=start, **still)

    for name, weights in started.network.named_parameters():
        torch.testing.assert_close(weights.detach(), start[name], rtol=0, atol=1e-6)
    assert student_bytes(started.network, CONFIG) != student_bytes(
        train_network(CONFIG, squares, **still).network, CONFIG
    )


@pytest.mark.parametrize("dims", ["2.5d", "3d"])
def test_a_network_of_volumes_learns(squares, dims):
    config = replace(CONFIG, dims=dims, dropout=0.0)

    training = train_network(config, squares, steps=12, batch_size=4, learning_rate=1e-2, seed=0)

    found = predict_frames(training.network, squares.frames, squares.lengths).argmax(1)
    assert found.shape == squares.targets.shape
    losses = [loss for _, loss in training.losses]
    assert losses[-1] < 0.7 * losses[0]
