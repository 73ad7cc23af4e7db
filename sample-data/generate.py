"""Make the sample data of samcorrect: 2D phantoms that resemble chest radiographs, with true masks of two lung fields.

They are drawn from formulas and random numbers; no image of a person is involved. The same seed gives the same pixels.
Lengths are relative to the image (x right, y down, both in [0, 1]); grey values lie in [0, 1], soft tissue near 0.7.
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

SEED = 20230808
N_TRAIN = 32
N_TEST = 16
MIN_SIDE_PX = 240
MAX_SIDE_PX = 288
BACKGROUND, RIGHT_LUNG, LEFT_LUNG = 0, 1, 2
# These lie or look different enough that a box drawn for the others misleads SAM.
HARD_SHARE = 0.4
MANIFEST = "SHA256SUMS"
PROTOCOL = """\
# Rough boxes, the same for every image: x0, y0, x1, y1 relative to the image, x to the right, y down.
structures:
  - {name: right lung, index: 1, prompt: {source: box, xyxy: [0.14, 0.08, 0.48, 0.80]}}
  - {name: left lung, index: 2, prompt: {source: box, xyxy: [0.52, 0.08, 0.90, 0.80]}}
"""


@dataclass(frozen=True)
class Lung:
    """One lung field: from the apex at `top` to the dome at `base`, `width` to the side of its medial edge `medial`."""

    side: int
    medial: float
    width: float
    top: float
    base: float
    dome: float
    lean: float
    darkness: float


@dataclass(frozen=True)
class Case:
    """What one phantom is drawn from."""

    centre: float
    tilt: float
    lungs: tuple[Lung, Lung]
    heart_radius: float
    rib_grey: float
    n_ribs: int
    n_devices: int
    n_opacities: int
    has_gas: bool
    noise: float
    blur_px: float


def draw_case(rng: np.random.Generator, *, is_hard: bool) -> Case:
    """Draw the anatomy and the acquisition of one phantom; a hard one varies more and has less contrast."""
    spread = 1.6 if is_hard else 1.0
    centre = 0.5 + rng.choice([-1, 1]) * rng.uniform(0, 0.03) * spread
    top = 0.12 + rng.uniform(-0.04, 0.05) * spread
    scale = rng.uniform(0.70, 0.95) if is_hard else rng.uniform(0.80, 1.08)
    darkness = rng.uniform(0.15, 0.24) if is_hard else rng.uniform(0.26, 0.40)
    lungs = tuple(_draw_lung(rng, side, centre, top, scale, darkness, spread) for side in (-1, 1))
    return Case(
        centre=centre,
        tilt=rng.normal(0, 0.03) * spread,
        lungs=lungs,
        heart_radius=rng.uniform(0.09, 0.13),
        rib_grey=rng.uniform(0.08, 0.14) if is_hard else rng.uniform(0.03, 0.07),
        n_ribs=int(rng.integers(8, 11)),
        n_devices=int(rng.integers(1, 4)) if is_hard else int(rng.integers(0, 2)),
        n_opacities=int(rng.integers(1, 3)) if is_hard else 0,
        has_gas=bool(rng.random() < 0.5),
        noise=rng.uniform(0.012, 0.03),
        blur_px=rng.uniform(0.6, 1.2),
    )


def _draw_lung(
    rng: np.random.Generator, side: int, centre: float, top: float, scale: float, darkness: float, spread: float
) -> Lung:
    height = 0.60 * scale * (1 + rng.normal(0, 0.05) * spread)
    return Lung(
        side=side,
        medial=centre + side * (0.055 + rng.uniform(0, 0.02)),
        width=0.30 * scale * (1 + rng.normal(0, 0.06) * spread),
        top=top + rng.normal(0, 0.008),
        base=min(top + height, 0.88),
        dome=rng.uniform(0.06, 0.13),
        lean=rng.uniform(0.00, 0.05),
        darkness=darkness * rng.uniform(0.85, 1.1),
    )


def render(case: Case, shape_hw: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    Args:
        case: The anatomy.
        shape_hw: Rows and columns.
        rng: Source of texture, places of devices and noise.

    Returns:
        (H, W) uint8 image and (H, W) uint8 label map: 0 background, 1 right lung (left in the image), 2 left lung.
    """
    rows, columns = shape_hw
    y, x = np.mgrid[0:rows, 0:columns]
    x, y = (x + 0.5) / columns, (y + 0.5) / rows
    tilt = case.tilt
    x, y = (
        0.5 + (x - 0.5) * np.cos(tilt) - (y - 0.5) * np.sin(tilt),
        0.5 + (x - 0.5) * np.sin(tilt) + (y - 0.5) * np.cos(tilt),
    )
    heart = _heart(case, x, y)
    depths = [_lung_depth(lung, x, y, heart) for lung in case.lungs]
    grey = _torso(case, x, y)
    for lung, depth in zip(case.lungs, depths, strict=True):
        inside = _soft(depth, 0.006)
        texture = ndimage.gaussian_filter(rng.normal(size=shape_hw), 3) * 0.12
        grey += inside * (texture - lung.darkness * (0.75 + 0.25 * np.tanh(depth / 0.05)))
    grey += _vessels(case, x, y, depths, rng)
    grey += _ribs(case, x, y)
    if case.has_gas:
        stomach = case.lungs[1]
        gas = np.hypot((x - stomach.medial - 0.6 * stomach.width) / 0.07, (y - stomach.base - 0.05) / 0.035)
        grey -= 0.22 * _soft(1 - gas, 0.12)
    grey += _opacities(case, x, y, rng) + _devices(case, x, y, rng)
    grey += 0.08 * (rng.uniform(-1, 1) * (x - 0.5) + rng.uniform(-1, 1) * (y - 0.5))
    grey = ndimage.gaussian_filter(grey, case.blur_px) + rng.normal(0, case.noise, shape_hw)
    label_map = np.full(shape_hw, BACKGROUND, np.uint8)
    for index, depth in zip((RIGHT_LUNG, LEFT_LUNG), depths, strict=True):
        label_map[depth > 0] = index
    return np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8), label_map


