"""The student: its grid, its file and the files that are not its own."""

import io
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from samcorrect.lib.errors import WeightsError
from samcorrect.lib.networks.student import (
    FORMAT,
    Student,
    StudentConfig,
    build_network,
    load_student,
    predict_frames,
    probs_to_grid,
    probs_to_label_map,
    student_bytes,
    with_dropout_on,
)

CONFIG = StudentConfig(names=("right lung", "heart"), indices=(3, 200), side_px=64)


def document_of(config: StudentConfig) -> dict:
    return torch.load(io.BytesIO(student_bytes(build_network(config, seed=0), config)), weights_only=True)


def save(path: Path, document: object) -> Path:
    torch.save(document, path)
    return path


@pytest.fixture
def student() -> Student:
    network = build_network(CONFIG, seed=1)
    # Weights as drawn make one class of everything; a bias a channel makes each of them appear.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return Student(network, CONFIG, "0" * 64)


@pytest.fixture
def path(tmp_path: Path, student: Student) -> Path:
    path = tmp_path / "student.pt"
    path.write_bytes(student_bytes(student.network, CONFIG))
    return path


def test_probabilities_become_a_label_map_by_hand():
    probs = np.array([[0.6, 0.2, 0.1, 0.5], [0.3, 0.5, 0.1, 0.5], [0.1, 0.3, 0.8, 0.0]]).reshape(3, 2, 2, 1)

    label_map = probs_to_label_map(probs, CONFIG.indices)

    # A tie goes to the background.
    np.testing.assert_array_equal(label_map[..., 0], [[0, 3], [200, 0]])
    assert label_map.dtype == np.uint8


def test_probabilities_come_back_on_the_grid_along_the_array_axes():
    # 40 x 20 voxels fill 64 x 32 pixels of the frame; structure 1 is its half of high axis 0, structure 2 nothing.
    probs = torch.zeros(1, 3, 64, 64)
    probs[0, 1, 32:64, :32] = 1
    probs[0, 0] = 1 - probs[0, 1]

    grid = probs_to_grid(probs, (40, 20))

    assert grid.shape == (3, 40, 20, 1)
    expected = np.zeros((40, 20, 1), np.uint8)
    expected[20:] = 3
    np.testing.assert_array_equal(probs_to_label_map(grid, CONFIG.indices), expected)


@pytest.mark.parametrize("shape", [(37, 90, 3), (90, 37, 1), (64, 64, 18)], ids=["wide", "tall", "more than a batch"])
def test_a_prediction_lies_on_the_images_grid_with_the_protocols_indices(rng, student, shape):
    array = rng.normal(100, 30, shape).astype(np.float32)
    before = array.copy()

    probs, label_map = student.predict_probs(array), student.predict(array)

    assert (probs.shape, probs.dtype) == ((3, *shape), np.float32)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)
    assert probs.min() >= 0
    assert (label_map.shape, label_map.dtype) == (shape, np.uint8)
    assert set(np.unique(label_map)) <= {0, 3, 200}
    assert len(np.unique(label_map)) > 1
    np.testing.assert_array_equal(label_map, probs_to_label_map(probs, CONFIG.indices))
    np.testing.assert_array_equal(array, before)


def test_slices_are_predicted_alone(rng, student):
    array = rng.normal(100, 30, (48, 64, 5)).astype(np.float32)
    # The intensities of a volume are normalised as a whole, so the extremes are put in every slice.
    array[0, 0], array[0, 1] = -1e4, 1e4
    array = np.clip(array, -200, 400)

    whole = predict_frames(student.network, torch.from_numpy(array[:, :48]).permute(2, 0, 1))
    alone = torch.cat(
        [predict_frames(student.network, torch.from_numpy(array[:, :48, d])[None]) for d in range(array.shape[2])]
    )

    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("dims", "depth"), [("2.5d", 1), ("2.5d", 5), ("3d", 1), ("3d", 18)])
def test_a_network_of_volumes_predicts_on_the_images_grid_and_comes_back_from_its_file(rng, tmp_path, dims, depth):
    config = replace(CONFIG, dims=dims, side_px=32)
    (tmp_path / "student.pt").write_bytes(student_bytes(build_network(config, seed=1), config))
    array = rng.normal(100, 30, (37, 50, depth)).astype(np.float32)

    loaded = load_student(tmp_path / "student.pt")
    probs = loaded.predict_probs(array)

    assert loaded.config == config
    assert (probs.shape, probs.dtype) == ((3, 37, 50, depth), np.float32)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("dims", ["2d", "2.5d", "3d"])
def test_a_volume_is_predicted_alike_whatever_lies_beside_it(dims):
    network, frames = build_network(replace(CONFIG, dims=dims), seed=1).eval(), torch.rand(7, 32, 32)

    together = predict_frames(network, frames, (4, 1, 2))

    alone = torch.cat([predict_frames(network, volume) for volume in frames.split([4, 1, 2])])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dims", ["2.5d", "3d"])
