"""`samcorrect models` about SAM models, and `doctor`, as a person meets them."""

import hashlib

import torch

from samcorrect.lib.networks.architectures import ARCHITECTURES


def test_a_sam_model_is_added_listed_verified_and_found_damaged(run, make_studies, tmp_path):
    studies = make_studies("a.png")
    file = tmp_path / "weights.pth"
    torch.save(ARCHITECTURES["lite_medsam"].build().state_dict(), file)
    where = ("--studies", studies)

    given = ("--architecture", "lite_medsam", "--weights", file, "--licence", "MIT")
    code, told, said = run("models", "add", "ours", *given, *where)
    assert (code, said) == (0, "")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in told

    code, told, _ = run("models", "list", *where, "--sam-model", "ours")
    assert code == 0
    lines = {line[2:].split()[0]: line for line in told.partition("SAM models:\n")[2].splitlines()}
    assert lines["ours"].startswith("* ours")
    assert lines["ours"].endswith("weights are here")
    assert lines["sam_vit_b"].endswith(f"samcorrect models add sam_vit_b --studies {studies}")

    code, told, _ = run("models", "verify", *where)
    assert code == 0
    assert [line[:4] for line in told.splitlines()] == ["ok  ", *["-   "] * 5, "ok  "]

    copy = studies / ".samcorrect" / "sam" / "ours.pth"
    copy.write_bytes(copy.read_bytes()[:-1])
    code, told, _ = run("models", "verify", *where)
    assert code == 1
    assert "FAIL ours" in told
    code, told, _ = run("doctor", *where, "--sam-model", "ours")
    assert code == 1
    assert "FAIL SAM weights" in told


def test_what_is_missing_is_said(run, make_studies):
    where = ("--studies", make_studies("a.png"))
    code, told, _ = run("doctor", *where, "--sam-model", "sam_vit_h")
    assert code == 1
    assert "samcorrect models add sam_vit_h --studies" in told
    assert "sam_vit_h_4b8939.pth" in told
    code, _, said = run("pseudo-label", *where, "--sam-runtime", "tensorrt")
    assert (code, "sam_runtime" in said) == (1, True)
