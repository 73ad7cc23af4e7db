"""A fusion that neither a useless feature nor a crowd of weak ones can spoil."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from samcorrect.lib.core.fusion import MIN_LABELS_FOR_FUSION, fuse_features, mean_of_defined
from samcorrect.lib.core.quality import EVIDENCE

NAN = float("nan")
RISING = np.linspace(0.1, 0.9, 10)
SOURCES = {"peer": ("p", "q", "r"), "prompt": ("a", "b", "c", "d"), "image": ("e",)}


def fuse(features, scale="p", anchors=("peer",)):
    return fuse_features(features, SOURCES, anchors=anchors, scale=scale)


def noisy(truth, rng, sd):
    return np.clip(truth + rng.normal(0, sd, len(truth)), 0, 1)


@pytest.mark.parametrize("n_labels", [1, MIN_LABELS_FOR_FUSION - 1])
def test_few_labels_get_the_mean_of_the_anchors_means(rng, n_labels):
    features = {name: rng.random(n_labels) for name in "pqae"}

    fusion = fuse(features, anchors=("peer", "prompt"))

    assert fusion.weights == pytest.approx({"p": 1 / 4, "q": 1 / 4, "a": 1 / 2, "e": 0})
    assert np.isnan(list(fusion.correlations.values())).all()
    np.testing.assert_allclose(fusion.scores, ((features["p"] + features["q"]) / 2 + features["a"]) / 2)


def test_of_few_labels_those_without_a_value_of_the_anchors_get_the_mean_of_all():
    fusion = fuse({"p": np.array([0.2, NAN]), "a": np.array([0.9, 0.7]), "e": np.array([0.8, 0.5])})

    np.testing.assert_allclose(fusion.scores, [0.2, 0.6])


def test_agreeing_features_order_the_labels_and_the_scale_gives_the_values():
    fusion = fuse({"p": RISING, "q": RISING**2, "a": np.sqrt(RISING)})

    np.testing.assert_allclose(fusion.scores, RISING)
    # Each has rank correlation 1 with the peers: two sources of weight 1, one of them with two features.
    assert fusion.weights == pytest.approx({"p": 1 / 4, "q": 1 / 4, "a": 1 / 2})
    assert fusion.correlations == pytest.approx({"p": 1, "q": 1, "a": 1})


def test_a_feature_against_the_peers_gets_no_weight():
    fusion = fuse({"p": RISING, "q": RISING**2, "a": 1 - RISING, "e": RISING})

    assert fusion.weights == pytest.approx({"p": 1 / 4, "q": 1 / 4, "a": 0, "e": 1 / 2})
    assert fusion.correlations["a"] == pytest.approx(-1)
    np.testing.assert_allclose(fusion.scores, RISING)


def test_four_copies_of_one_evidence_do_not_outvote_another():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth, other = rng.beta(8, 2, (2, 120))
        features = {name: noisy(truth, rng, 0.05) for name in "pqr"} | {
            name: noisy(other, rng, 0.01) for name in "abcd"
        }

        assert spearmanr(fuse(features).scores, truth).statistic > spearmanr(features["p"], truth).statistic - 0.05


def test_weak_but_independent_evidence_helps():
    gains = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = rng.beta(8, 2, 200)
        of_peers = noisy(truth, rng, 0.1)
        features = {name: noisy(of_peers, rng, 0.01) for name in "pqr"} | {"e": noisy(truth, rng, 0.1)}
        gains.append(spearmanr(fuse(features).scores, truth).statistic - spearmanr(of_peers, truth).statistic)
    assert np.mean(gains) > 0.03


@pytest.mark.parametrize("useless", ["random", "constant", "random and half of it undefined"])
@pytest.mark.parametrize("name", ["r", "a", "e"], ids=["a peer's", "one of the prompts'", "a source of its own"])
def test_a_useless_feature_costs_little_rank_correlation_with_the_truth(useless, name):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = rng.beta(8, 2, 120)
        features = {feature: noisy(truth, rng, 0.1) for feature in "pqb"}
        extra = np.full(120, 0.5) if useless == "constant" else rng.random(120)
        if "undefined" in useless:
            extra[rng.random(120) < 0.5] = NAN

        without = spearmanr(fuse(features).scores, truth).statistic
        fusion = fuse({**features, name: extra})

        assert spearmanr(fusion.scores, truth).statistic > without - 0.05
        assert fusion.weights[name] < min(fusion.weights[feature] for feature in "pqb")


@pytest.mark.parametrize("mate", ["a", "e"], ids=["by the rest of its source", "by the anchors"])
@pytest.mark.parametrize("share", ["worst", "best", "random"])
def test_what_only_some_labels_have_is_placed_where_these_are(share, mate):
    """SAM's word of a mask is gone where the mask was replaced: which labels have it says much of how good they are."""
    gained = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = rng.beta(8, 2, 120)
        has = {"worst": truth < np.quantile(truth, 1 / 3), "best": truth > np.quantile(truth, 2 / 3)}
        has["random"] = rng.random(120) < 1 / 3
        common = {"p": noisy(truth, rng, 0.08), mate: noisy(truth, rng, 0.08)}
        some = {name: np.where(has[share], noisy(truth, rng, 0.05), NAN) for name in "cd"}
        alone, more = (fuse(of, anchors=("peer", "prompt")).scores for of in (common, {**common, **some}))
        gained.append(spearmanr(more, truth).statistic - spearmanr(alone, truth).statistic)
    assert np.mean(gained) > 0.003


