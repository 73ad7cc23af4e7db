"""Plots: valid SVG, both colour schemes, hostile and extreme input."""

from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from samcorrect.lib.report.plots import (
    PALETTE,
    ArmInterval,
    plot_arms,
    plot_score_against_dice,
    plot_score_histograms,
    plot_training_curves,
)

SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg: str) -> list[str]:
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_arms_plot_names_each_arm_and_its_mean():
    svg = plot_arms(
        [ArmInterval("SAM only", 0.859, 0.84, 0.88, True), ArmInterval("supervised", 0.975, None, None, False)]
    )
    assert {"SAM only", "0.859", "supervised", "0.975"} <= set(_texts(svg))


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_arms_plot_of_one_arm_without_spread(mean):
    assert f"{mean:.3f}" in _texts(plot_arms([ArmInterval("a", mean, mean, mean, False)]))


def test_histograms_count_labels_and_give_the_median():
    texts = _texts(plot_score_histograms({"round 1": np.array([0.1, 0.2, 0.9]), "round 2": np.array([1.0])}))
    assert "round 1: 3 labels, median 0.20" in texts
    assert "round 2: 1 labels, median 1.00" in texts


def test_names_are_text_not_markup_or_mathematics():
    name = r"<script>$\frac{1}$ & more"
    for svg in (
        plot_training_curves({name: [(0, 1.0)]}),
        plot_score_histograms({name: np.array([0.5])}),
        plot_score_against_dice({name: (np.array([0.5]), np.array([0.5]))}),
    ):
        assert any(name in text for text in _texts(svg))
        assert "<script" not in svg


def test_colours_follow_the_scheme_of_the_reader():
    svg = plot_training_curves({"loss": [(0, 1.0), (1, 0.5)]})
    style, _, body = svg.partition("</style>")
    assert "prefers-color-scheme: dark" in style
    assert all(light in style and dark in style for light, dark in PALETTE.values())
    assert "stroke: var(--series0)" in body
    assert not any(colour in body for pair in PALETTE.values() for colour in pair)


def test_long_curves_are_thinned():
    points = [(step, 1 / (step + 1)) for step in range(100_000)]
    assert len(plot_training_curves({"loss": points})) < 60_000


def test_plots_are_reproducible_and_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    scores = {"round 1": np.linspace(0, 1, 50)}
    assert plot_score_histograms(scores) == plot_score_histograms(scores)
    assert dict(matplotlib.rcParams) == before