def test_a_network_of_volumes_sees_the_slice_above(dims):
    network, frames = build_network(replace(CONFIG, dims=dims), seed=1).eval(), torch.rand(4, 32, 32)
    changed = frames.clone()
    changed[2] = 0

    before, after = predict_frames(network, frames), predict_frames(network, changed)

    assert not torch.equal(before[1], after[1])
    assert torch.equal(before[0], after[0]) == (dims == "2.5d")


def test_a_file_from_before_there_were_volumes_is_a_student_of_slices(tmp_path):
    document = document_of(CONFIG)
    del document["config"]["dims"]

    assert load_student(save(tmp_path / "student.pt", document)).config == CONFIG


def test_an_image_of_one_value_has_a_prediction(student):
    assert student.predict(np.full((50, 60, 1), 7.0, np.float32)).shape == (50, 60, 1)


def test_the_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    one = student_bytes(build_network(CONFIG, seed=0), CONFIG)
    state = torch.random.get_rng_state()
    same = student_bytes(build_network(CONFIG, seed=0), CONFIG)

    assert one == same
    assert torch.equal(torch.random.get_rng_state(), state)
    assert student_bytes(build_network(CONFIG, seed=1), CONFIG) != one


def test_passes_differ_where_dropout_is_on():
    config = replace(CONFIG, dropout=0.2)
    network, frames = build_network(config, seed=0).eval(), torch.rand(2, 64, 64)
    still = predict_frames(network, frames)
    assert torch.equal(predict_frames(network, frames), still)

    statistics = [buffer.clone() for buffer in network.buffers()]

    passes = [predict_frames(with_dropout_on(network), frames) for _ in range(2)]

    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[0], still)
    assert all(torch.equal(*pair) for pair in zip(network.buffers(), statistics, strict=True))


def test_without_dropout_nothing_is_dropped():
    network, frames = build_network(CONFIG, seed=0).eval(), torch.rand(2, 64, 64)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.train()

    assert torch.equal(predict_frames(network, frames), predict_frames(network, frames))


def test_a_saved_student_predicts_the_same(rng, student, path):
    array = rng.normal(100, 30, (37, 90, 2))

    loaded = load_student(path)

    np.testing.assert_array_equal(loaded.predict_probs(array), student.predict_probs(array))
    assert (loaded.config, loaded.names, loaded.indices) == (CONFIG, CONFIG.names, CONFIG.indices)
    assert not loaded.network.training


def test_a_student_keeps_its_window_and_older_files_have_none(tmp_path, student):
    config = replace(CONFIG, window_hu=(-160.0, 240.0))
    path = tmp_path / "ct.pt"
    path.write_bytes(student_bytes(student.network, config))
    loaded = load_student(path)
    assert loaded.config.window_hu == (-160.0, 240.0)
    # In this window both images are the same.
    image = np.linspace(-400, 400, 16 * 16).reshape(16, 16, 1)
    assert np.array_equal(loaded.predict_probs(image), loaded.predict_probs(image.clip(-160, 240)))
    assert not np.array_equal(student.predict_probs(image), student.predict_probs(image.clip(-160, 240)))

    document = document_of(CONFIG)
    del document["config"]["window_hu"]
    assert load_student(save(tmp_path / "old.pt", document)).config.window_hu is None


def test_a_student_gives_up_stray_pieces_of_what_is_in_one_piece_and_older_files_give_up_none(rng, tmp_path, student):
    config = replace(CONFIG, in_one_piece=(False, True))
    path = tmp_path / "whole.pt"
    path.write_bytes(student_bytes(student.network, config))
    loaded, array = load_student(path), rng.normal(100, 30, (64, 64, 3))
    assert loaded.config.in_one_piece == (False, True)
    before, after = student.predict(array), loaded.predict(array)
    assert ndimage.label(before == 200, np.ones((3, 3, 3)))[1] > 1
    assert ndimage.label(after == 200, np.ones((3, 3, 3)))[1] == 1
    assert (after == 3)[before == 3].all()
    np.testing.assert_allclose(loaded.predict_probs(array).sum(0), 1, atol=1e-5)

    document = document_of(CONFIG)
    del document["config"]["in_one_piece"]
    assert load_student(save(tmp_path / "old.pt", document)).config.in_one_piece == ()


def test_pieces_are_those_of_each_image(student):
    whole = Student(student.network, replace(CONFIG, in_one_piece=(True, True)), "0" * 64)
    frames = torch.rand(7, 64, 64, generator=torch.Generator().manual_seed(0))

    together = whole.predict_frames(frames, (4, 1, 2))

    alone = torch.cat([whole.predict_frames(volume) for volume in frames.split([4, 1, 2])])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(together, predict_frames(student.network, frames, (4, 1, 2)), atol=1e-2)


