"""Metrics against counts over coordinates on tiny masks, and in every case where nothing can be said."""

import itertools

import numpy as np
import pytest

from samcorrect.lib.core.metrics import auroc_below, bootstrap_mean, dice, hausdorff95, rank_correlation, surface_dice

NAN = float("nan")


def brute_force_dice(mask: np.ndarray, other: np.ndarray) -> float:
    one, two = set(map(tuple, np.argwhere(mask))), set(map(tuple, np.argwhere(other)))
    return 2 * len(one & two) / (len(one) + len(two))


def brute_force_surface_dice(mask: np.ndarray, other: np.ndarray, tolerance_mm: float, spacing_mm: tuple) -> float:
    """Edge voxels have a face neighbour outside the mask or the array; each is near to the other's edge or not."""
    axes = range(2 if mask.shape[2] == 1 else 3)

    def edge(voxels: set) -> list:
        def neighbours(voxel: tuple):
            for axis, step in itertools.product(axes, (-1, 1)):
                yield tuple(v + step * (a == axis) for a, v in enumerate(voxel))

        return [v for v in voxels if any(n not in voxels for n in neighbours(v))]

    def is_near(voxel: tuple, voxels: list) -> bool:
        return any(
            sum(((voxel[a] - v[a]) * spacing_mm[a]) ** 2 for a in axes) <= (tolerance_mm + 1e-9) ** 2 for v in voxels
        )

    one, two = (edge(set(map(tuple, np.argwhere(m)))) for m in (mask, other))
    n_near = sum(is_near(v, two) for v in one) + sum(is_near(v, one) for v in two)
    return n_near / (len(one) + len(two))


def square(start: int, stop: int) -> np.ndarray:
    """(12, 12, 1) bool with rows 1 to 3 of some columns."""
    mask = np.zeros((12, 12, 1), bool)
    mask[1:4, start:stop] = True
    return mask


def test_dice_by_hand():
    # 9 and 9 pixels share 6: 12 / 18.
    assert dice(square(1, 4), square(2, 5)) == pytest.approx(2 / 3)


def test_dice_of_equal_disjoint_and_empty_masks():
    empty = np.zeros((12, 12, 1), bool)

    assert dice(square(1, 4), square(1, 4)) == 1.0
    assert dice(square(1, 4), square(5, 8)) == 0.0
    assert dice(square(1, 4), empty) == dice(empty, square(1, 4)) == 0.0
    assert np.isnan(dice(empty, empty))


def test_surface_dice_by_hand():
    # Squares of 3 x 3 three columns apart, 8 edge pixels each: 3 are 1 px, 2 are 2 px and 3 are 3 px from the other's
    # edge.
    masks = square(1, 4), square(4, 7)

    for tolerance_mm, expected in [(0.5, 0), (1.0, 3 / 8), (2.0, 5 / 8), (3.0, 1.0)]:
        assert surface_dice(*masks, tolerance_mm=tolerance_mm, spacing_mm=(1, 1, 1)) == pytest.approx(expected)


def test_surface_dice_counts_in_mm():
    masks = square(1, 4), square(4, 7)

    # The columns are 2.5 mm apart: 3 pixels at 2.5 mm, 2 at 5, 3 at 7.5; the rows' and the slices' spacing play no
    # part.
    assert surface_dice(*masks, tolerance_mm=3.0, spacing_mm=(1, 2.5, 9)) == pytest.approx(3 / 8)
    assert surface_dice(*masks, tolerance_mm=3.0, spacing_mm=(2.5, 1, 9)) == pytest.approx(1.0)


def test_surface_dice_of_empty_masks():
    empty = np.zeros((12, 12, 1), bool)

    assert surface_dice(square(1, 4), empty, tolerance_mm=2, spacing_mm=(1, 1, 1)) == 0.0
    assert surface_dice(empty, square(1, 4), tolerance_mm=2, spacing_mm=(1, 1, 1)) == 0.0
    assert surface_dice(empty, empty, tolerance_mm=2, spacing_mm=(1, 1, 1)) == 1.0


