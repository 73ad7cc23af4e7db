"""The loop end to end: what it leaves for every image, what people approved, and what a kill costs."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import shift

from samcorrect import __version__
from samcorrect.lib.loop import rounds
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.outcome import write_report
from samcorrect.lib.loop.progress import STAGE_STOPPED
from samcorrect.lib.loop.rounds import _open_run, _with_labels, run_loop, stop_reason
from samcorrect.lib.loop.workspace import no_progress, open_workspace
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS, read_label_map, write_label_map
from samcorrect.lib.transforms.frame import labels_to_frame

START_TIMEOUT_S = 300
# Runs the loop on its own and is killed with SIGKILL at one moment: at a step of a stage, or, as soon as the ledger
# holds the first corrected label, between two of them.
KILLED_RUN = """
import os, signal, sqlite3, sys, threading, time
from pathlib import Path
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings

studies, settings = Path(sys.argv[1]), Settings.model_validate_json(sys.argv[2])
stage, count = sys.argv[3], int(sys.argv[4])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch():
    with sqlite3.connect(settings.state / "ledger.sqlite") as ledger:
        while not ledger.execute("select count(*) from label_version where tag = 'corrected'").fetchone()[0]:
            time.sleep(0.0005)
    die()

def progress(name, done, total):
    if name == stage and done == count:
        die()

workspace = open_workspace(studies, settings)
if stage == "corrected":
    threading.Thread(target=watch, daemon=True).start()
