"""`samcorrect models`: what it prints, what it refuses, and students that leave and come back."""

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from samcorrect.lib.networks.student import StudentConfig, build_network, load_student, predict_frames, student_bytes
from samcorrect.lib.store.volumes import read_image


@pytest.fixture
def models(run, phantoms, tmp_path):
    """A function that runs `samcorrect models ACTION ...` on two phantoms."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("protocol.yaml", "case0.png", "case1.png"):
        shutil.copy(phantoms.images / name, studies)

    def call(action: str, *words: object, state: str = "state"):
        return run("models", action, *words, "--studies", studies, "--state", tmp_path / state)

    return call


@pytest.fixture
def student_file(tmp_path):
    """A function that makes a student's file of a seed."""

    def make(seed: int, indices: tuple[int, int] = (7, 3)):
        config = StudentConfig(("right blob", "left blob"), indices, 32)
        path = tmp_path / f"student{seed}.pt"
        path.write_bytes(student_bytes(build_network(config, seed=seed), config))
        return path

    return make


def digest_in(told: str) -> str:
    return re.search(r"^digest +([0-9a-f]{64})$", told, re.MULTILINE).group(1)


def rows_of(told: str) -> dict[str, str]:
    """Short digest to the rest of its line in the list."""
    return dict(re.findall(r"^ ([0-9a-f]{12}) +(.*?) *$", told, re.MULTILINE))


def test_promote_and_rollback_change_what_is_used_and_the_log_names_who(models, run, student_file, tmp_path):
    code, told, _ = models("list")
    assert (code, told.splitlines()[0]) == (0, "no student was trained or imported yet: samcorrect train")
    first, second = (digest_in(models("import", student_file(seed))[1]) for seed in (1, 2))
    for digest in (first, second):
        told = models("promote", digest[:10], "--by", "Dr. Who")
        assert told == (0, f"the student {digest[:12]} is in use from now on\n", "")
    assert models("rollback", "--by", "anna") == (0, f"the student {first[:12]} is in use again\n", "")
    rows = rows_of(models("list")[1])
    assert re.match(r"promoted +anna .*imported from student1.pt$", rows[first[:12]])
    assert re.match(r"retired +Dr. Who ", rows[second[:12]])
    where = ["--studies", tmp_path / "studies", "--state", tmp_path / "state"]
    log = [json.loads(line) for line in run("audit", "export", *where)[1].splitlines()]
    told = [(row["actor"], row["details"]["digest"], row["details"]["reason"]) for row in log]
    assert told == [
        ("Dr. Who", first, "promoted by command"),
        ("Dr. Who", second, "promoted by command"),
        ("anna", first, f"rolled back from {second[:12]}"),
    ]
    assert run("audit", "verify", *where)[0] == 0


def test_a_digest_that_names_no_student_or_a_missing_name_is_refused(models, student_file, capsys):
    digest = digest_in(models("import", student_file(1))[1])
    code, _, said = models("promote", "0000ffff", "--by", "anna")
    assert (code, said) == (
        1, "samcorrect models: no model's digest begins with '0000ffff'; `samcorrect models list` shows all\n",
    )  # fmt: skip
    assert (
        "first 4 or more characters of its digest, as `samcorrect models list` shows it; got ''"
        in models("promote", "", "--by", "anna")[2]
    )
    assert models("promote", digest, "--by", " ")[::2] == (
        1,
        "samcorrect models: the name has 1 to 200 characters; got 0\n",
    )
    assert "no model is in use" in models("rollback", "--by", "anna")[2]
    for words in (["promote", digest], ["rollback"], ["import"], ["dance"]):
        with pytest.raises(SystemExit) as stop:
            models(*words)
        assert stop.value.code == 2
    assert "usage: samcorrect models" in capsys.readouterr().err


def test_models_are_imported_for_their_protocol_alone(models, student_file):
    code, told, _ = models("import", student_file(1), "--promote")
    assert code == 0
    assert re.search(r"^status +promoted$", told, re.MULTILINE)
    code, _, said = models("import", student_file(2, indices=(1, 2)))
    assert code == 1
    assert "student2.pt segments {'right blob': 1, 'left blob': 2}; the protocol asks for {'right blob': 7" in said
    assert len(rows_of(models("list")[1])) == 1


def test_a_bundle_leaves_one_store_and_gives_the_same_masks_in_another(models, student_file, tmp_path):
    digest = digest_in(models("import", student_file(1), "--promote")[1])
    out = tmp_path / "bundle"
    code, told, _ = models("export", "--out", out)
    assert (code, digest_in(told)) == (0, digest)
    code, _, said = models("export", "--out", out)
    assert (code, "bundle exists already; give another --out, or --overwrite" in said) == (1, True)
    assert models("export", digest[:8], "--out", out, "--overwrite")[0] == 0
    assert digest_in(models("import", out, "--promote", state="other")[1]) == digest
    here, there = (load_student(next((tmp_path / name / "models").glob("*.pt"))) for name in ("state", "other"))
    for name in ("case0.png", "case1.png"):
        array = read_image(tmp_path / "studies" / name).array
        masks = here.predict(array)
        assert len(np.unique(masks)) > 1
        np.testing.assert_array_equal(there.predict(array), masks)


@pytest.mark.slow
def test_an_onnx_file_says_what_it_segments_and_gives_the_same_masks(models, student_file, tmp_path):
    path, out = student_file(1), tmp_path / "out" / "student.onnx"
    digest = digest_in(models("import", path, "--promote")[1])
    code, told, _ = models("export", "--format", "onnx", "--out", out)
    assert (code, digest_in(told)) == (0, digest)
    model = onnx.load(out)
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "structures": '{"right blob": 7, "left blob": 3}', "indices": "[7, 3]", "in_one_piece": "[]", "side_px": "32",
        "window_hu": "null", "digest": digest,
    }  # fmt: skip
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    network = load_student(path).network
    for n_slices in (1, 3):
        frames = torch.rand(n_slices, 32, 32, generator=torch.Generator().manual_seed(n_slices))
        (logits,) = session.run(["logits"], {"frames": frames[:, None].numpy()})
        channels = predict_frames(network, frames).argmax(1).numpy()
        assert len(np.unique(channels)) > 1
        assert (logits.argmax(1) == channels).mean() >= 0.999
    assert "models are exported as bundle or onnx; got 'pb'" in models("export", "--format", "pb", "--out", out)[2]
    assert [path.name for path in out.parent.iterdir()] == ["student.onnx"]