def _soft(signed_depth: np.ndarray, edge: float) -> np.ndarray:
    """0 outside, 1 inside, with a smooth edge of the given width."""
    return 0.5 * (1 + np.tanh(signed_depth / edge))


def _lung_depth(lung: Lung, x: np.ndarray, y: np.ndarray, heart: np.ndarray) -> np.ndarray:
    """Signed depth below the nearest edge of the lung field; positive inside."""
    along = np.clip((y - lung.top) / (lung.base - lung.top), 0, 1.3)
    across = (x - lung.medial) * lung.side
    rounded = (1 - np.clip(1 - along / 0.55, 0, 1) ** 2.2) ** (1 / 2.2)
    lateral = lung.width * (0.35 + 0.65 * rounded) * (0.86 + 0.14 * along)
    medial = 0.16 * lung.width * (1 - rounded) + lung.lean * np.clip(along, 0, 1) ** 2
    # The dome is highest a third of the way out; the costophrenic angle reaches below it.
    floor = lung.base + lung.dome * ((across / lung.width - 0.35) ** 2 * 2.2 - 0.25)
    middle = np.clip((across - 0.5 * (medial + lateral)) / np.maximum(lateral - medial, 0.02), -0.5, 0.5)
    ceiling = lung.top + 0.06 * (2 * middle) ** 2
    return np.minimum.reduce([across - medial, lateral - across, floor - y, y - ceiling, -heart])


