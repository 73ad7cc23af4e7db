"""The sample data are what their generator, manifest and protocol say they are."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.store.studies import LocalStudies

SAMPLE_DATA = Path(__file__).resolve().parents[1] / "sample-data"
MAX_BYTES = 10_000_000
# Written by hand: no output of the generator.
HAND_WRITTEN = {"generate.py", "SOURCES.md", "SHA256SUMS"}


def manifest() -> dict[str, str]:
    """File name to SHA-256."""
    lines = (SAMPLE_DATA / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms")
    subprocess.run([sys.executable, SAMPLE_DATA / "generate.py", "--out", out], check=True)
    return out


def test_manifest_lists_every_file_with_its_hash() -> None:
    files = {
        p.relative_to(SAMPLE_DATA).as_posix() for p in SAMPLE_DATA.rglob("*") if p.is_file() and p.suffix != ".pyc"
    }
    assert files - HAND_WRITTEN == set(manifest())
    for name, digest in manifest().items():
        assert hashlib.sha256((SAMPLE_DATA / name).read_bytes()).hexdigest() == digest, name


def test_sources_name_the_manifest_by_its_hash() -> None:
    digest = hashlib.sha256((SAMPLE_DATA / "SHA256SUMS").read_bytes()).hexdigest()
    assert digest in (SAMPLE_DATA / "SOURCES.md").read_text()


def test_generator_makes_the_same_pixels_again(regenerated: Path) -> None:
    # Pixels, not file bytes: the same pixels take other bytes in a Pillow that was built with another zlib.
    for name in manifest():
        if name.endswith(".png"):
            same = np.array_equal(
                np.asarray(Image.open(regenerated / name)), np.asarray(Image.open(SAMPLE_DATA / name))
            )
        else:
            same = (regenerated / name).read_bytes() == (SAMPLE_DATA / name).read_bytes()
        assert same, name


def test_generator_writes_no_other_files(regenerated: Path) -> None:
    files = {p.relative_to(regenerated).as_posix() for p in regenerated.rglob("*") if p.is_file()}
    assert files == {*manifest(), "SHA256SUMS"}


@pytest.mark.parametrize(("prefix", "n_images"), [("", 32), ("test-", 16)])
def test_each_image_has_a_label_on_its_grid_with_all_structures(prefix: str, n_images: int) -> None:
    protocol = load_protocol(SAMPLE_DATA / "protocol.yaml")
    studies, truth = (LocalStudies(SAMPLE_DATA / f"{prefix}{name}") for name in ("images", "labels"))
    images, refused = studies.scan()
    labels, _ = truth.scan()
    assert refused == []
    assert len(images) == n_images
    assert [image.path for image in images] == [label.path for label in labels]
    for image, label in zip(images, labels, strict=True):
        with Image.open(studies.file(image.path)) as picture, Image.open(truth.file(label.path)) as mask:
            assert picture.mode == mask.mode == "L"
            assert picture.size == mask.size
            assert all(240 <= side <= 288 for side in picture.size)
            assert set(np.unique(np.asarray(mask))) == {0, *protocol.indices}


def test_training_and_test_phantoms_are_different_pictures() -> None:
    digests = [digest for name, digest in manifest().items() if name.endswith(".png")]
    assert len(set(digests)) == len(digests) == 2 * (32 + 16)


def test_the_folder_is_small() -> None:
    assert sum(p.stat().st_size for p in SAMPLE_DATA.rglob("*") if p.is_file()) < MAX_BYTES