run_loop(workspace, progress=progress)
"""


@pytest.mark.slow
def test_every_image_has_a_label_on_its_grid_and_a_score_for_each_structure(compared_run, phantoms, true_dice):
    assert compared_run.code == 0
    store = LabelStore(*open_studies(phantoms.images, compared_run.state))
    latest = store.ledger.latest_labels()
    images = store.ledger.images()
    assert len(images) == 10
    values = []
    for image in images:
        volume, row = store.read_image(image.id), latest[image.id, "original"]
        on_disk = read_label_map(store.label_path(row))
        assert on_disk.array.shape == volume.array.shape == (96, 80, 1)
        assert np.allclose(on_disk.affine, volume.affine)
        assert set(np.unique(on_disk.array)) <= {0, 3, 7}
        values.append(true_dice(image.id, store.read_label(row)))
        quality = store.ledger.quality(store.ledger.best_label(image.id).id)
        assert set(quality) == {0, 3, 7}
        assert all(q.score is None or 0 <= q.score <= 1 for q in quality.values())
        assert image.queue_score == quality[0].score
    assert np.mean(values) > 0.7
    assert store.ledger.models()[-1].digest == compared_run.report["model_digest"]
    store.ledger.close()


@pytest.mark.slow
def test_a_finished_run_is_only_read_again(compared_run, phantoms, phantom_loop, left_behind, tmp_path):
    state = shutil.copytree(compared_run.state, tmp_path / "state")
    before = left_behind(state)
    assert phantom_loop(phantoms, state, tmp_path / "out") == 0
    assert left_behind(state) == before
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model_digest"] == compared_run.report["model_digest"]
    assert report["rounds"] == compared_run.report["rounds"]


@pytest.mark.parametrize(
    "is_command_killed_too", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.long)]
)
def test_killed_again_and_again_a_run_ends_as_an_undisturbed_one(
    is_command_killed_too, compared_run, phantoms, new_state, phantom_loop, left_behind, query_ledger, tmp_path
):
    def count_labels(state: Path, tag: str) -> int:
        return query_ledger(state, f"select count(*) from label_version where tag = '{tag}'")[0][0]

    whole, killed = compared_run.state, new_state(tmp_path / "killed")
    n_corrected = count_labels(whole, "corrected")
    assert n_corrected >= 2, "the phantoms no longer show whether corrections are kept one by one"

    kill_at(phantoms, killed, "pseudo-labels", 4)
    assert count_labels(killed, "original") == 4
    seen = inodes(killed / "cache")

    if is_command_killed_too:
        kill_command_after(phantoms, killed, "round 1: second out-of-fold students", out=tmp_path / "out")
        assert count_labels(killed, "original") == 10
        assert len(list((killed / "models").glob("*.pt"))) >= 1
        assert count_labels(killed, "corrected") == 0
    trained = inodes(killed / "models")

    kill_at(phantoms, killed, "corrected", 0)
    trained = inodes(killed / "models") | trained
    assert any(path.suffix == ".pt" for path in trained)
    assert 1 <= count_labels(killed, "corrected") <= n_corrected
    assert query_ledger(killed, "select progress from run") == [("{}",)]

    assert phantom_loop(phantoms, killed, tmp_path / "out") == 0
    assert left_behind(killed) == left_behind(whole)
    # Nothing that was finished was made again: no image encoded or prompted, no label written, no student trained.
    assert seen.items() <= inodes(killed / "cache").items()
    assert trained.items() <= inodes(killed / "models").items()
    versions = query_ledger(killed, "select image_id, tag from label_version")
    assert set(Counter(versions).values()) == {1}


def test_an_image_that_was_set_aside_is_out_of_the_next_round(labelled):
    workspace = labelled(shares_trainings=False)
    labels = best_labels(workspace)
    cohort = load_cohort(workspace, labels)
    assert len(_with_labels(workspace, cohort, labels, no_progress)) == 10
    workspace.store.ledger.quarantine("case4", "it broke")
    left = _with_labels(workspace, cohort, labels, no_progress)
    assert "case4" not in {row.id for row in left.images}
    assert (len(left), len(left.targets)) == (9, 9)


def test_a_run_ends_where_no_correction_is_accepted_or_the_scores_stop_improving():
    first = {"round": 1, "n_corrected": 3, "mean_score": 0.80}
    assert stop_reason([first], 3) is None
    assert stop_reason([first | {"n_corrected": 0}], 3) == "no correction was accepted in round 1"
    assert stop_reason([first, {"round": 2, "n_corrected": 1, "mean_score": 0.81}], 3) is None
    reason = stop_reason([first, {"round": 2, "n_corrected": 1, "mean_score": 0.804}], 3)
    assert reason == "the mean score went from 0.800 to 0.804, and a gain of 0.005 was wanted"
    # Without scores nothing is known of them, and after the last round there is nothing to stop.
    assert stop_reason([first, {"round": 2, "n_corrected": 1, "mean_score": None}], 3) is None
    assert stop_reason([first | {"n_corrected": 0}], 1) is None


def test_a_run_that_stops_early_says_so_and_is_read_again_as_it_is(labelled, tmp_path):
    workspace = labelled(shares_trainings=False, student_steps=5, rounds=3, modules="search,image_weights")
    stages = []
    result = run_loop(workspace, progress=lambda stage, _done, _total: stages.append(stage))
    assert [told["round"] for told in result.rounds] == [1]
    assert result.stop_reason == "no correction was accepted in round 1"
    assert f"{STAGE_STOPPED} 1 of 3: {result.stop_reason}" in stages
    run = workspace.store.ledger.run(result.run_id)
    assert run.is_finished
    assert run.progress["stop_reason"] == result.stop_reason
    again = run_loop(workspace)
    assert (again.run_id, again.stop_reason) == (result.run_id, result.stop_reason)
    assert [told["scores"] for told in again.rounds] == [told["scores"] for told in result.rounds]
    json_path, html_path = write_report(workspace, result, tmp_path / "out")
    assert json.loads(json_path.read_text(encoding="utf-8"))["stop_reason"] == result.stop_reason
    assert f"No further round was run: {result.stop_reason}." in html_path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["samcorrect", "huang2023"])
def test_approved_labels_teach_and_stay_as_they_are(labelled, phantoms, tmp_path, preset, monkeypatch):
    workspace = labelled(preset=preset, shares_trainings=False, rounds=3, student_steps=30)
    monkeypatch.setattr(rounds, "stop_reason", lambda *_: None)  # all three, whatever they promise
    store = workspace.store
    approved = {}
    for image_id in ("case2", "case4"):  # one that looks bad and one that looks good
        path = tmp_path / f"{image_id}.nii.gz"
        label_map = shift(read_label_map(phantoms.labels / f"{image_id}.png").array, (6, -12, 0), order=0)
        write_label_map(path, label_map, LPS_TO_RAS)
        approved[image_id] = (store.submit_label(image_id, path, tag="final", user="anna"), path.read_bytes())
    cohort = load_cohort(workspace, best_labels(workspace))
    expected = labels_to_frame(read_label_map(tmp_path / "case2.nii.gz").array, (7, 3), 32)
    assert torch.equal(cohort.targets[cohort.spans[2]], expected)

    result = run_loop(workspace)
    assert [told["round"] for told in result.rounds] == [1, 2, 3]
    for image_id, (row, content) in approved.items():
        assert result.labels_first[image_id].id == result.labels_last[image_id].id == row.id
        assert store.label_path(row).read_bytes() == content
        assert store.ledger.best_label(image_id).id == row.id
        assert store.ledger.latest_label(image_id, "corrected") is None
        assert all(image_id not in told["flagged"] and image_id not in told["corrected"] for told in result.rounds)
        assert store.ledger.quality(row.id)[7].posterior_good == 1
    assert any(told["flagged"] for told in result.rounds)


def test_another_version_of_samcorrect_begins_a_new_run(labelled, monkeypatch):
    workspace = labelled()
    first = _open_run(workspace)
    assert _open_run(workspace).id == first.id
    monkeypatch.setattr(rounds, "__version__", "99.0")
    second = _open_run(workspace)
    assert second.id != first.id
    assert (first.config["samcorrect"], second.config["samcorrect"]) == (__version__, "99.0")


@pytest.mark.slow
def test_what_is_approved_between_runs_makes_a_new_run_with_another_student(labelled, phantoms):
    workspace = labelled(shares_trainings=False, student_steps=12)
    first = run_loop(workspace)
    assert run_loop(workspace).run_id == first.run_id
    workspace.store.submit_label("case2", phantoms.labels / "case2.png", tag="final", user="anna")
    second = run_loop(workspace)
    assert second.run_id != first.run_id
    assert second.rounds[0]["student"]["digest"] != first.rounds[0]["student"]["digest"]


@pytest.mark.parametrize("preset", ["samcorrect", "huang2023"])
def test_the_student_of_a_round_learns_by_the_weights_that_the_round_found(labelled, monkeypatch, preset):
    workspace = labelled(shares_trainings=False, student_steps=2, rounds=1, preset=preset)
    given = []
    monkeypatch.setattr(rounds, "flag_labels", lambda _, cohort, *__, **___: np.arange(len(cohort))[:, None] == [2, 5])
    monkeypatch.setattr(rounds, "correct_cohort", lambda *_, **__: iter(()))

    def seen(workspace, cohort, posterior, weights, is_trusted, **_):
        given.append((posterior, weights, is_trusted))
        return {"digest": "0" * 64, "status": "refused"}

    def half_good(*arguments, **options):
        return replace(scored(*arguments, **options), posterior=np.full((10, 2), 0.25))

    scored = rounds.score_cohort
    monkeypatch.setattr(rounds, "retrain", seen)
    monkeypatch.setattr(rounds, "score_cohort", half_good)

    run_loop(workspace)

    ((posterior, weights, is_trusted),) = given
    flagged = np.zeros((10, 2), bool)
    flagged[2, 0] = flagged[5, 1] = True
    np.testing.assert_array_equal(is_trusted, ~flagged)
    if preset == "huang2023":
        assert (posterior == 1).all()
        assert weights is None
    else:
        np.testing.assert_array_equal(posterior, np.where(flagged, 0.25, 1))
        is_left_out = (weights == 0).flatten(1).any(1).numpy()
        assert np.flatnonzero(is_left_out).tolist() == [2, 5]


def test_an_image_that_broke_after_it_was_labelled_is_set_aside_and_the_run_goes_on(phantoms, tmp_path):
    studies = tmp_path / "studies"
    shutil.copytree(phantoms.images, studies)
    settings = phantoms.settings.model_copy(update={"student_steps": 5})
    workspace = open_workspace(studies, settings)
    for row in workspace.store.ledger.images():
        label_map = read_label_map(phantoms.labels / f"{row.id}.png").array
        workspace.store.save_label_map(row.id, label_map, tag="original", maker="test", affine=LPS_TO_RAS)
    (studies / "case3.png").write_bytes(b"")
    result = run_loop(workspace)
    assert len(result.labels_first) == len(result.labels_last) == len(result.final_scores) == 9
    assert workspace.store.ledger.quarantined() == [("case3", "case3.png: the file is empty")]


@pytest.mark.parametrize("preset", ["samcorrect", "huang2023"])
@pytest.mark.parametrize("n_images", [1, 5])
def test_few_images_are_no_fault(phantoms, tmp_path, preset, n_images):
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("protocol.yaml", *(f"case{n}.png" for n in range(n_images))):
        shutil.copy(phantoms.images / name, studies)
    settings = phantoms.settings.model_copy(update={"student_steps": 5, "preset": preset})
    workspace = open_workspace(studies, settings, cache_dir=phantoms.cache)
    result = run_loop(workspace)
    assert len(result.labels_last) == len(result.final_scores) == n_images
    assert all(score is None or 0 <= score <= 1 for score in result.final_scores.values())
    digests = [row.digest for row in workspace.store.ledger.models()]
    assert digests == [result.rounds[0]["student"]["digest"]]
    json_path, _ = write_report(workspace, result, tmp_path / "out")
    assert json.loads(json_path.read_text(encoding="utf-8"))["n_images"] == n_images


@pytest.mark.slow
def test_oblique_volumes_go_through_the_loop(phantoms, oblique_affine, tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    box = "[[0.15, 0.9], [0.1, 0.85], [0.25, 0.75]]"
    (studies / "protocol.yaml").write_text(
        f"structures: [{{name: node, index: 5, prompt: {{source: box, xyz: {box}}}}}]", encoding="utf-8"
    )
    rng = np.random.default_rng(2)
    x, y, z = np.mgrid[:40, :36, :4] + 0.5
    for number in range(8):
        at, radius = np.array([21, 17, 2]) + rng.uniform(-2, 2, 3) * [1, 1, 0.1], rng.uniform(7, 11)
        node = ((x - at[0]) / radius) ** 2 + ((y - at[1]) / radius) ** 2 + ((z - at[2]) / 1.6) ** 2 < 1
        voxels = (100 + 300 * node + rng.normal(0, 20, node.shape)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, oblique_affine), studies / f"volume{number}.nii.gz")
    settings = phantoms.settings.model_copy(update={"n_candidates": 1, "student_steps": 20})
    workspace = open_workspace(studies, settings)
    result = run_loop(workspace)
    assert len(result.rounds) == 1
    shares = []
    for image_id, row in result.labels_first.items():
        volume = workspace.store.read_image(image_id)
        on_disk = nib.load(workspace.store.label_path(row))
        assert on_disk.shape == volume.array.shape == (40, 36, 4)
        assert np.allclose(on_disk.affine, oblique_affine, atol=1e-5)
        label_map = np.asarray(on_disk.dataobj)
        assert set(np.unique(label_map)) == {0, 5}
        # The box spans the slices 1 and 2.
        assert not label_map[..., [0, 3]].any()
        # The nodes fill about a fifth of these slices.
        shares.append((volume.array[label_map == 5] > 250).mean())
    assert np.mean(shares) > 0.5
    assert all(0 <= score <= 1 for score in result.final_scores.values())


def kill_at(phantoms, state: Path, stage: str, count: int) -> None:
    settings = phantoms.settings.model_copy(update={"state": state}).model_dump_json()
    command = [sys.executable, "-c", textwrap.dedent(KILLED_RUN), str(phantoms.images), settings, stage, str(count)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL, process.stderr


def kill_command_after(phantoms, state: Path, stage: str, *, out: Path) -> None:
    """Kill `samcorrect loop` as soon as it says that a stage is done."""
    where = ["--studies", str(phantoms.images), "--state", str(state), "--out", str(out)]
    command = [sys.executable, "-m", "samcorrect.cli", "loop", *where, "--rounds", "1", *phantoms.options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith(stage):
                process.kill()
                break
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "".join(said)


def inodes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
