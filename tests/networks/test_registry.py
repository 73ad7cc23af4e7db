"""Weights files of the official layouts: loaded strictly, and refused when they are torn, changed or another's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samcorrect.lib.errors import WeightsError
from samcorrect.lib.networks.architectures import ARCHITECTURES, standardise, stretch
from samcorrect.lib.networks.registry import CATALOGUE, SamEntry, load_model


def save_weights(path: Path, architecture: str, **changes: torch.Tensor | None) -> Path:
    """A file of random values in the architecture's official layout; a change of None leaves a weight out."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.02 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else torch.zeros_like(t)
        for name, t in ARCHITECTURES[architecture].build().state_dict().items()
    } | changes
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    return path


@pytest.fixture(scope="module")
def lite_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "lite.pth", "lite_medsam")


def entry_of(path: Path, architecture: str = "lite_medsam", **changes: object) -> SamEntry:
    return replace(SamEntry("ours", architecture, "MIT", None, weights=path), **changes)


@pytest.mark.parametrize(
    ("architecture", "n_bytes"),
    # Sizes of sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth and mobile_sam.pt as published.
    [("vit_b", 375_042_383), ("vit_l", 1_249_524_607), ("vit_h", 2_564_550_879), ("mobile_sam", 40_728_226)],
)
def test_the_weights_are_as_many_as_in_the_official_file(architecture, n_bytes):
    weights = ARCHITECTURES[architecture].build().state_dict().values()
    assert 0.99 < sum(t.numel() * t.element_size() for t in weights) / n_bytes < 1


@pytest.mark.parametrize("architecture", ["lite_medsam", "mobile_sam", pytest.param("vit_b", marks=pytest.mark.slow)])
def test_a_file_of_the_official_layout_gives_masks(architecture, tmp_path):
    path = save_weights(tmp_path / "weights.pth", architecture)
    sam = load_model(entry_of(path, architecture), runtime="torch-fp32")
    side = ARCHITECTURES[architecture].side_px
    assert (sam.name, sam.side_px) == ("ours", side)
    box = np.array([[0.1, 0.1, 0.6, 0.8]]) * sam.mask_px
    logits, iou = sam.decode(torch.zeros(256, 64, 64, dtype=torch.float16), boxes=box, points=[(64.0, 9.0, True)])
    assert (logits.shape, iou.shape) == ((1, 256, 256), (1,))
    assert torch.isfinite(logits).all()


@pytest.mark.slow
def test_a_model_of_1024_px_encodes(tmp_path):
    path = save_weights(tmp_path / "weights.pth", "mobile_sam")
    sam = load_model(entry_of(path, "mobile_sam"), runtime="torch-fp32")
    embedding = sam.encode(torch.rand(1024, 1024, generator=torch.Generator().manual_seed(0)))
    assert (embedding.shape, embedding.dtype) == ((256, 64, 64), torch.float16)


def test_a_training_checkpoint_is_read_too(lite_weights, tmp_path):
    state = torch.load(lite_weights, weights_only=True)
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    embedding = torch.rand(256, 64, 64, generator=torch.Generator().manual_seed(0)).half()
    box = np.array([[20.0, 20.0, 90.0, 99.0]])
    plain, wrapped = (
        load_model(entry_of(path), runtime="torch-fp32").decode(embedding, boxes=box)[0]
        for path in (lite_weights, tmp_path / "checkpoint.pth")
    )
    assert torch.equal(plain, wrapped)


@pytest.mark.parametrize(
    "tear",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: bytes(9999), lambda b: b"<html>not found</html>"],
    ids=["half", "empty", "zeros", "a web page"],
)
def test_a_torn_file_is_refused(tear, lite_weights, tmp_path):
    path = tmp_path / "torn.pth"
    path.write_bytes(tear(lite_weights.read_bytes()))
    with pytest.raises(WeightsError, match=r"torn\.pth cannot be loaded as lite_medsam"):
        load_model(entry_of(path))


def test_a_program_in_the_file_is_not_run(tmp_path):
    class Program:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"image_encoder.w": Program()}, tmp_path / "program.pth")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_model(entry_of(tmp_path / "program.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_decoder.iou_token.weight": torch.zeros(2, 256)}, r"iou_token\.weight is \(2, 256\), wanted \(1, 256\)"),
        ({"mask_decoder.iou_token.weight": None}, r"iou_token\.weight is missing, wanted \(1, 256\)"),
        ({"head.weight": torch.zeros(2)}, r"head\.weight is \(2,\), wanted nothing of this name"),
    ],
    ids=["shape", "missing", "more"],
)
def test_weights_that_do_not_fit_are_named(changes, said, tmp_path):
    path = save_weights(tmp_path / "other.pth", "lite_medsam", **changes)
    with pytest.raises(WeightsError, match=rf"1 of its weights do not fit .* lite_medsam, the first: .*{said}"):
        load_model(entry_of(path))


def test_weights_of_another_architecture_are_refused(lite_weights, tmp_path):
    with pytest.raises(WeightsError, match="of its weights do not fit the architecture vit_b"):
        load_model(entry_of(lite_weights, "vit_b"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="wants a state dict"):
        load_model(entry_of(tmp_path / "list.pth"))


def test_a_known_file_is_not_taken_for_another_model():
    lite = CATALOGUE["lite_medsam"]
    with pytest.raises(WeightsError, match=r"is the file of lite_medsam, .*; ours is vit_b"):
        load_model(entry_of(lite.weights, "vit_b"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "sam_vit_b",
            "samcorrect models add sam_vit_b .* fetches https://dl.fbaipublicfiles.com/.*sam_vit_b_01ec64.pth",
        ),
        ("medsam_vit_b", "fetch https://zenodo.org/.*medsam_vit_b.pth, then `samcorrect models add medsam_vit_b"),
    ],
)
def test_missing_weights_say_how_to_bring_them(name, said):
    with pytest.raises(WeightsError, match=said):
        load_model(CATALOGUE[name])


def test_a_model_sees_what_it_was_trained_on():
    pixels = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    assert torch.equal(stretch(pixels)[0, 2], torch.tensor([[0, 0.5], [1, 0.5]]))
    assert torch.equal(stretch(torch.full((2, 2), 0.3)), torch.zeros(1, 3, 2, 2))
    # Red: (255 * 0.5 - 123.675) / 58.395.
    np.testing.assert_allclose(standardise(pixels)[0, :, 0, 1], [0.06550, 0.19643, 0.41778], atol=1e-5)
