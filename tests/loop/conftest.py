"""Workspaces for the tests of the loop: with SAM's embeddings at hand, with labels of known quality, and a finished
run.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import shift

from samcorrect.cli import main
from samcorrect.lib.errors import ImageError
from samcorrect.lib.loop.workspace import Workspace, open_workspace
from samcorrect.lib.store.engine import LEDGER_NAME
from samcorrect.lib.store.volumes import LPS_TO_RAS, read_label_map

# Labels of these images are shifted by this much, far enough for a student to see.
BAD_IMAGES = ("case2", "case5")
BAD_SHIFT_VOX = 18
# Enough for a student of 32 px to find two ellipses.
LEARNING_STEPS = 100

DECISIONS = {
    "labels": "select image_id, tag, round, maker, model_digest, prompts, path, info from label_version",
    "quality": "select image_id, tag, round, structure_index, score, expected_dice, posterior_good, features, reasons"
    " from quality join label_version on label_version.id = label_version_id",
    "models": "select digest, path, status, round from model",
    "runs": "select config, progress, is_finished from run",
}


@pytest.fixture
def phantom_workspace(phantoms, tmp_path: Path):
    """A function that opens a workspace over the phantoms in a state folder of its own, under other settings."""
    opened: list[Workspace] = []

    def open_with(name: str = "state", *, cache_dir: Path = phantoms.cache, **settings: Any) -> Workspace:
        state = tmp_path / name
        changed = phantoms.settings.model_copy(update={"state": state, **settings})
        opened.append(open_workspace(phantoms.images, changed, cache_dir=cache_dir))
        return opened[-1]

    yield open_with
    for workspace in opened:
        workspace.store.ledger.close()


@pytest.fixture
def lose_images(monkeypatch) -> Callable[..., None]:
    """A function after which some images of a workspace cannot be read any more, by default none can."""

    def lose(workspace: Workspace, *lost: str) -> None:
        read_image = workspace.store.read_image

        def read(image_id: str):
            if not lost or image_id in lost:
                raise ImageError("the image is gone")
            return read_image(image_id)

        monkeypatch.setattr(workspace.store, "read_image", read)

    return lose


@pytest.fixture(scope="session")
def trainings(made_once) -> Path:
    """Folder of the students of all tests that share them: what one worker has trained no other trains again."""
    return made_once("trainings", lambda _: None)


@pytest.fixture
def labelled(phantoms, phantom_workspace, trainings) -> Callable[..., Workspace]:
    """A function that opens such a workspace with true labels, but for BAD_IMAGES; no SAM is asked.

    `student_steps` are LEARNING_STEPS and the students are shared with other tests, or few and the test's own.
    """

    def open_with(
        name: str = "state",
        *,
        is_bad: Callable[[str], bool] = BAD_IMAGES.__contains__,
        shares_trainings: bool = True,
        **settings: Any,
    ) -> Workspace:
        steps = {"student_steps": LEARNING_STEPS} if shares_trainings else {}
        workspace = phantom_workspace(name, **{**steps, **settings})
        if shares_trainings:
            (workspace.store.state_dir / "models").symlink_to(trainings)
        for row in workspace.store.ledger.images():
            label_map = read_label_map(phantoms.labels / f"{row.id}.png").array
            if is_bad(row.id):
                label_map = shift(label_map, (0, BAD_SHIFT_VOX, 0), order=0)
            workspace.store.save_label_map(row.id, label_map, tag="original", maker="test", affine=LPS_TO_RAS)
        return workspace

    return open_with


@dataclass(frozen=True)
class FinishedRun:
    """What `samcorrect loop` left: exit code, its report, its state folder and the report folder."""

    code: int
    report: dict[str, Any]
    state: Path
    out: Path


@pytest.fixture(scope="session")
def compared_run(made_once, phantoms, new_state, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One round on the phantoms by the command line, compared with ground truth on held-out images."""

    def run(root: Path) -> None:
        truth = ["--ground-truth", str(phantoms.labels)]
        test = ["--test-images", str(phantoms.test_images), "--test-ground-truth", str(phantoms.test_labels)]
        code = run_phantom_loop(phantoms, new_state(root / "state"), root / "out", *truth, *test)
        (root / "code").write_text(str(code))

    # A copy, since opening a store writes.
    root = shutil.copytree(made_once("compared", run), tmp_path_factory.mktemp("compared") / "copy")
    report = json.loads((root / "out" / "report.json").read_text(encoding="utf-8"))
    return FinishedRun(int((root / "code").read_text()), report, root / "state", root / "out")


def run_phantom_loop(phantoms, state: Path, out: Path, *more: str) -> int:
    """`samcorrect loop` of one round on the phantoms; returns the exit code."""
    where = ["--studies", str(phantoms.images), "--state", str(state), "--out", str(out)]
    return main(["loop", *where, "--rounds", "1", *phantoms.options, *more])


@pytest.fixture(scope="session")
def phantom_loop() -> Callable[..., int]:
    """`run_phantom_loop` for tests."""
    return run_phantom_loop


@pytest.fixture(scope="session")
def true_dice(phantoms) -> Callable[[str, np.ndarray], float]:
    """A function of an image's id and a label map (H, W, D): the mean Dice of both structures with the truth."""

    def of(image_id: str, label_map: np.ndarray) -> float:
        truth = read_label_map(phantoms.labels / f"{image_id}.png").array
        values = [
            2 * ((label_map == i) & (truth == i)).sum() / ((label_map == i).sum() + (truth == i).sum()) for i in (3, 7)
        ]
        return float(np.mean(values))

    return of


@pytest.fixture(scope="session")
def query_ledger() -> Callable[[Path, str], list[tuple]]:
    """A function that reads the ledger of a state folder by a statement."""

    def query(state: Path, statement: str) -> list[tuple]:
        with sqlite3.connect(state / LEDGER_NAME) as connection:
            return connection.execute(statement).fetchall()

    return query


@pytest.fixture(scope="session")
def left_behind(query_ledger) -> Callable[[Path], dict[str, object]]:
    """A function that reads all that a run decides from a state folder: label files, students, scores, its progress."""

    def read(state: Path) -> dict[str, object]:
        files = {
            str(path.relative_to(state)): path.read_bytes()
            for folder in ("labels", "models")
            for path in (state / folder).rglob("*")
            if path.is_file()
        }
        return files | {name: sorted(query_ledger(state, statement)) for name, statement in DECISIONS.items()}

    return read