def test_the_hausdorff_distance_of_empty_masks():
    empty = np.zeros((12, 12, 1), bool)

    assert hausdorff95(square(1, 4), empty, spacing_mm=(1, 2, 1)) == pytest.approx(np.hypot(12, 24))
    assert hausdorff95(empty, empty, spacing_mm=(1, 2, 1)) == 0.0


@pytest.mark.parametrize("shape", [(7, 5, 1), (5, 6, 3)], ids=["2D", "3D"])
def test_full_and_one_voxel_masks_against_brute_force(shape):
    full, corner, middle = np.ones(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    corner[0, 0, 0] = middle[3, 2, shape[2] // 2] = True

    for one, other in itertools.product((full, corner, middle), repeat=2):
        assert surface_dice(one, other, tolerance_mm=1.5, spacing_mm=(1, 1, 2)) == pytest.approx(
            brute_force_surface_dice(one, other, 1.5, (1, 1, 2))
        )


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((8, 9, 1), (1.0, 1.0, 1.0)), ((8, 9, 1), (0.7, 1.3, 5.0)), ((6, 7, 5), (0.8, 1.2, 2.5))],
    ids=["2D", "2D anisotropic", "3D anisotropic"],
)
def test_random_masks_against_brute_force(rng, shape, spacing_mm):
    for share in (0.05, 0.3, 0.6, 0.9):
        one, other = rng.random((2, *shape)) < share
        one[2, 2, 0] = other[3, 3, 0] = True
        one_before = one.copy()

        assert dice(one, other) == pytest.approx(brute_force_dice(one, other))
        for tolerance_mm in (0.0, 1.0, 2.5):
            value = surface_dice(one, other, tolerance_mm=tolerance_mm, spacing_mm=spacing_mm)
            assert value == pytest.approx(brute_force_surface_dice(one, other, tolerance_mm, spacing_mm))
            assert value == pytest.approx(surface_dice(other, one, tolerance_mm=tolerance_mm, spacing_mm=spacing_mm))
        np.testing.assert_array_equal(one, one_before)


def test_rank_correlation_by_hand():
    scores = np.array([0.1, 0.2, 0.3, 0.4])

    assert rank_correlation(scores, scores**3) == pytest.approx(1.0)
    assert rank_correlation(scores, -scores) == pytest.approx(-1.0)
    # Ranks 2 1 4 3 against 1 2 3 4: 1 - 6 x (1 + 1 + 1 + 1) / (4 x 15) = 0.6.
    assert rank_correlation(scores, np.array([0.6, 0.5, 0.9, 0.8])) == pytest.approx(0.6)


def test_rank_correlation_leaves_out_undefined_pairs():
    scores = np.array([0.1, NAN, 0.3, 0.4, 0.5])
    truth = np.array([0.2, 0.9, 0.4, NAN, 0.6])

    assert rank_correlation(scores, truth) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scores", "truth"),
    [
        ([], []),
        ([0.1, 0.2], [0.3, 0.4]),
        ([0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]),
        ([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0]),
        ([0.1, 0.2, NAN, NAN], [NAN, 0.2, 0.3, 0.4]),
        ([NAN, NAN, NAN], [NAN, NAN, NAN]),
    ],
    ids=["none", "two", "constant scores", "constant truth", "one defined pair", "nothing defined"],
)
def test_rank_correlation_is_nan_where_it_means_nothing(scores, truth):
    assert np.isnan(rank_correlation(np.array(scores), np.array(truth)))


def test_auroc_by_hand():
    scores = np.array([0.1, 0.4, 0.35, 0.8, NAN, 0.9])
    dice_values = np.array([0.5, 0.5, 0.9, 0.9, 0.1, NAN])

    # The bad labels have the scores 0.1 and 0.4, the good ones 0.35 and 0.8: of four pairs only (0.4, 0.35) is out of
    # order.
    assert auroc_below(scores, dice_values, 0.8) == pytest.approx(0.75)
    # A Dice equal to the threshold is not below it.
    assert np.isnan(auroc_below(scores, dice_values, 0.5))


