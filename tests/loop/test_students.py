"""Trainings on a cohort: out of fold, kept by their inputs."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from samcorrect.lib.core import pieces
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.students import out_of_fold_probs, predict_cohort, split_cases, train_on, trusted_only


@pytest.fixture
def cohort_of(labelled):
    def of(**settings):
        workspace = labelled(is_bad=lambda _: False, shares_trainings=False, **settings)
        return workspace, load_cohort(workspace, best_labels(workspace))

    return of


def test_where_no_label_is_trusted_all_are_drawn_alike(cohort_of):
    workspace, cohort = cohort_of(student_steps=3)
    nobody, none_given = (
        train_on(workspace, cohort, np.arange(4), name="a", seed=1, sampling=sampling)
        for sampling in (np.zeros(10), None)
    )
    assert nobody.student.digest == none_given.student.digest


@pytest.mark.slow
def test_out_of_fold_students_see_half_of_the_images_each_and_predict_the_other(cohort_of):
    workspace, cohort = cohort_of(student_steps=100)
    seen: list[str] = []
    probs, _ = out_of_fold_probs(workspace, cohort, seed=3, progress=lambda stage, done, total: seen.append(stage))
    assert probs.shape == (10, 3, 32, 32)
    assert np.allclose(probs.sum(1), 1, atol=1e-4)
    assert set(seen) == {"out-of-fold students"}
    # No student may lose a structure: a network whose last layers can die never predicts it, in half of the images.
    for channel in (1, 2):
        found, labels = probs.argmax(1) == channel, cohort.targets == channel
        overlap = 2 * (found & labels).sum((1, 2)) / (found.sum((1, 2)) + labels.sum((1, 2)))
        assert overlap.min() > 0.3
        assert overlap.mean() > 0.6
    models = list((workspace.store.state_dir / "models").glob("*.pt"))
    assert len(models) == 2


def test_no_prediction_comes_from_a_student_that_saw_the_image(cohort_of):
    workspace, cohort = cohort_of(student_steps=5)
    probs, _ = out_of_fold_probs(workspace, cohort, seed=3)
    order = np.random.default_rng(3).permutation(10)
    spoiled = int(order[0])
    cohort.targets[cohort.spans[spoiled]] = 0
    again, _ = out_of_fold_probs(workspace, cohort, seed=3)
    unchanged = [n for n in range(10) if np.array_equal(probs[n], again[n])]
    # The spoiled label taught one student; that one predicts only images of the other fold.
    assert sorted(unchanged) == sorted(order[0::2].tolist())
    assert spoiled in unchanged


def test_peers_give_up_stray_pieces_of_structures_in_one_piece(cohort_of):
    workspace, cohort = cohort_of(student_steps=5)
    n_pieces, eight = [], np.ones((3, 3, 3))
    for modules in ("largest_piece", "search"):
        changed = workspace.with_settings(modules=modules)
        out_of_fold = out_of_fold_probs(changed, cohort, seed=3)[0]
        of_one = predict_cohort([train_on(changed, cohort, np.arange(4), name="a", seed=1)], cohort)
        masks = [probs.argmax(1).numpy() == k for probs in (out_of_fold, of_one) for k in (1, 2)]
        n_pieces.append([max(ndimage.label(mask[span], eight)[1] for span in cohort.spans) for mask in masks])
    assert max(n_pieces[0]) == 1
    assert max(n_pieces[1][:2]) > 1
    assert max(n_pieces[1][2:]) > 1


def pieces_learnt(workspace, cohort, numbers=range(10)) -> tuple[bool, ...]:
    return train_on(workspace, cohort, np.array(numbers), name="a", seed=1).student.config.in_one_piece


def cut(cohort, number) -> None:
    """Cut the second structure of an image in two."""
    middle = int(np.median(np.flatnonzero(cohort.mask(number, 2)[0].any(1))))
    of_image = cohort.targets[cohort.spans[number]]
    of_image[:, middle - 1 : middle + 2][of_image[:, middle - 1 : middle + 2] == 2] = 0


def test_a_student_notes_which_structures_its_labels_show_in_one_piece(cohort_of):
    workspace, cohort = cohort_of(student_steps=2)
    assert pieces_learnt(workspace, cohort) == (True, True)
    cut(cohort, 4)
    # One of ten labels is less than 95%; what a student does not learn says nothing.
    assert pieces_learnt(workspace, cohort) == (True, False)
    assert pieces_learnt(workspace, cohort, (0, 1, 2, 3, 5)) == (True, True)
    assert pieces_learnt(workspace.with_settings(modules="search"), cohort) == ()


def test_a_label_of_a_person_in_two_pieces_outweighs_what_a_machine_made(cohort_of, monkeypatch, phantoms):
    workspace, _ = cohort_of(student_steps=2)
    workspace.store.submit_label("case4", phantoms.labels / "case4.png", tag="final", user="anna")
    cohort = load_cohort(workspace, best_labels(workspace))
    monkeypatch.setattr(pieces, "MIN_MASKS_SHARE", 0.8)
    cut(cohort, 3)
    assert pieces_learnt(workspace, cohort) == (True, True)
    cut(cohort, 4)
    assert pieces_learnt(workspace, cohort) == (True, False)


def test_a_training_depends_on_seed_and_data_alone(cohort_of):
    workspace, cohort = cohort_of()
    workspace = workspace.with_settings(student_steps=3)
    numbers = np.arange(4)
    one = train_on(workspace, cohort, numbers, name="a", seed=1)
    (workspace.store.state_dir / one.path).unlink()
    again = train_on(workspace, cohort, numbers, name="b", seed=1)
    other = train_on(workspace, cohort, numbers, name="c", seed=2)
    assert (one.path, one.student.digest, one.losses) == (again.path, again.student.digest, again.losses)
    assert other.path != one.path


def test_a_torn_file_is_trained_anew_and_that_is_logged(cohort_of, caplog):
    workspace, cohort = cohort_of()
    workspace = workspace.with_settings(student_steps=3)
    trained = train_on(workspace, cohort, np.arange(4), name="a", seed=1)
    path = workspace.store.state_dir / trained.path
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert train_on(workspace, cohort, np.arange(4), name="a", seed=1).student.digest == trained.student.digest
    assert path.read_bytes() == whole
    assert "trained anew" in caplog.text
    assert "cannot be loaded as a student" in caplog.text


def test_the_images_of_one_patients_folder_are_never_in_both_folds():
    ids = [f"patient{n}/{view}" for n in range(9) for view in ("front", "side")]
    folds = split_cases([name.split("/")[0] for name in ids], seed=1)
    assert sorted(np.concatenate(folds).tolist()) == list(range(18))
    first, second = ({ids[number].split("/")[0] for number in fold} for fold in folds)
    assert len(first) == 5
    assert not first & second


def test_four_folders_are_patients():
    folds = split_cases([name for name in "abcd" for _ in range(3)], seed=0)
    cases = [{"abcd"[number // 3] for number in fold} for fold in folds]
    assert [len(of) for of in cases] == [2, 2]
    assert not cases[0] & cases[1]


def test_what_is_held_out_is_predicted_and_teaches_nobody(cohort_of):
    workspace, cohort = cohort_of()
    workspace = workspace.with_settings(student_steps=3)
    fold_a, fold_b = split_cases([image.case_id for image in cohort.images], seed=3)
    is_held_out = np.zeros(len(cohort), bool)
    is_held_out[fold_a[:2]] = is_held_out[fold_b] = True

    probs, pair = out_of_fold_probs(workspace, cohort, seed=3, is_held_out=is_held_out)

    learnt = [{cohort.images[number].id for number in numbers} for numbers in (fold_a[2:], fold_b)]
    # Of the second fold nothing else is left.
    assert [set(student.image_ids) for student in pair] == learnt
    assert torch.allclose(probs.sum(1), torch.ones(1), atol=1e-4)


def test_two_folders_of_images_are_a_way_of_keeping_files_and_no_patients():
    folds = split_cases([site for site in "ab" for _ in range(6)], seed=0)
    assert [len(fold) for fold in folds] == [6, 6]


@pytest.mark.parametrize(
    ("modules", "is_drawn", "is_weighed"),
    [
        ("search,correct,image_weights,pixel_weights", True, True),
        ("image_weights", True, False),
        ("pixel_weights", False, True),
        ("correct", False, False),
    ],
)
def test_weights_of_images_and_pixels_teach_unless_they_are_switched_off(cohort_of, modules, is_drawn, is_weighed):
    workspace, cohort = cohort_of()
    workspace = workspace.with_settings(student_steps=3, modules=modules)
    numbers = np.arange(4)

    def digest(**given):
        return train_on(workspace, cohort, numbers, name="a", seed=1, **given).student.digest

    plain, half = digest(), torch.ones_like(cohort.frames)
    half[:, :, :16] = 0
    assert (digest(sampling=np.array([1.0, 0.1, 0.1, 0.1] + 6 * [1.0])) != plain) is is_drawn
    assert (digest(weights=half) != plain) is is_weighed


def test_pixels_around_what_is_not_trusted_are_ignored_even_where_a_whole_image_is_not(cohort_of):
    _, cohort = cohort_of()
    untrusted = np.zeros((10, 2), bool)
    untrusted[3] = True
    sampling, weights = trusted_only(cohort, None, untrusted)
    assert (sampling[2], sampling[3]) == (1, 0)
    ignored = (weights[cohort.spans[3]] == 0).numpy()
    object_there = cohort.mask(3, 1) | cohort.mask(3, 2)
    assert ignored[object_there].all()
    assert ignored.sum() > object_there.sum(), "a margin is ignored too"
    assert not ignored.all()
    assert (weights[cohort.spans[2]] == 1).all()
