"""The report of a run: report.json as the stable interface, report.html as one file."""

import json
import re

import pytest

from samcorrect.lib.loop import outcome
from samcorrect.lib.loop.outcome import serve_command, write_report
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.store.schema import QualityRow


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.slow
def test_the_report_has_its_documented_keys(compared_run):
    text = (compared_run.out / "report.json").read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=refuse)
    for arm in ("sam_only", "sam_to_student", "huang2023", "samcorrect", "supervised"):
        assert {"dice_mean", "dice_ci95", "surface_dice_mean", "n"} <= report["arms"][arm].keys()
    measures = {"spearman", "auroc_dice_below_0.8", "auroc_dice_below_0.9"}
    assert measures | {"structures"} <= report["quality"].keys()
    assert set(report["quality"]["structures"]) == {"right blob", "left blob"}
    assert all(measures <= told.keys() for told in report["quality"]["structures"].values())
    assert {"n_flagged", "dice_before", "dice_after", "good_harmed_share"} <= report["correction"].keys()
    assert report["quarantined"] == []
    assert {"pseudo-label", "score", "correct", "retrain", "compare"} <= report["seconds"].keys()
    assert report["seed"] == 0
    assert {"samcorrect", "torch", "monai", "monailabel", "python"} <= report["versions"].keys()
    assert re.fullmatch(r"[0-9a-f]{64}", report["model_digest"])
    assert report["n_images"] == 10
    assert report["rounds"][0]["n_flagged"] == report["correction"]["n_flagged"]


@pytest.mark.slow
def test_the_page_loads_nothing(compared_run):
    page = (compared_run.out / "report.html").read_text(encoding="utf-8")
    assert "case0" in page
    assert "Fully supervised" in page
    assert not re.search(r"<(script|link|iframe|object|embed)\b", page)
    references = re.findall(r"""(?:src|href|srcset|data|action)\s*=\s*["']([^"']*)""", page)
    references += re.findall(r"url\(\s*['\"]?([^)'\"]*)", page)
    assert [r for r in references if not r.startswith(("data:", "#"))] == []
    addresses = set(re.findall(r"https?://[^\"'\s<>)]+", page))
    assert {a for a in addresses if not a.startswith("http://www.w3.org/")} == set()


def test_a_report_without_ground_truth_is_strict_json_too(labelled, tmp_path):
    workspace = labelled(shares_trainings=False, student_steps=5)
    workspace.store.ledger.quarantine("case9", "broken <b>by</b> the test")
    result = run_loop(workspace)
    workspace.store.ledger.quarantine("case9", "broken <b>by</b> the test")
    json_path, html_path = write_report(workspace, result, tmp_path / "out")
    report = json.loads(json_path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert (report["arms"], report["quality"]) == ({}, {})
    assert report["quarantined"] == [{"image": "case9", "reason": "broken <b>by</b> the test"}]
    assert report["settings"]["student_steps"] == 5
    page = html_path.read_text(encoding="utf-8")
    assert "broken &lt;b&gt;by&lt;/b&gt; the test" in page


def test_the_command_that_serves_can_be_pasted_into_a_shell(make_studies, phantoms, tmp_path):
    settings = phantoms.settings.model_copy(update={"state": tmp_path / "my state"})
    workspace = open_workspace(make_studies("a.png"), settings)
    assert serve_command(workspace).endswith(f"--state '{tmp_path}/my state'")


@pytest.mark.parametrize(("n_approved", "expected"), [(0, "[0.70, 0.95] (prior)"), (9, "[0.70, 0.95]")])
def test_a_picture_says_whether_its_expected_dice_is_a_prior(labelled, n_approved, expected):
    workspace = labelled(shares_trainings=False)
    label = workspace.store.ledger.best_label("case0")
    bounds = {"expected_dice": 0.8, "expected_dice_low": 0.7, "expected_dice_high": 0.95, "n_approved": n_approved}
    row = QualityRow(label_version_id=label.id, structure_index=0, score=0.5, created_at=1.0, **bounds)
    workspace.store.ledger.set_quality(label.id, [row])
    assert outcome._picture(workspace, label, 0.5, None).caption == f"expected Dice 0.80 {expected}"
