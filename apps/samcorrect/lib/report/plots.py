"""The report's plots as SVG text whose colours follow the reader's light or dark mode.

Figures are made without pyplot, so nothing is registered anywhere and any thread may draw.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Name -> colour in light and in dark mode. The series are Okabe and Ito's colours for colour-blind readers (2008).
PALETTE = {
    "ink": ("#1c2733", "#e4e9ee"),
    "muted": ("#5b6876", "#9dabb9"),
    "grid": ("#dde3e9", "#33404c"),
    "series0": ("#0072b2", "#56b4e9"),
    "series1": ("#d55e00", "#ff8a3d"),
    "series2": ("#009e73", "#2fd6a3"),
    "series3": ("#b0568c", "#e58cc2"),
}
INK, MUTED, GRID = (PALETTE[name][0] for name in ("ink", "muted", "grid"))
SERIES = [light for name, (light, _) in PALETTE.items() if name.startswith("series")]
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "^", "s", "D")
WIDTH_IN = 7.2
MAX_CURVE_POINTS = 400
N_SCORE_BINS = 20
# The quality table gives the AUROC for finding labels below these.
DICE_LINES = (0.8, 0.9)


@dataclass(frozen=True)
class ArmInterval:
    """One row of the arms plot: `mean` in [0, 1], `low` and `high` its 95% interval or both None."""

    name: str
    mean: float
    low: float | None
    high: float | None
    is_prompted: bool


def plot_arms(arms: Sequence[ArmInterval]) -> str:
    """Forest plot of the arms' mean Dice and intervals, first arm at the top; squares are prompted arms."""
    with _figure(0.9 + 0.42 * len(arms)) as (figure, svg):
        axes = _axes(figure.add_subplot())
        ends = [value for arm in arms for value in (arm.low, arm.mean, arm.high) if value is not None]
        pad = max(0.01, 0.08 * (max(ends) - min(ends)))
        for row, arm in enumerate(arms):
            colour = SERIES[1] if arm.is_prompted else SERIES[0]
            if arm.low is not None and arm.high is not None:
                axes.plot([arm.low, arm.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(arm.mean, row, "s" if arm.is_prompted else "o", color=colour, markersize=7.5)
            axes.annotate(f"{arm.mean:.3f}", (1.01, row), xycoords=("axes fraction", "data"), va="center", color=INK)
        axes.set_xlim(max(0, min(ends) - pad), min(1.002, max(ends) + pad))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_xlabel("mean Dice and 95% interval")
    return svg.getvalue()


def plot_score_histograms(scores: Mapping[str, np.ndarray]) -> str:
    """One histogram per name (a round) under another on a shared axis from 0 to 1, the median marked.

    Args:
        scores: Name -> finite scores, at least one each.
    """
    with _figure(0.75 + 1.15 * len(scores)) as (figure, svg):
        rows = np.atleast_1d(figure.subplots(len(scores), 1, sharex=True, sharey=True))
        for axes, (name, values) in zip(rows, scores.items(), strict=True):
            _axes(axes, is_grid_x=False)
            axes.hist(np.clip(values, 0, 1), bins=N_SCORE_BINS, range=(0, 1), color=SERIES[0], rwidth=0.9)
            median = float(np.median(values))
            axes.axvline(median, color=SERIES[1], linewidth=1.8, linestyle=DASHES[1])
            axes.set_title(f"{name}: {len(values)} labels, median {median:.2f}", loc="left", fontsize=10, color=INK)
            axes.set_ylabel("labels")
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        rows[-1].set_xlim(0, 1)
        rows[-1].margins(y=0.1)
        rows[-1].set_xlabel("quality score (1 is best)")
    return svg.getvalue()


def plot_score_against_dice(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Scatter of the true Dice over the score, one colour and marker per name.

    Args:
        pairs: Name -> finite (scores, Dice), equally long, at least one point each.
    """
    with _figure(3.6) as (figure, svg):
        axes = _axes(figure.add_subplot())
        for i, (name, (values, dice)) in enumerate(pairs.items()):
            axes.plot(
                values, dice, MARKERS[i % 4], color=SERIES[i % 4], alpha=0.75, markersize=5.5, markeredgewidth=0,
                label=f"{name} (n = {len(values)})",
            )  # fmt: skip
        for line in DICE_LINES:
            axes.axhline(line, color=MUTED, linewidth=1, linestyle=DASHES[1])
        axes.set_xlim(-0.02, 1.02)
        lowest = min(float(dice.min()) for _, dice in pairs.values())
        axes.set_ylim(max(-0.02, math.floor(lowest * 10) / 10 - 0.02), 1.02)
        axes.set_xlabel("quality score")
        axes.set_ylabel("Dice with ground truth")
        _legend(axes)
    return svg.getvalue()


def plot_training_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Loss over the training step, one colour and dash pattern per name.

    Args:
        curves: Name -> finite (step, loss), at least one point each.
    """
    with _figure(3.0) as (figure, svg):
        axes = _axes(figure.add_subplot())
        for i, (name, points) in enumerate(curves.items()):
            stride = math.ceil(len(points) / MAX_CURVE_POINTS)
            steps, losses = zip(*points[::stride], strict=True)
            axes.plot(
                steps, losses, color=SERIES[i % 4], linestyle=DASHES[(i // 4 + i) % 4], linewidth=1.7, label=name,
                marker="o" if len(steps) == 1 else None,
            )  # fmt: skip
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        _legend(axes)
    return svg.getvalue()


@contextmanager
def _figure(height_in: float) -> Iterator[tuple[Figure, io.StringIO]]:
    """A figure that is drawn into the text buffer beside it when the block ends."""
    settings = {
        "font.size": 10, "axes.labelcolor": MUTED, "axes.edgecolor": GRID, "xtick.color": MUTED, "ytick.color": MUTED,
        "font.sans-serif": ["DejaVu Sans"], "text.parse_math": False,
        "svg.fonttype": "none", "svg.hashsalt": "samcorrect",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        buffer = io.StringIO()
        yield figure, buffer
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    buffer.write(_with_colour_schemes(svg))


def _axes(axes: Axes, *, is_grid_x: bool = True) -> Axes:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="both" if is_grid_x else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    return axes


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK, handlelength=3, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _with_colour_schemes(svg: str) -> str:
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", "system-ui")
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme: dark){{svg{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"{style}<defs>", 1)
