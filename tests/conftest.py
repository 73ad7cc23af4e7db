"""Small fixtures that every part of the tests shares."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.loop.candidates import find_candidates
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings

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


# Neither 1..K nor in order: what numbers structures by position mixes them up.
PHANTOM_INDICES = (7, 3)
PHANTOM_PROTOCOL = """
structures:
  - {name: right blob, index: 7, prompt: {source: box, xyxy: [0.04, 0.10, 0.56, 0.92]}}
  - {name: left blob, index: 3, prompt: {source: box, xyxy: [0.52, 0.10, 0.98, 0.92]}}
"""
N_PHANTOMS, N_TEST_PHANTOMS = 10, 3
PHANTOM_SETTINGS = {"threads": 1, "n_candidates": 2, "student_steps": 60, "student_side_px": 32, "rounds": 1}


@dataclass(frozen=True)
class Phantoms:
    """Small pictures of two ellipses with their true label maps, all only to be read.

    Attributes:
        images: Studies folder with protocol.yaml.
        labels: True label maps of `images`.
        test_images, test_labels: The same, held out.
        cache: SAM's embeddings and candidates, shared by all tests of a session.
        settings: Of every run on them.
    """

    images: Path
    labels: Path
    test_images: Path
    test_labels: Path
    cache: Path
    settings: Settings

    @property
    def options(self) -> list[str]:
        """The settings as options of the command line, without `rounds`."""
        given = ((name, value) for name, value in PHANTOM_SETTINGS.items() if name != "rounds")
        return [word for name, value in given for word in (f"--{name.replace('_', '-')}", str(value))]


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


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Phantoms:
    """Ten images and three test images."""
    root = tmp_path_factory.mktemp("phantoms")
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
    folders = (root / name for name in ("images", "labels", "test-images", "test-labels", "cache"))
    return Phantoms(*folders, settings=Settings(**PHANTOM_SETTINGS))


@pytest.fixture(scope="session")
def new_state(phantoms: Phantoms, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that makes a state folder which knows SAM's embeddings of the phantoms and nothing else.

    SAM sees each slice once in a test session.
    """
    for images in (phantoms.images, phantoms.test_images):
        given = {"state": tmp_path_factory.mktemp("encoding"), "protocol": phantoms.images / "protocol.yaml"}
        workspace = open_workspace(images, phantoms.settings.model_copy(update=given), cache_dir=phantoms.cache)
        for row in workspace.store.ledger.images():
            find_candidates(workspace, workspace.store.read_image(row.id), Path(row.path).name)
        workspace.store.ledger.close()

    def make(folder: Path) -> Path:
        shutil.copytree(phantoms.cache / "embeddings", folder / "cache" / "embeddings", copy_function=os.link)
        return folder

    return make