def test_the_rest_of_its_source_says_where_a_feature_is_that_some_labels_have():
    """The students are content with what was made to please them; SAM, whose word on it is gone, is not."""
    gained = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = rng.beta(8, 2, 120)
        is_replaced = truth < np.quantile(truth, 0.2)
        of_peers = noisy(np.where(is_replaced, 0.95, truth), rng, 0.02)
        features = {
            "p": of_peers,
            "a": noisy(truth, rng, 0.05),
            "c": np.where(is_replaced, NAN, noisy(truth, rng, 0.05)),
        }
        without = {name: features[name] for name in "pa"}
        one, more = (fuse(of, anchors=("peer", "prompt")).scores for of in (without, features))
        gained.append(spearmanr(more, truth).statistic - spearmanr(one, truth).statistic)
    assert np.mean(gained) > 0


@pytest.mark.parametrize("n_known", [3, MIN_LABELS_FOR_FUSION - 1])
def test_a_feature_that_few_labels_have_gets_no_weight(n_known):
    few = np.where(np.arange(10) < n_known, RISING, NAN)

    fusion = fuse({"p": RISING, "q": RISING**2, "e": few})

    assert fusion.weights["e"] == 0
    assert np.isnan(fusion.correlations["e"])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_scale_that_tells_no_label_from_another_leaves_the_ranking_to_the_others(value):
    """The product's own sources: students who see nothing, or are content with everything."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = rng.beta(8, 2, 60)
        features = {name: noisy(truth, rng, 0.05) for name in ("prompt_dice", "stability", "edge_contrast")}

        scores = fuse_features(
            {**features, "peer_dice": np.full(60, value)}, EVIDENCE, anchors=("peer", "prompt"), scale="peer_dice"
        ).scores

        assert spearmanr(scores, truth).statistic > 0.7


def test_a_peers_feature_that_contradicts_the_others_is_left_out():
    fusion = fuse({"p": RISING, "q": RISING**2, "r": 1 - RISING})

    # The mean of q and r does not rank, nor does that of p and r; r stands against both. Nothing is left: all alike.
    assert fusion.weights == pytest.approx({"p": 1 / 3, "q": 1 / 3, "r": 1 / 3})


def test_without_peers_the_mean_of_all_takes_their_place():
    fusion = fuse({"a": RISING, "b": RISING**2, "c": 1 - RISING, "e": np.sqrt(RISING)})

    assert fusion.weights["c"] == 0
    assert spearmanr(fusion.scores, RISING).statistic == pytest.approx(1)


def test_without_the_scale_the_mean_of_all_features_gives_the_values():
    fusion = fuse({"p": RISING, "a": RISING / 2}, scale="q")

    np.testing.assert_allclose(fusion.scores, 0.75 * RISING)


def test_a_label_with_nothing_but_a_feature_without_weight_has_no_score():
    features = {"p": RISING, "q": RISING**2, "a": 1 - RISING}

    fusion = fuse({name: np.append(values, 0.7 if name == "a" else NAN) for name, values in features.items()})

    assert np.isnan(fusion.scores[-1])
    np.testing.assert_allclose(fusion.scores[:-1], RISING)


def test_an_undefined_value_is_left_out_of_its_labels_mean():
    fusion = fuse({"p": RISING, "q": np.where(np.arange(10) == 4, NAN, RISING)})

    assert np.isfinite(fusion.scores).all()
    assert abs(fusion.scores[4] - RISING[4]) < 0.1


def test_a_feature_that_is_nowhere_defined_is_no_feature(rng):
    defined = {name: rng.random(12) for name in "pqa"}

    with_nothing = fuse({**defined, "b": np.full(12, NAN)})

    assert with_nothing.weights == fuse(defined).weights
    np.testing.assert_array_equal(with_nothing.scores, fuse(defined).scores)


def test_without_any_feature_no_label_has_a_score():
    fusion = fuse({"p": np.full(9, NAN), "a": np.full(9, NAN)})

    assert np.isnan(fusion.scores).all()
    assert fusion.scores.shape == (9,)
    assert fusion.weights == {}


@pytest.mark.filterwarnings("error")
def test_labels_without_any_value_do_not_disturb_the_others(rng):
    features = {name: rng.random(12) for name in "pqa"}
    for values in features.values():
        values[4] = NAN

    fusion = fuse(features)

    rest = np.arange(12) != 4
    assert np.isnan(fusion.scores[4])
    np.testing.assert_allclose(fusion.scores[rest], fuse({n: v[rest] for n, v in features.items()}).scores)


@pytest.mark.filterwarnings("error")
def test_equal_labels_get_equal_scores():
    fusion = fuse({"p": np.full(9, 0.9), "q": np.full(9, 0.8), "a": np.full(9, 0.7)})

    np.testing.assert_allclose(fusion.scores, 0.9)


def test_fused_scores_and_weights_are_shares_and_nothing_is_changed(rng):
    features = {name: np.where(rng.random(50) < 0.2, NAN, rng.random(50)) for name in "pqab"}
    before = {name: values.copy() for name, values in features.items()}

    fusion = fuse(features)

    defined = fusion.scores[np.isfinite(fusion.scores)]
    assert defined.min() >= 0
    assert defined.max() <= 1
    assert sum(fusion.weights.values()) == pytest.approx(1)
    for name in features:
        np.testing.assert_array_equal(features[name], before[name])


def test_a_label_without_a_value_on_the_scale_moves_no_other():
    features = {name: np.linspace(0.1, 0.9, 9) for name in "pqa"}
    more = {name: np.append(values, 0.35) for name, values in features.items()} | {"p": np.append(features["p"], NAN)}

    alone, beside = fuse(features).scores, fuse(more).scores

    np.testing.assert_allclose(beside[:9], alone)
    assert alone[2] < beside[9] < alone[3]


def test_means_of_defined_values_by_hand():
    rows = np.array([[1.0, NAN, NAN], [4.0, 4.0, NAN]])

    np.testing.assert_allclose(mean_of_defined(rows), [2.5, 4, NAN])
    np.testing.assert_allclose(mean_of_defined(rows, np.array([2.0, 1.0])), [2, 4, NAN])
