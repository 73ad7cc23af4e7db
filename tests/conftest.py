"""Small fixtures that every part of the tests shares."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real images with expert masks; it is no part of the product."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared test data is not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def oblique_affine() -> np.ndarray:
    """Voxels of 0.8 x 1.2 x 2.5 mm, turned by 20 degrees about z and then 10 about x, the first axis reversed."""
    a, b = np.deg2rad(20), np.deg2rad(10)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-0.8, 1.2, 2.5])
    affine[:3, 3] = [31.0, -17.5, 240.0]
    return affine


@pytest.fixture
def make_studies(tmp_path: Path) -> Callable[..., Path]:
    """A function that fills a studies folder with small grey PNG images of the given names."""

    def make(*names: str, shape_yx: tuple[int, int] = (12, 16)) -> Path:
        studies = tmp_path / "studies"
        studies.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            path = studies / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, shape_yx, dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return studies

    return make
