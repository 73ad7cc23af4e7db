"""The benchmarks of clicks and volumes, on phantoms whose slices are encoded already."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_perfect_way_of_clicking_and_one_that_never_learns(module):
    simulate = module("clicks").simulate
    truth = np.zeros((20, 20), bool)
    truth[5:15, 5:15] = True
    after, seconds = simulate(lambda clicks: truth, truth, [1, 3])
    # There is nothing to click on after the first.
    assert after == [1, 1]
    assert len(seconds) == 1
    half = truth & (np.arange(20) < 10)
    after, seconds = simulate(lambda clicks: half, truth, [1, 3])
    # 50 of 100: 2 x 50 / 150.
    assert after == [pytest.approx(2 / 3)] * 2
    assert len(seconds) == 3


def test_clicks_on_one_phantom_beat_points_given_straight_to_sam(module, phantoms, tmp_path, capsys):
    out = tmp_path / "clicks.json"
    folders = ["--images", str(phantoms.images), "--labels", str(phantoms.labels), "--cache", str(phantoms.cache)]
    assert module("clicks").main([*folders, "--n", "1", "--clicks", "1", "--json", str(out)]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    assert set(told["structures"]) == {"right blob", "left blob"}
    for ways in told["structures"].values():
        assert ways["n"] == 1
        assert ways["clicks"]["1"]["mean"] > ways["points straight to SAM"]["1"]["mean"] + 0.3
        assert ways["true box"]["box"]["mean"] > 0.8
    assert "| left blob (n = 1) | clicks | 1: " in capsys.readouterr().out


def test_a_volume_of_two_slices_is_measured(module, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    label = np.zeros((32, 32, 2), np.uint8)
    label[8:24, 8:16], label[8:24, 16:24] = 1, 2
    image = np.where(label > 0, 200, 20) + np.random.default_rng(0).normal(0, 5, label.shape)
    for folder, array in (("images", image.astype(np.float32)), ("labels", label)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / folder / "a.nii.gz")
    out = tmp_path / "volumes.json"
    folders = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    assert module("volumes").main([*folders, "--merged", "--cache", str(tmp_path / "cache"), "--json", str(out)]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    assert set(told) == {"merged", "value 1", "value 2"}
    assert told["merged"]["n"] == 1
    assert told["merged"]["slices"] == 2
    assert told["merged"]["one box"]["dice"]["mean"] > 0.85
    assert told["merged"]["true boxes"]["dice"]["mean"] > 0.85
    assert "| merged (n = 1) | one box | Dice " in capsys.readouterr().out


@pytest.mark.long
def test_an_encoder_is_timed_against_the_machine_and_its_memory_is_its_own(tmp_path):
    out = tmp_path / "encoder.json"
    few = ["--models", "lite_medsam", "--runtimes", "torch-fp32", "--repeats", "1", "--threads", "1"]
    command = [sys.executable, str(BENCHMARKS / "encoder.py"), *few, "--json", str(out)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    told = json.loads(out.read_text(encoding="utf-8"))["models"]["lite_medsam"]
    assert told["gflop"] == pytest.approx(75, abs=1)
    of_torch = told["runtimes"]["torch-fp32"]
    assert of_torch["times_faster"] == 1
    assert of_torch["over_floor"] > 0.5
    # torch alone takes a quarter of a GB, the weights 40 MB.
    assert 0.25 < of_torch["peak_rss_gb"] < 8
    assert "torch-fp32 " in made.stdout


@pytest.mark.slow
def test_training_steps_are_timed_alone_and_beside_other_work(tmp_path):
    out = tmp_path / "step.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "training_step.py"),
        "--steps",
        "3",
        "--repeats",
        "1",
        "--json",
        str(out),
    ]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    told = json.loads(out.read_text(encoding="utf-8"))
    assert list(told) == ["one thread", "all threads", "two side by side, one thread each"]
    assert all(0 < value < 60 for of in told.values() for value in of.values())
    assert [len(of) for of in told.values()] == [2, 2, 2]
