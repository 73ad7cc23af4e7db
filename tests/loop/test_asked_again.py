"""SAM asked with the boxes of students: where these lie on the image, what SAM takes, and when it is asked."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import shift

from samcorrect.lib.core.boxes import box_of_mask
from samcorrect.lib.core.metrics import dice
from samcorrect.lib.core.quality import prompt_dice
from samcorrect.lib.loop import asked_again
from samcorrect.lib.loop.asked_again import ask_cohort, ask_sam, boxes_of_students, structures_to_ask
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.frame_candidates import shrink_masks
from samcorrect.lib.loop.peer_context import read_context
from samcorrect.lib.loop.peers import learn_peers
from samcorrect.lib.loop.pseudo_label import masks_to_grid
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.loop.workspace import open_workspace

NAN = float("nan")


def one_hot(targets: torch.Tensor, n_channels: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(targets.long(), n_channels).permute(0, 3, 1, 2).float()


def test_the_box_of_a_student_by_hand():
    # A frame of 32 x 32 over an image of 96 x 48: the content fills 32 x 16.
    peer = np.zeros((3, 32, 32), bool)
    peer[1, 4:10, 2:8] = True
    peer[2, 0, 15] = True

    boxes = boxes_of_students(peer, (96, 48))

    np.testing.assert_allclose(boxes, [[NAN] * 4, [12, 6, 30, 24], [0, 45, 3, 48]])


def test_structures_on_which_students_and_labels_agree_are_asked_about(labelled):
    cohort = load_cohort(workspace := labelled(is_bad=lambda _: False), best_labels(workspace))
    moved = cohort.targets.clone()
    for number in range(10):
        moved[number][moved[number] == 2] = 0
        moved[number][torch.from_numpy(shift(cohort.mask(number, 2)[0], (0, 3), order=0))] = 2
    # Of the second structure students see something else; an image or two of the first do not matter.
    moved[:2][moved[:2] == 1] = 0

    assert structures_to_ask(cohort, one_hot(cohort.targets)).tolist() == [True, True]
    assert structures_to_ask(cohort, one_hot(moved)).tolist() == [True, False]
    empty = replace(cohort, targets=torch.zeros_like(cohort.targets))
    assert structures_to_ask(empty, one_hot(empty.targets)).tolist() == [False, False]


def test_sam_is_asked_in_the_box_that_is_seen_and_what_it_took_is_kept(labelled, monkeypatch, lose_images):
    workspace = labelled(shares_trainings=False, is_bad=lambda _: False, n_candidates=16)
    cohort = load_cohort(workspace, best_labels(workspace))
    truth = one_hot(cohort.targets)
    # In the last image students see nothing of the first structure.
    truth[-1, 0] += truth[-1, 1]
    truth[-1, 1] = 0

    asked = ask_cohort(workspace, cohort, truth, np.array([True, False]))

    agreements = [dice(asked.masks(cohort.spans[n], 0)[0][0], cohort.mask(n, 1)) for n in range(9)]
    assert np.mean(agreements) > 0.9
    assert asked.masks(cohort.spans[9], 0) is None
    assert asked.masks(cohort.spans[0], 1) is None
    assert ask_cohort(workspace, cohort, truth, np.zeros(2, bool)) is None
    volume = workspace.store.read_image(cohort.images[0].id)
    found, which = ask_sam(workspace, volume, 0, asked.boxes_vox[:1, 0])
    assert len(found.masks) == asked_again.MAX_ASKED
    masks, confidence = asked.masks(cohort.spans[0], 0)
    np.testing.assert_array_equal(masks[0], shrink_masks(found.masks[which][None], cohort.config.side_px)[0])
    # The others follow in their order, each with its confidence.
    others = np.delete(np.arange(len(found.masks)), which)
    np.testing.assert_array_equal(masks[1:], shrink_masks(found.masks[others], cohort.config.side_px))
    np.testing.assert_array_equal(confidence, found.confidence[[which, *others]])
    on_grid = masks_to_grid(found.masks[which], cohort.shapes[0][:2]) > 0.5
    label_map = workspace.store.read_label(cohort.labels[0])
    assert dice(on_grid, label_map == cohort.config.indices[0]) > 0.85

    def forbidden(*_, **__):
        raise AssertionError("SAM was asked again for what is on the disk")

    monkeypatch.setattr(type(workspace.sam), "decode", forbidden)
    again = ask_cohort(workspace, cohort, truth, np.array([True, False]))
    assert torch.equal(again.bits, asked.bits)
    with pytest.raises(AssertionError, match="asked again"):
        ask_sam(workspace, volume, 0, asked.boxes_vox[:1, 0] + 1)
    lose_images(workspace)
    nobody = ask_cohort(workspace, cohort, truth, np.array([True, False]))
    assert nobody.masks(cohort.spans[0], 0) is None


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 3, 5)])
def test_the_mask_of_a_volume_has_its_grid_slice_by_slice(tmp_path, phantoms, spacing_mm):
    rows, columns, slices = np.mgrid[:72, : 72 // spacing_mm[1], :4]
    # It moves from slice to slice and is not in the first one; half-axes of 20 and 16 mm.
    mask = ((rows - 24 - 6 * slices) / 20) ** 2 + ((columns * spacing_mm[1] - 36) / 16) ** 2 < 1
    mask[:, :, 0] = False
    array = np.where(mask, 160, 60) + np.random.default_rng(0).normal(0, 8, mask.shape)
    studies = tmp_path / "studies"
    studies.mkdir()
    affine = np.array([[0, spacing_mm[1], 0, 5], [-spacing_mm[0], 0, 0, 7], [0, 0, spacing_mm[2], 9], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), studies / "a.nii.gz")
    prompt = "{source: box, xyz: [[0, 1], [0, 1], [0, 1]]}"
    (studies / "protocol.yaml").write_text(f"structures: [{{name: organ, index: 1, prompt: {prompt}}}]")
    changed = {"protocol": None, "n_candidates": 8, "state": tmp_path / "state"}
    workspace = open_workspace(studies, phantoms.settings.model_copy(update=changed))
    try:
        volume = workspace.store.read_image("a")
        boxes_vox = np.full((4, 4), NAN)
        for number in (1, 2, 3):
            boxes_vox[number] = box_of_mask(mask[:, :, number]).T.ravel()

        found, which = ask_sam(workspace, volume, 0, boxes_vox)

        on_grid = masks_to_grid(found.masks[which], mask.shape[:2]) > 0.5
        assert not on_grid[:, :, 0].any()
        assert all(dice(on_grid[:, :, n], mask[:, :, n]) > 0.85 for n in (1, 2, 3))
        hull = box_of_mask(mask)[:2].T.ravel()
        np.testing.assert_allclose(found.boxes[0], hull)
    finally:
        workspace.store.ledger.close()


@pytest.mark.slow
def test_labels_are_compared_with_what_sam_takes_and_a_later_scoring_asks_the_same(labelled, monkeypatch):
    monkeypatch.setattr(asked_again, "MIN_DICE_TO_ASK", 0.3)
    workspace = labelled()
    score_store(workspace)
    labels = best_labels(workspace)
    indices = workspace.require_protocol().indices
    told = {i: workspace.store.ledger.quality(label.id) for i, label in labels.items()}
    values, expected = (
        {i: [of[index].features[name] for index in indices] for i, of in told.items()}
        for name in ("asked_dice", "prompt_dice")
    )
    # Two labels were moved; SAM in the boxes of the others' students is none the worse for that.
    bad = np.mean([values[i] for i in ("case2", "case5")])
    good = np.mean([values[i] for i in values if i not in ("case2", "case5")])
    assert bad < good - 0.1
    cohort = load_cohort(workspace, {"case2": labels["case2"]})
    _, judges = read_context(workspace)

    peers = judges.judge(cohort, [None])

    assert peers.is_asked.all()
    masks = [peers.asked.masks(cohort.spans[0], k) for k in range(2)]
    again = [dice(of[0][0], cohort.mask(0, k + 1)) for k, of in enumerate(masks)]
    assert again == pytest.approx(values["case2"], abs=1e-4)
    # Drawn labels have no prompts of their own: SAM's masks are those of the students' boxes.
    likely = [prompt_dice(cohort.mask(0, k + 1), *of) for k, of in enumerate(masks)]
    assert likely == pytest.approx(expected["case2"], abs=1e-4)


@pytest.mark.parametrize("change", [{}, {"modules": "search,correct"}])
def test_nothing_is_asked_where_students_know_too_little_or_the_module_is_off(labelled, monkeypatch, change):
    workspace = labelled(shares_trainings=False, student_steps=3, **change)
    cohort = load_cohort(workspace, best_labels(workspace))
    if change:
        monkeypatch.setattr(asked_again, "MIN_DICE_TO_ASK", 0.0)
    seen = []

    peers = learn_peers(workspace, cohort, [None] * 10, seed=0, progress=lambda stage, *_: seen.append(stage))

    assert not peers.is_asked.any()
    assert peers.asked is None
    assert asked_again.STAGE_ASK not in seen