def test_saving_a_loaded_student_gives_the_same_file(path):
    loaded = load_student(path)

    assert student_bytes(loaded.network, loaded.config) == path.read_bytes()


def test_the_digest_is_that_of_the_file(path):
    before = load_student(path).digest
    document = torch.load(path, weights_only=True)
    next(iter(document["state_dict"].values())).flatten()[0] += 1e-3

    assert len(before) == 64
    assert load_student(path).digest == before
    assert load_student(save(path, document)).digest != before


def test_a_missing_student_says_how_to_get_one(tmp_path):
    with pytest.raises(WeightsError, match=r"no student at .*none\.pt; train one with `samcorrect train`"):
        load_student(tmp_path / "none.pt")


class _Code:
    """What a hostile file holds: a call that leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["torch", "torch, old format", "pickle", "inside a student"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, how):
    trace, path = tmp_path / "was run", tmp_path / "student.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(_Code(trace)))
    elif how == "inside a student":
        save(path, {**document_of(CONFIG), "extra": _Code(trace)})
    else:
        torch.save(_Code(trace), path, _use_new_zipfile_serialization=how == "torch")

    with pytest.raises(WeightsError, match=r"student\.pt cannot be loaded as a student"):
        load_student(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(WeightsError, match="cannot be loaded as a student"):
        load_student(path)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_refused(tmp_path, seed):
    path = tmp_path / "student.pt"
    path.write_bytes(np.random.default_rng(seed).bytes(seed * 7))

    with pytest.raises(WeightsError, match="cannot be loaded as a student"):
        load_student(path)


@pytest.mark.parametrize("content", [b"text\n", b"{}", b"<html></html>", b"\x80\x02.", b"PK\x03\x04", b"(", b"c\n\n."])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "student.pt"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match=r"student\.pt"):
        load_student(path)


@pytest.mark.parametrize(
    "document",
    [{"format": "samcorrect-student-0"}, {"state_dict": {}}, {}, [1, 2], torch.zeros(2)],
    ids=["another format", "weights of another program", "an empty dict", "a list", "a tensor"],
)
def test_a_file_of_another_format_is_refused(tmp_path, document):
    with pytest.raises(WeightsError, match=rf"not a student of samcorrect; wanted the format '{FORMAT}'"):
        load_student(save(tmp_path / "student.pt", document))


@pytest.mark.parametrize("key", ["config", "state_dict"])
def test_a_file_without_a_part_is_refused_and_the_part_named(tmp_path, key):
    document = document_of(CONFIG)
    del document[key]

    with pytest.raises(WeightsError, match=f"cannot be loaded as a student: '{key}'"):
        load_student(save(tmp_path / "student.pt", document))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"names": ("lung",)}, "names"),
        ({"names": (), "indices": ()}, "indices"),
        ({"indices": (1, 300)}, "indices"),
        ({"indices": (0, 1)}, "indices"),
        ({"indices": (1, 1)}, "indices"),
        ({"side_px": 0}, "side_px"),
        ({"side_px": 100}, "side_px"),
        ({"dropout": 2.0}, "dropout"),
        ({"window_hu": (240.0, -160.0)}, "window_hu"),
        ({"in_one_piece": (True,)}, "in_one_piece of 1 structures; wanted 2, or none"),
        ({"indices": (1, 2, 3), "names": ("a", "b", "c")}, "size mismatch"),
        ({"side_px": "wide"}, "invalid literal"),
        ({"dims": "4d"}, "dims '4d'; wanted one of 2d, 2.5d, 3d"),
        ({"dims": "3d"}, "size mismatch"),
    ],
    ids=[
        "a name without index",
        "no structure",
        "an index above 255",
        "the background's index",
        "an index twice",
        "no side",
        "a side that cannot be halved four times",
        "dropout above 1",
        "window upside down",
        "pieces of another number of structures",
        "a structure without weights",
        "text for a number",
        "no such dims",
        "the weights of other dims",
    ],
)
def test_a_config_that_cannot_be_used_is_refused(tmp_path, change, match):
    document = document_of(CONFIG)
    document["config"] = {**asdict(CONFIG), **change}

    with pytest.raises(WeightsError, match=match):
        load_student(save(tmp_path / "student.pt", document))


def test_weights_of_another_architecture_are_refused(tmp_path):
    document = document_of(CONFIG)
    name = next(iter(document["state_dict"]))
    document["state_dict"]["other.weight"] = document["state_dict"].pop(name)

    with pytest.raises(WeightsError, match=r"Missing key\(s\)"):
        load_student(save(tmp_path / "student.pt", document))