def _heart(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed depth inside the heart shadow, which leans to the left lung (the right of the image)."""
    low = min(lung.base for lung in case.lungs)
    dx, dy = x - case.centre - 0.035, y - low + 0.10
    u, v = dx * 0.85 + dy * 0.53, dy * 0.85 - dx * 0.53
    return (1 - np.hypot(u / (1.25 * case.heart_radius), v / case.heart_radius)) * case.heart_radius


def _torso(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Air outside the body, shoulders, soft tissue, spine, heart and abdomen."""
    outermost = max(lung.width for lung in case.lungs) + 0.06
    half_width = outermost + 0.06 + 0.10 * np.exp(-(((y - 0.22) / 0.16) ** 2)) + 0.05 * np.clip(y - 0.6, 0, 1)
    neck = 0.13 + 1.6 * np.clip(y - 0.02, 0, 1)
    body = _soft(np.minimum(half_width, neck) - np.abs(x - case.centre), 0.012)
    low = 0.5 * sum(lung.base for lung in case.lungs)
    spine = np.exp(-(((x - case.centre) / 0.035) ** 2)) * (0.06 + 0.02 * np.sin(y * 70))
    trachea = np.exp(-(((x - case.centre) / 0.018) ** 2)) * _soft(0.30 - y, 0.04)
    tissue = 0.70 + 0.10 * _soft(y - low, 0.05) + 0.08 * _soft(_heart(case, x, y), 0.03) + spine - 0.06 * trachea
    mediastinum = 0.06 * np.exp(-(((x - case.centre) / 0.07) ** 2)) * _soft(low - y, 0.05)
    return 0.10 + body * (tissue + mediastinum - 0.10)


def _ribs(case: Case, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bright arcs that slope down from the spine over both lungs, and the clavicles."""
    reach = max(lung.width for lung in case.lungs) + 0.09
    first = min(lung.top for lung in case.lungs)
    last = max(lung.base for lung in case.lungs) + 0.03
    out = np.abs(x - case.centre) / reach
    cage = _soft(1 - out, 0.04)
    grey = np.zeros_like(x)
    for start in np.linspace(first - 0.02, last - 0.10, case.n_ribs):
        back = start + 0.11 * out**2 - 0.05 * out
        grey += case.rib_grey * np.exp(-(((y - back) / 0.012) ** 4)) * cage
        front = start + 0.20 - 0.16 * out
        grey += 0.35 * case.rib_grey * np.exp(-(((y - front) / 0.011) ** 4)) * cage * _soft(out - 0.35, 0.1)
    clavicle = first + 0.05 - 0.10 * out
    return grey + 1.3 * case.rib_grey * np.exp(-(((y - clavicle) / 0.013) ** 4)) * _soft(1.15 - out, 0.05) * _soft(
        out - 0.1, 0.05
    )


def _vessels(
    case: Case, x: np.ndarray, y: np.ndarray, depths: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Bright lines that leave each hilum and fade towards the edge of the lung."""
    grey = np.zeros_like(x)
    for lung, depth in zip(case.lungs, depths, strict=True):
        hilum_y = lung.top + 0.5 * (lung.base - lung.top)
        dx, dy = (x - lung.medial) * lung.side + 0.01, y - hilum_y
        distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        lines = np.zeros_like(x)
        for branch in rng.uniform(-1.3, 1.3, 9):
            bend = branch + rng.normal(0, 1.5) * distance
            lines = np.maximum(lines, np.exp(-(((angle - bend) * distance / 0.004) ** 2)))
        fading = np.exp(-distance / 0.09)
        grey += _soft(depth, 0.006) * (0.10 * lines * fading + 0.06 * np.exp(-((distance / 0.05) ** 2)))
    return grey


def _opacities(case: Case, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hazy bright patches inside the lungs; the truth holds them, a mask that follows the dark area does not."""
    grey = np.zeros_like(x)
    for _ in range(case.n_opacities):
        lung = case.lungs[int(rng.integers(2))]
        cx = lung.medial + lung.side * lung.width * rng.uniform(0.3, 0.8)
        cy = lung.top + (lung.base - lung.top) * rng.uniform(0.3, 0.85)
        radius = rng.uniform(0.05, 0.09)
        grey += lung.darkness * rng.uniform(0.4, 0.7) * np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / radius**2) ** 1.5))
    return grey


def _devices(case: Case, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright discs with a lead that runs to the spine, as electrodes and pacemakers have."""
    grey = np.zeros_like(x)
    for _ in range(case.n_devices):
        side = rng.choice([-1, 1])
        cx, cy = case.centre + side * rng.uniform(0.16, 0.30), rng.uniform(0.22, 0.55)
        radius = rng.uniform(0.018, 0.045)
        disc = _soft(radius - np.hypot(x - cx, (y - cy) * rng.uniform(0.8, 1.2)), 0.004)
        run = np.clip((x - case.centre) / (cx - case.centre), 0, 1)
        lead_y = case.lungs[0].top + (cy - case.lungs[0].top) * run**2
        between = _soft(np.minimum((x - case.centre) * side, (cx - x) * side), 0.004)
        grey += 0.30 * np.maximum(disc, 0.6 * between * np.exp(-(((y - lead_y) / 0.005) ** 2)))
    return grey


def make_case(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and label map of one phantom, (H, W) uint8 each; `number` counts over training and test phantoms."""
    rng = np.random.default_rng([SEED, number])
    rows, columns = (int(side) for side in rng.integers(MIN_SIDE_PX // 4, MAX_SIDE_PX // 4 + 1, 2) * 4)
    return render(draw_case(rng, is_hard=bool(rng.random() < HARD_SHARE)), (rows, columns), rng)


def write_dataset(out: Path) -> None:
    """Write images, labels, the protocol and the manifest with the SHA-256 of each of them into `out`."""
    names = ["protocol.yaml"]
    out.mkdir(parents=True, exist_ok=True)
    (out / names[0]).write_text(PROTOCOL, encoding="utf-8")
    for number in range(N_TRAIN + N_TEST):
        prefix = "" if number < N_TRAIN else "test-"
        for folder, array in zip(("images", "labels"), make_case(number), strict=True):
            name = f"{prefix}{folder}/phantom_{number + 1:02d}.png"
            (out / name).parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(out / name, optimize=True)
            names.append(name)
    lines = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(names)]
    (out / MANIFEST).write_text("".join(lines), encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Write {N_TRAIN} training and {N_TEST} test phantoms, their labels, a protocol and a manifest.",
        epilog="example: python sample-data/generate.py --out /tmp/phantoms",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into; made if missing")
    return parser


if __name__ == "__main__":
    write_dataset(make_parser().parse_args().out)
