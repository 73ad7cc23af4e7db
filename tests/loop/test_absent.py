"""Structures of which the boxes file says that they are not in an image: labels, scores and corrections."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samcorrect.lib.loop import audit, correction, peers
from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.explain import explain_image
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.scoring import score_cohort

BOX = {"right blob": "4,8,54,74", "left blob": "50,8,94,74"}
# The pictures show both; what the file says counts.
ABSENT = {"case2": ["right blob"], "case5": ["right blob", "left blob"]}


@pytest.fixture
def with_absent(phantom_workspace, phantoms, tmp_path):
    """A function that opens the phantoms with a boxes file in which the structures of ABSENT have no coordinates."""
    rows = [
        f"case{n}.png,{name},{',,,' if name in ABSENT.get(f'case{n}', ()) else box}"
        for n in range(10)
        for name, box in BOX.items()
    ]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *rows, ""]))
    path = tmp_path / "boxes.yaml"
    prompt = "prompt: {source: boxes_file, path: boxes.csv}"
    path.write_text(
        f"structures: [{{name: right blob, index: 7, {prompt}}}, {{name: left blob, index: 3, {prompt}}}]\n"
    )
    return lambda name="state", **settings: phantom_workspace(name, protocol=path, **settings)


def voxels(workspace) -> dict[str, list[int]]:
    """Image id to the voxels of both structures in its best label."""
    labels = {i: workspace.store.read_label(row) for i, row in best_labels(workspace).items()}
    return {i: [int((label_map == index).sum()) for index in (7, 3)] for i, label_map in labels.items()}


def are_as_stated(found: dict[str, list[int]]) -> bool:
    names = list(BOX)
    wanted = {f"case{n}": [name not in ABSENT.get(f"case{n}", ()) for name in names] for n in range(10)}
    return {i: [n > 0 for n in of] for i, of in found.items()} == wanted


def test_an_absent_structure_has_no_candidates_and_nobody_is_asked(with_absent):
    workspace = with_absent()

    right, left = find_candidates(workspace, workspace.store.read_image("case2"), "case2.png")

    assert not right.masks.any()
    assert right.box(0) is None
    assert left.masks[0].any()
    assert left.box(0) == [50, 8, 94, 74]


def test_every_image_is_labelled_and_empty_where_the_file_says_so(with_absent):
    workspace = with_absent()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        told = pseudo_label_store(workspace)

    assert told == {"n_labelled": 10, "n_kept": 0, "n_quarantined": 0}
    assert are_as_stated(voxels(workspace))
    label = workspace.store.label("case2", "original")
    assert label.prompts["right blob"] == {"source": "boxes_file", "box": None}
    assert "stability" not in label.info["structures"]["right blob"]
    assert label.info["structures"]["left blob"]["stability"] > 0
    (line,) = (line for line in audit.explain_image(workspace, "case2") if "made version" in line)
    assert line.endswith(" from the box 50, 8, 94, 74 of 'left blob'")
    is_absent = load_cohort(workspace, best_labels(workspace)).is_absent
    assert np.argwhere(is_absent).tolist() == [[2, 0], [5, 0], [5, 1]]


@pytest.mark.parametrize("n_without", [1, 6])
def test_labels_are_compared_with_those_that_are_not_empty(labelled, monkeypatch, n_without):
    """An empty label that students agree with scores 1, which no other label does, however good it is."""
    workspace = labelled(shares_trainings=False, student_steps=1, is_bad=lambda _: False)
    cohort = load_cohort(workspace, best_labels(workspace))
    cohort.targets[:n_without][cohort.targets[:n_without] == 1] = 0
    is_present = np.arange(10) >= n_without
    rng, told = np.random.default_rng(0), []

    def nearly_right(_workspace, cohort, **_):
        """Students who know where each structure is, but for 3 to 9 of its pixels."""
        seen = cohort.targets.clone()
        for number, k in np.ndindex(len(seen), 2):
            pixels = torch.nonzero(seen[number] == k + 1).numpy()
            for row, column in rng.permutation(pixels)[: rng.integers(3, 10)]:
                seen[number, row, column] = 0
        return F.one_hot(seen.long(), 3).permute(0, 3, 1, 2).float().contiguous(), ()

    def trusted_only(cohort, probs, untrusted):
        told.append(untrusted)
        return real(cohort, probs, untrusted)

    real = peers.trusted_only
    monkeypatch.setattr(peers, "out_of_fold_probs", nearly_right)
    monkeypatch.setattr(peers, "trusted_only", trusted_only)
    monkeypatch.setattr(peers, "ask_cohort", lambda *_, **__: None)
    scores = score_cohort(workspace, cohort, seed=0)

    assert np.array_equal(cohort.is_empty[:, 0], ~is_present)
    assert (scores.structure_scores[~is_present, 0] == 1).all()
    assert np.median(scores.structure_scores[is_present, 0]) < 0.98
    for untrusted in (told[0], correction._worse_half(cohort, scores)):
        assert 0 < untrusted[is_present, 0].mean() <= 0.5
        assert not untrusted[~is_present, 0].any()
    assert not correction.flag_labels(workspace, cohort, scores)[:, 0].any()
    assert correction._has_judge(scores, correction._worse_half(cohort, scores)).all()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["samcorrect", "huang2023"])
def test_the_loop_scores_all_labels_and_fills_in_nothing(with_absent, preset):
    workspace = with_absent(preset=preset)

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run_loop(workspace)

    ledger = workspace.store.ledger
    assert not ledger.quarantined()
    assert are_as_stated(voxels(workspace))
    for image_id, label in best_labels(workspace).items():
        quality = ledger.quality(label.id)
        assert set(quality) == {0, 3, 7}
        assert all(0 <= row.score <= 1 for row in quality.values()), image_id
        assert explain_image(workspace, image_id).svg
        assert any("made version" in line for line in audit.explain_image(workspace, image_id))
