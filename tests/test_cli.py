"""The command line: what each command prints, its exit code, and what it says to input that cannot be used."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samcorrect.cli import build_parser, main
from samcorrect.lib.networks.registry import CATALOGUE
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.volumes import LPS_TO_RAS

COMMANDS = (
    "demo", "loop", "serve", "pseudo-label", "score", "correct", "train", "next", "evaluate", "doctor",
    "import-labels", "export", "models", "versions", "restore", "diff", "backup", "restore-backup", "audit",
)  # fmt: skip


@pytest.fixture
def studies(phantoms, tmp_path) -> Path:
    """Four phantoms with their protocol, to be written to."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("protocol.yaml", *(f"case{n}.png" for n in range(4))):
        shutil.copy(phantoms.images / name, folder)
    return folder


@pytest.fixture
def masks(phantoms, tmp_path) -> Path:
    """The true label maps of the four."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(4):
        shutil.copy(phantoms.labels / f"case{number}.png", folder)
    return folder


@pytest.fixture
def few_steps(phantoms) -> list[str]:
    """The options of the phantoms with a training that only shows that it runs."""
    options = list(phantoms.options)
    options[options.index("--student-steps") + 1] = "5"
    return options


@pytest.fixture
def labelled(run, studies, masks):
    """The same studies with the true label maps imported as pseudo-labels; no SAM is asked."""
    assert run("import-labels", masks, "--studies", studies)[:2] == (0, "4 label(s) imported\n")
    return studies


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    example = re.search(r"example:\n  (samcorrect .*)", told)
    assert example is not None
    words = shlex.split(example.group(1))
    assert words[:2] == ["samcorrect", command]
    build_parser().parse_args(words[1:])  # the example itself is accepted


def test_the_help_says_what_a_setting_may_be_and_is(capsys):
    with pytest.raises(SystemExit):
        main(["loop", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "which method the rounds follow (one of samcorrect, huang2023; default: samcorrect)" in told
    assert "seed of every random choice (default: 0)" in told
    assert "--served" not in told


def test_every_command_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\b", told, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    "words", [[], ["dance"], ["score", "--studies", "x", "--unknown"], ["loop", "--rounds", "two"]]
)
def test_a_wrong_command_line_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: samcorrect" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pseudo-label", "score", "correct", "train", "next", "loop", "export"])
def test_a_missing_studies_folder_is_named(run, command, tmp_path):
    out = ["--out", tmp_path / "out"] if command in ("loop", "export") else []
    code, _, said = run(command, "--studies", tmp_path / "nowhere", *out)
    assert code == 1
    assert said.startswith(f"samcorrect {command}: the studies folder {tmp_path}/nowhere does not exist")
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_folder_of_masks_is_named_as_one(run, studies, tmp_path):
    code, _, said = run("import-labels", tmp_path / "nowhere", "--studies", studies)
    assert (code, f"the folder of masks {tmp_path}/nowhere does not exist" in said) == (1, True)


def test_labels_are_made_before_they_are_evaluated(run, studies, phantoms):
    code, _, said = run("evaluate", "--studies", studies, "--ground-truth", phantoms.labels)
    assert (code, "no image has a label yet; run `samcorrect pseudo-label`" in said) == (1, True)


def test_an_empty_studies_folder_says_what_is_read(run, phantoms, tmp_path):
    (tmp_path / "empty").mkdir()
    protocol = phantoms.images / "protocol.yaml"
    for command in (["pseudo-label"], ["loop", "--out", tmp_path / "out"]):
        code, _, said = run(*command, "--studies", tmp_path / "empty", "--protocol", protocol)
        assert code == 1
        assert f"no images in {tmp_path}/empty; samcorrect reads .nii.gz, .nii, .nrrd, .png, .jpg, .jpeg" in said


def test_a_missing_protocol_says_where_to_put_one(run, studies):
    (studies / "protocol.yaml").unlink()
    code, _, said = run("pseudo-label", "--studies", studies)
    assert code == 1
    assert f"put a protocol.yaml into {studies}" in said
    code, _, said = run("pseudo-label", "--studies", studies, "--protocol", studies / "gone.yaml")
    assert code == 1
    assert f"no protocol file at {studies}/gone.yaml" in said


def test_all_faults_of_a_protocol_are_told_at_once(run, studies):
    (studies / "protocol.yaml").write_text(
        "structures:\n"
        "  - {name: a, index: 1, prompt: {source: box, xyxy: [0, 0, 1.5, 1]}}\n"
        "  - {name: b, index: 1, colour: red, prompt: {source: boxes_file, path: gone.csv}}\n"
    )
    code, _, said = run("score", "--studies", studies)
    assert code == 1
    for fault in ("inside [0, 1]", "the index 1 is given to more than one", "colour", "gone.csv does not exist"):
        assert fault in said


def test_settings_out_of_range_and_unknown_ones_are_told_together(run, studies, monkeypatch):
    monkeypatch.setenv("SAMCORRECT_COLOUR", "red")
    code, _, said = run("score", "--studies", studies, "--student-steps", "0", "--preset", "best", "--threads", "many")
    assert code == 1
    assert "4 fault(s) in the settings" in said
    for fault in ("colour: no such setting; known are protocol", "student_steps", "preset", "threads"):
        assert fault in said


def test_other_weights_are_refused_with_both_hashes(run, studies, tmp_path, monkeypatch):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"other")
    monkeypatch.setenv("SAMCORRECT_SAM_WEIGHTS", str(weights))
    code, _, said = run("pseudo-label", "--studies", studies)
    assert code == 1
    # printf other | sha256sum
    assert "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa" in said
    assert CATALOGUE["lite_medsam"].sha256 in said
    monkeypatch.setenv("SAMCORRECT_SAM_WEIGHTS", str(tmp_path / "gone.pth"))
    code, _, said = run("pseudo-label", "--studies", studies)
    assert code == 1
    assert f"no weights file of lite_medsam at {tmp_path}/gone.pth" in said


def test_test_images_need_ground_truth(run, phantoms, tmp_path):
    loop = ["loop", "--studies", phantoms.images, "--state", tmp_path / "state", "--out", tmp_path / "out"]
    test = ["--test-images", phantoms.test_images]
    truth = ["--test-ground-truth", phantoms.test_labels]
    for words in (test, truth):
        code, _, said = run(*loop, *words)
        assert (code, "--test-images and --test-ground-truth go together" in said) == (1, True)
    code, _, said = run(*loop, *test, *truth)
    assert (code, "--test-images needs --ground-truth too" in said) == (1, True)


def test_ground_truth_that_matches_nothing_is_told_before_the_work(run, phantoms, tmp_path):
    state = tmp_path / "state"
    loop = ["loop", "--studies", phantoms.images, "--state", state, "--out", tmp_path / "out"]
    code, _, said = run(*loop, "--ground-truth", phantoms.test_labels)
    assert code == 1
    assert "has the name of an image in" in said
    test = ["--test-images", phantoms.test_images, "--test-ground-truth", phantoms.labels]
    code, _, said = run(*loop, "--ground-truth", phantoms.labels, *test)
    assert code == 1
    assert f"no file in {phantoms.labels} has the name of an image in {phantoms.test_images}" in said
    code, _, said = run(*loop, "--ground-truth", tmp_path / "gone")
    assert (code, "the ground truth folder" in said) == (1, True)
    assert not (state / "labels").exists()


def test_labels_are_never_written_where_they_would_be_taken_for_images(run, labelled, phantoms):
    for command in ("loop", "export"):
        code, _, said = run(command, "--studies", labelled, "--out", labelled / "out")
        assert code == 1
        assert "lies in the studies folder" in said
    assert not (labelled / "out").exists()


@pytest.mark.slow
def test_bad_images_are_set_aside_and_the_others_are_processed(run, studies, few_steps, tmp_path):
    nifti = tmp_path / "good.nii.gz"
    values = np.random.default_rng(0).normal(100, 20, (96, 80, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, LPS_TO_RAS), nifti)
    (studies / "truncated.nii.gz").write_bytes(nifti.read_bytes()[:4000])
    values[3, 4] = np.nan
    nib.save(nib.Nifti1Image(values, LPS_TO_RAS), studies / "holes.nii.gz")
    (studies / "text.png").write_text("this is no picture")
    (studies / "empty.png").touch()
    (studies / "wrong;name.png").write_bytes((studies / "case0.png").read_bytes())
    out = tmp_path / "out"
    code, told, _ = run("loop", "--studies", studies, "--out", out, "--rounds", "1", *few_steps)
    assert code == 3
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["n_images"] == 4
    reasons = {fault["image"]: fault["reason"] for fault in report["quarantined"]}
    assert set(reasons) == {"truncated", "holes", "text", "empty", "wrong;name.png"}
    assert "truncated.nii.gz: cannot be read as nii.gz" in reasons["truncated"]
    assert "holes.nii.gz: 1 values are NaN or infinite" in reasons["holes"]
    assert "text.png: cannot be read as png" in reasons["text"]
    assert reasons["empty"] == "empty.png: the file is empty"
    assert "is not an image id" in reasons["wrong;name.png"]
    assert all(f"set aside: {image}: {reason}" in told for image, reason in reasons.items())
    store = LabelStore(*open_studies(studies, None))
    assert {image_id for image_id, _ in store.ledger.latest_labels()} == {f"case{n}" for n in range(4)}


def test_a_fault_in_a_process_of_its_own_is_one_line_and_exit_code_1(tmp_path):

    command = [sys.executable, "-m", "samcorrect.cli", "score", "--studies", str(tmp_path / "nowhere")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_imported_masks_are_scored_and_those_of_another_grid_refused(run, studies, masks, few_steps):
    Image.fromarray(np.zeros((96, 80), np.uint8)).save(masks / "case3.png")
    (masks / "stranger.png").write_bytes((masks / "case0.png").read_bytes())
    code, told, said = run("import-labels", masks, "--studies", studies)
    assert code == 3
    assert told.splitlines() == ["3 label(s) imported", "no image of this name: stranger.png"]
    assert "refused: case3.png: the label for case3 is not on its image's grid: it has shape (80, 96, 1)" in said
    code, told, _ = run("score", "--studies", studies, *few_steps)
    assert code == 0
    assert re.search(r"^n_scored +3$", told, re.MULTILINE)
    assert re.search(r"^has_peers +False$", told, re.MULTILINE)


def test_a_mask_that_was_imported_is_not_labelled_again(run, labelled, phantoms):
    code, told, _ = run("pseudo-label", "--studies", labelled, *phantoms.options)
    assert code == 0
    assert re.search(r"^n_kept +4$", told, re.MULTILINE)
    store = LabelStore(*open_studies(labelled, None))
    assert {row.maker for row in store.ledger.latest_labels().values()} == {"user:import"}


def test_scoring_without_labels_says_what_to_do_first(run, studies):
    for command in ("score", "correct", "train"):
        code, _, said = run(command, "--studies", studies)
        assert code == 1
        assert "no image has a label yet; run `samcorrect pseudo-label` or `samcorrect import-labels` first" in said


def test_the_stages_run_one_by_one(run, labelled, few_steps):
    code, told, _ = run("correct", "--studies", labelled, *few_steps)
    assert code == 0
    assert "n_flagged" in told
    code, told, _ = run("train", "--studies", labelled, *few_steps)
    assert code == 0
    status = re.search(r"^status +(promoted|refused)$", told, re.MULTILINE).group(1)
    assert "losses" not in told
    code, told, _ = run("models", "list", "--studies", labelled)
    assert code == 0
    assert re.search(rf"^ [0-9a-f]{{12}} +{status} +0 ", told, re.MULTILINE)


def test_next_gives_two_people_different_images_until_none_is_left(run, labelled):
    given = {}
    for holder in ("anna", "ben", "carl", "dora"):
        code, told, _ = run("next", "--studies", labelled, "--holder", holder)
        assert code == 0
        given[holder] = re.search(r"^image +(\S+)$", told, re.MULTILINE).group(1)
    assert sorted(given.values()) == [f"case{n}" for n in range(4)]
    assert run("next", "--studies", labelled, "--holder", "emil")[:2] == (
        0,
        "no image waits: all are approved or reserved\n",
    )
    code, _, said = run("next", "--studies", labelled, "--strategy", "best")
    assert code == 1
    assert "known are lowest_quality, random" in said


def test_evaluate_prints_dice_with_its_spread(run, labelled, masks, phantoms):
    code, told, _ = run("evaluate", "--studies", labelled, "--ground-truth", masks)
    assert code == 0
    assert re.search(r"^right blob +Dice 1\.000 \(SD 0\.000\)  n 4$", told, re.MULTILINE)
    assert re.search(r"^left blob +Dice 1\.000", told, re.MULTILINE)
    code, _, said = run("evaluate", "--studies", labelled, "--ground-truth", phantoms.test_labels)
    assert code == 1
    assert "no image with a label has ground truth" in said


@pytest.mark.parametrize("file_format", ["nifti", "nnunet"])
def test_export_writes_labels_and_a_manifest_and_never_into_a_folder_in_use(run, labelled, tmp_path, file_format):
    out = tmp_path / "exported"
    words = ["export", "--studies", labelled, "--out", out, "--format", file_format, "--states", "pseudo, approved"]
    code, told, _ = run(*words)
    assert code == 0
    assert told.startswith("4 label(s) exported")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert {record["maker"] for record in manifest["labels"]} == {"user:import"}
    label = np.asarray(nib.load(out / manifest["labels"][0]["label"]).dataobj)
    assert set(np.unique(label)) == ({0, 3, 7} if file_format == "nifti" else {0, 1, 2})
    code, _, said = run(*words)
    assert code == 1
    assert f"{out} is not an empty folder" in said


def test_the_doctor_finds_nothing_or_says_what_is_missing(run, studies, tmp_path, monkeypatch):
    code, told, _ = run("doctor", "--studies", studies)
    assert code == 0
    assert all(line.startswith("ok  ") for line in told.splitlines())
    monkeypatch.setenv("SAMCORRECT_SAM_WEIGHTS", str(tmp_path / "gone.pth"))
    code, told, _ = run("doctor", "--json")
    assert code == 1
    checks = {check["name"]: check for check in json.loads(told)}
    assert not checks["SAM weights"]["is_ok"]
    assert f"no weights file of lite_medsam at {tmp_path}/gone.pth" in checks["SAM weights"]["message"]
    assert checks["host"]["is_ok"]


def test_the_demo_without_sample_data_says_where_to_run_it(run, tmp_path):
    code, _, said = run("demo", "--sample-data", tmp_path, "--out", tmp_path / "out")
    assert code == 1
    assert "run the demo from the checkout of samcorrect, or give --sample-data" in said
    assert not (tmp_path / "out").exists()
