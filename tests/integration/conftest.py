"""A studies folder of phantoms, and live servers over it: real processes on a real port of 127.0.0.1."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image

import samcorrect

START_TIMEOUT_S = 180
# Neither 1..K nor in order: a viewer that numbers by position would mix the structures up.
DISC, BAR = 5, 2
PROTOCOL = f"""
structures:
  - {{name: disc, index: {DISC}, prompt: {{source: box, xyxy: [0.10, 0.15, 0.58, 0.80]}}}}
  - {{name: bar, index: {BAR}, prompt: {{source: box, xyxy: [0.66, 0.10, 0.92, 0.90]}}}}
"""
CONF = {
    "sam_runtime": os.environ["SAMCORRECT_SAM_RUNTIME"],
    "student_steps": 4,
    "student_side_px": 64,
    "n_candidates": 2,
    "threads": 2,
    "audit_share": 0,
    "warm_slices": 0,
}


@pytest.fixture(scope="module")
def phantom_affine() -> np.ndarray:
    """Oblique: 0.9 x 1.1 x 3 mm, turned about z and x, the second axis reversed."""
    a, b = np.deg2rad(25), np.deg2rad(-12)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.9, -1.1, 3.0])
    affine[:3, 3] = [-20.0, 33.5, 101.0]
    return affine


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory, phantom_affine: np.ndarray) -> Path:
    """Nine PNG of 96 x 80 (x, y), one oblique 2D and one oblique 3D NIfTI; each shows a disc and a bar."""
    studies = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(7)
    for number in range(9):
        pixels, _ = draw_phantom(96, 80, rng)
        Image.fromarray(pixels.T).save(studies / f"case{number}.png")
    flat, _ = draw_phantom(96, 80, rng)
    nib.save(nib.Nifti1Image(flat[..., None], phantom_affine), studies / "oblique2d.nii.gz")
    volume = np.stack([draw_phantom(96, 80, rng)[0] for _ in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(volume, phantom_affine), studies / "oblique3d.nii.gz")
    (studies / "protocol.yaml").write_text(PROTOCOL, encoding="utf-8")
    return studies


def draw_phantom(width: int, height: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (width, height) uint8 and its label map: a disc at about x 33, y 38 and a bar at about x 76."""
    x, y = np.mgrid[:width, :height]
    cx, cy = 33 + rng.integers(-3, 4), 38 + rng.integers(-3, 4)
    label = np.zeros((width, height), np.uint8)
    label[((x - cx) / 19) ** 2 + ((y - cy) / 19) ** 2 < 1] = DISC
    label[(abs(x - 76) < 8) & (abs(y - 40) < 26)] = BAR
    pixels = 50 + 110 * (label == DISC) + 140 * (label == BAR) + rng.normal(0, 6, label.shape)
    return pixels.clip(0, 255).astype(np.uint8), label


@contextmanager
def running(command: list[str], url: str, *, cwd: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A server process, from its first answer until it is told to stop; it must stop on its own."""
    with (cwd / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=environment)
        try:
            _wait_for(url, process, cwd / "server.log")
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        try:
            requests.get(f"{url}/info/", timeout=30).raise_for_status()
        except requests.RequestException:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"no server on {url}:\n{log.read_text(encoding='utf-8')[-4000:]}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(temporary: Path) -> dict[str, str]:
    """The environment of a shell that knows nothing of this project, with a temporary folder of its own."""
    temporary.mkdir()
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MONAI_LABEL", "SAMCORRECT", "PYTHONPATH"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "2"}


@pytest.fixture(scope="module")
def served_cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where our own server runs; `tmp` in it is its temporary folder."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def own_server(phantoms: Path) -> Callable[..., AbstractContextManager[tuple[str, subprocess.Popen]]]:
    """A function that runs `samcorrect serve` from a folder, by default over the phantoms; gives URL and process."""

    @contextmanager
    def start(cwd: Path, studies: Path = phantoms, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [str(Path(sys.executable).parent / "samcorrect"), "serve", "--studies", str(studies)]
        settings = {f"SAMCORRECT_{key.upper()}": str(value) for key, value in CONF.items()}
        variables = clean_environment(cwd / "tmp") | settings | environment
        with running([*command, "--port", str(port)], url, cwd=cwd, environment=variables) as process:
            yield url, process

    return start


@pytest.fixture(scope="module")
def served(own_server: Callable, served_cwd: Path) -> Iterator[str]:
    """The URL of our own server over the phantoms."""
    with own_server(served_cwd) as (url, _):
        yield url


@pytest.fixture(scope="module")
def host_server() -> Callable[..., AbstractContextManager[tuple[str, subprocess.Popen]]]:
    """A function that runs `monailabel start_server`; its app folder is a copy: the host writes into it."""

    @contextmanager
    def start(
        cwd: Path, studies: Path, *, state: Path | None = None, **environment: str
    ) -> Iterator[tuple[str, subprocess.Popen]]:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        shutil.copytree(Path(samcorrect.__file__).parent, cwd / "samcorrect")
        command = [str(Path(sys.executable).parent / "monailabel"), "start_server", "--app", str(cwd / "samcorrect")]
        command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
        for key, value in ({"state": state or cwd / "state"} | CONF).items():
            command += ["--conf", key, str(value)]
        variables = clean_environment(cwd / "tmp") | environment
        with running(command, url, cwd=cwd, environment=variables) as process:
            yield url, process

    return start


@pytest.fixture(scope="module")
def host_served(host_server: Callable, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `monailabel start_server` on the phantoms."""
    with host_server(tmp_path_factory.mktemp("host_served"), phantoms) as (url, _):
        yield url
