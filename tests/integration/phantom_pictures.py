"""The phantoms' pictures of two ellipses, their true label maps and their protocol."""

from pathlib import Path

import numpy as np
from PIL import Image

# Neither 1..K nor in order: what numbers structures by position mixes them up.
PHANTOM_INDICES = (7, 3)
PHANTOM_PROTOCOL = """
structures:
  - {name: right blob, index: 7, prompt: {source: box, xyxy: [0.04, 0.10, 0.56, 0.92]}}
  - {name: left blob, index: 3, prompt: {source: box, xyxy: [0.52, 0.10, 0.98, 0.92]}}
"""
N_PHANTOMS, N_TEST_PHANTOMS = 10, 3


def draw_phantom(rng: np.random.Generator, shape_hw: tuple[int, int] = (96, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A picture of an ellipse in either half, of varying place and size, and its label map: (H, W) uint8 both."""
    x, y = np.mgrid[: shape_hw[0], : shape_hw[1]] / np.array(shape_hw)[:, None, None]
    label = np.zeros(shape_hw, np.uint8)
    for index, center in zip(PHANTOM_INDICES, (0.28, 0.74), strict=True):
        at = np.array([center, 0.5]) + rng.uniform(-0.05, 0.05, 2)
        radius = rng.uniform((0.10, 0.14), (0.17, 0.32))
        label[((x - at[0]) / radius[0]) ** 2 + ((y - at[1]) / radius[1]) ** 2 < 1] = index
    pixels = 50 + 70 * (label == 7) + 170 * (label == 3) + rng.normal(0, 12, shape_hw)
    return pixels.clip(0, 255).astype(np.uint8), label


def draw_phantoms(root: Path) -> None:
    """Fill a folder with images, test-images, the label maps of both and, in images, protocol.yaml."""
    rng = np.random.default_rng(11)
    sets = {"images": ("case", N_PHANTOMS), "test-images": ("test", N_TEST_PHANTOMS)}
    for folder, (name, count) in sets.items():
        labels = root / folder.replace("images", "labels")
        (root / folder).mkdir()
        labels.mkdir()
        for number in range(count):
            pixels, label = draw_phantom(rng)
            Image.fromarray(pixels.T).save(root / folder / f"{name}{number}.png")
            Image.fromarray(label.T).save(labels / f"{name}{number}.png")
    (root / "images" / "protocol.yaml").write_text(PHANTOM_PROTOCOL, encoding="utf-8")