@pytest.mark.parametrize(
    ("scores", "dice_values"),
    [([], []), ([0.1, 0.2], [0.9, 0.95]), ([0.1, 0.2], [0.1, 0.2]), ([NAN, 0.2], [0.1, 0.9])],
    ids=["none", "all good", "all bad", "the bad one has no score"],
)
def test_auroc_is_nan_where_all_or_none_are_below(scores, dice_values):
    assert np.isnan(auroc_below(np.array(scores), np.array(dice_values), 0.8))


def test_auroc_of_equal_scores_is_a_half():
    assert auroc_below(np.full(4, 0.5), np.array([0.1, 0.2, 0.9, 0.95]), 0.8) == 0.5


def test_bootstrap_mean_by_hand():
    result = bootstrap_mean(np.array([0.8, NAN, 0.9, 1.0]))

    assert (result.mean, result.sd, result.n) == (pytest.approx(0.9), pytest.approx(0.1), 3)
    # A resample of three is 0.8 thrice once in 27, which is more than 2.5%.
    assert result.ci95 == (pytest.approx(0.8), pytest.approx(1.0))


def test_bootstrap_mean_of_none_and_of_one():
    none, one = bootstrap_mean(np.array([NAN, NAN])), bootstrap_mean(np.array([0.7]))

    assert none.n == 0
    assert np.isnan([none.mean, none.sd, *none.ci95]).all()
    assert (one.n, one.mean, one.ci95) == (1, 0.7, (pytest.approx(0.7), pytest.approx(0.7)))
    assert np.isnan(one.sd)


def test_the_bootstrap_interval_covers_the_mean_about_95_times_in_100(rng):
    covered = []
    for _ in range(200):
        low, high = bootstrap_mean(rng.normal(0.8, 0.1, 40)).ci95
        covered.append(low <= 0.8 <= high)

    # The percentile interval of 40 cases covers about 94%; the standard error of 200 trials is 1.7%.
    assert 0.88 <= np.mean(covered) <= 0.99


def test_images_that_are_cases_of_their_own_are_drawn_as_without_cases(rng):
    values = rng.random(37)
    values[[3, 8]] = NAN
    defined = values[np.isfinite(values)]
    drawn = defined[np.random.default_rng(5).integers(0, 35, (2000, 35))]

    for cases in (None, [f"i{n}" for n in rng.permutation(37)]):
        told = bootstrap_mean(values, cases=cases, seed=5)
        assert told.ci95 == tuple(np.percentile(drawn.mean(1), [2.5, 97.5]))
        assert (told.mean, told.sd, told.n) == (defined.mean(), defined.std(ddof=1), 35)


def test_all_images_of_a_drawn_case_enter(rng):
    of_patients = rng.normal(0.8, 0.1, 12)
    alone, ten_times = bootstrap_mean(of_patients), bootstrap_mean(of_patients.repeat(10))
    by_patient = bootstrap_mean(of_patients.repeat(10), cases=[f"p{n // 10}" for n in range(120)])

    # Ten images that say the same are one; where each is drawn alone they are ten.
    assert by_patient.ci95 == pytest.approx(alone.ci95)
    assert np.diff(ten_times.ci95) < 0.5 * np.diff(by_patient.ci95)
    uneven = bootstrap_mean(np.array([1.0, 0, 0, 0]), cases=["b", "a", "a", "a"])
    # Each of two cases is drawn twice once in four.
    assert (uneven.mean, uneven.ci95) == (0.25, (0, 1))


def test_the_bootstrap_depends_on_its_seed_alone():
    values = np.linspace(0.5, 1.0, 20)
    np.random.seed(1)
    first = bootstrap_mean(values)
    np.random.seed(2)

    assert first == bootstrap_mean(values)
    assert first.ci95 != bootstrap_mean(values, seed=5).ci95
