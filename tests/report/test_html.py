"""The report as a reader's browser would take it: complete, self-contained, safe, and never "nan"."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from samcorrect.lib.errors import StoreError
from samcorrect.lib.report.html import render_report, summary_sentences
from samcorrect.lib.report.pictures import picture_of

NAN = float("nan")
EVIL = "<script>alert(1)</script>\"'&\x07"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.open_tags, self.text, self.ids = [], [], "", set()
        self.feed(html)
        assert not self.open_tags

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids.add(dict(attrs).get("id"))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open_tags:
            self.text = " ".join([self.text, *data.split()])

    @property
    def images(self) -> list[str]:
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]


def _arm(dice, *, is_prompted=False):
    structure = {"dice_mean": dice, "surface_dice_mean": NAN}
    return {
        "dice_mean": dice, "dice_sd": 0.05, "dice_ci95": [dice - 0.01, dice + 0.01], "surface_dice_mean": 0.7,
        "surface_dice_sd": None, "n": 12, "is_prompted": is_prompted, "structures": {"right lung": structure},
    }  # fmt: skip


def _report():
    return {
        "n_images": 24, "seed": 7, "model_digest": "79d8c9dc", "serve_command": "samcorrect serve --studies 'my data'",
        "arms": {"samcorrect": _arm(0.95), "sam_only": _arm(0.85, is_prompted=True)},
        "comparisons": {"samcorrect - sam_only": {"dice_difference_mean": 0.1, "ci95": [0.05, 0.15]}},
        "quality": {"spearman": 0.84, "auroc_dice_below_0.8": NAN, "auroc_dice_below_0.9": 0.9,
                    "structures": {"right lung": {"spearman": 0.5}}},
        "correction": {"n_flagged": 10, "n_corrected": 9, "n_chosen_again": 3, "dice_before": 0.787,
                       "dice_after": 0.921, "good_harmed_share": 0.008},
        "quarantined": [{"image": "bad.png", "reason": "bad.png: the file is empty"}],
        "seconds": {"generate": 75.2, "score": 3.0},
        "versions": {"torch": "2.5.1"}, "settings": {"rounds": 2, "device": None},
        "rounds": [{"round": 1, "n_flagged": 10, "n_corrected": 9, "mean_score": np.float32("nan")}],
    }  # fmt: skip


def _picture(image_id="case1", *, names=("label",), caption="differs from peers", score=0.4):
    array = np.random.default_rng(0).random((40, 30, 1)).astype(np.float32)
    label_map = np.zeros(array.shape, np.uint8)
    label_map[5:20, 5:20] = 1
    return picture_of(image_id, array, dict.fromkeys(names, label_map), caption=caption, score=score)


def _render(tmp_path, report, **parts):
    path = tmp_path / "report.html"
    empty = {"worst": [], "best": [], "corrections": [], "scores": {}, "training_curves": {}, "structure_names": {}}
    render_report(path, report, **{**empty, **parts})
    return path.read_text(encoding="utf-8")


def _full(tmp_path, **changes):
    parts = {
        "worst": [_picture(names=("label", "ground truth"))],
        "best": [_picture("case2", score=NAN)],
        "corrections": [_picture("case3", names=("before", "after"))],
        "scores": {"round 1": [0.1, NAN, 0.9], "round 2": np.array([0.5])},
        "training_curves": {"round 1": [(0, 1.0), (1, NAN), (2, 0.5)]},
        "structure_names": {1: "right lung"},
        "score_vs_dice": {"right lung": ([0.1, 0.9, NAN], [0.5, 0.95, 0.1])},
    }
    return _render(tmp_path, changes.pop("report", _report()), **{**parts, **changes})


def test_full_report_says_what_was_run_and_found(tmp_path):
    page = Page(_full(tmp_path))
    for text in (
        "SAM labelled 24 images by the protocol",
        "10 labels were flagged as doubtful; 9 of them were corrected.",
        "1 doubtful label keeps its mask: a person should see it first.",
        "1 image could not be used",
        "samcorrect serve --studies 'my data'",
        "0.950 [0.940, 0.960]",
        "samcorrect minus SAM only: +0.100 mean Dice, 95% interval +0.050 to +0.150, paired by image;",
        "Correction took mean Dice from 0.787 to 0.921; 0.8% of the good labels were harmed.",
        "bad.png: the file is empty",
        "1 min 15 s",
        "79d8c9dc",
        "2.5.1",
    ):
        assert text in page.text
    assert {"arms", "quality", "worst", "best", "corrections", "training", "quarantined", "seconds"} <= page.ids
    assert len(page.images) == 4 + 3
    assert 0 < page.text.index("0.850 [0.840, 0.860]") < page.text.index("0.950 [0.940, 0.960]")


@pytest.mark.parametrize(("steps", "is_told"), [(120, True), (1200, False), (None, False)])
def test_short_trainings_are_said_to_compare_no_methods(tmp_path, steps, is_told):
    report = _report()
    report["settings"]["student_steps"] = steps

    text = Page(_full(tmp_path, report=report)).text

    assert ("Students of 120 steps instead of 1200" in text) == is_told
    assert ("compare no methods" in text) == is_told


def test_every_image_is_a_data_uri_of_well_formed_svg_that_loads_nothing(tmp_path):
    html = _full(tmp_path)
    page = Page(html)
    for uri in page.images:
        svg = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,"), validate=True).decode()
        for element in ElementTree.fromstring(svg).iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/jpeg;base64,"))
    assert not re.search(r"https?://", html)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_without_ground_truth_nothing_speaks_of_it(tmp_path):
    report = {k: v for k, v in _report().items() if k not in ("arms", "comparisons", "quality")}
    report["correction"] = {"n_flagged": 10, "n_corrected": 10}
    page = Page(_full(tmp_path, report=report, worst=[_picture()], score_vs_dice=None))
    assert "arms" not in page.ids
    assert "Against the ground truth" not in page.text
    assert "Mean Dice" not in page.text
    assert "doubtful label keeps" not in page.text
    assert len(page.images) == 2 + 3


@pytest.mark.parametrize("report", [{}, {"arms": {}, "quality": None, "rounds": [], "quarantined": [], "seconds": {}}])
def test_empty_report_renders(tmp_path, report):
    page = Page(_render(tmp_path, report))
    assert "Nothing was run." in page.text
    assert page.images == []
    assert not {"arms", "quality", "worst", "quarantined", "seconds"} & page.ids


def test_an_arm_that_is_left_out_is_told_with_its_reason(tmp_path):
    report = {**_report(), "left_out": {"sam_only": "SAM cannot be prompted on 1 of 3 images"}}
    assert "SAM only is left out: SAM cannot be prompted on 1 of 3 images." in Page(_full(tmp_path, report=report)).text
    assert "left out" not in Page(_full(tmp_path, report={**_report(), "left_out": {}})).text


def test_missing_numbers_are_not_defined_and_never_nan(tmp_path):
    def hollow(value):
        if isinstance(value, dict):
            return {key: hollow(item) for key, item in value.items()}
        return [hollow(item) for item in value] if isinstance(value, list) else NAN

    reports = [_report(), hollow(_report()), {**_report(), "arms": {"samcorrect": {}, "sam_only": {"dice_mean": None}}}]
    for report in reports:
        parts = {"scores": {"r": [NAN]}, "training_curves": {"r": [(0, NAN)]}, "score_vs_dice": {"s": ([NAN], [NAN])}}
        text = Page(_full(tmp_path, report=report, **parts)).text
        assert not re.search(r"\b(nan|NaN|None|null|inf|NAN)\b", text)
        assert "not defined" in text


def test_hostile_names_are_shown_not_run(tmp_path):
    report = _report()
    report["quarantined"] = [{"image": EVIL, "reason": EVIL}]
    report["arms"]["samcorrect"]["structures"] = {EVIL: {"dice_mean": 0.5, "surface_dice_mean": 0.5}}
    report["quality"]["structures"] = {EVIL: {"spearman": 0.1}}
    report["settings"] = {EVIL: EVIL}
    report["serve_command"] = EVIL
    html = _full(
        tmp_path,
        report=report,
        worst=[_picture(EVIL, names=(EVIL,), caption=EVIL)],
        structure_names={1: EVIL},
        scores={EVIL: [0.5]},
        training_curves={EVIL: [(0, 1.0)]},
        score_vs_dice={EVIL: ([0.5], [0.5])},
    )
    page = Page(html)
    assert "<script" not in html
    assert page.text.count("<script>alert(1)</script>") >= 9
    for uri in page.images:
        svg = base64.b64decode(uri.partition(",")[2]).decode()
        ElementTree.fromstring(svg)
        assert "<script" not in svg


def test_file_name_that_is_no_unicode_still_renders(tmp_path):
    html = _render(tmp_path, {"quarantined": [{"image": "scan\udcff.png", "reason": "unreadable"}]})
    assert "scan?.png" in html


def test_interval_over_zero_is_not_called_a_difference(tmp_path):
    report = {"arms": {"samcorrect": _arm(0.9)}, "comparisons": {
        "samcorrect - huang2023": {"dice_difference_mean": -0.01, "ci95": [-0.02, 0.005]}}}  # fmt: skip
    text = Page(_render(tmp_path, report)).text
    assert "\N{MINUS SIGN}0.010 mean Dice" in text
    assert "includes 0, so no difference is shown" in text


def test_summary_counts_from_the_rounds_where_no_totals_are_given():
    assert summary_sentences({"rounds": [{"n_flagged": 9}, {"n_flagged": 1, "n_corrected": 1}]}) == [
        "1 label was flagged as doubtful; 1 of them was corrected."
    ]


def test_summary_says_where_another_student_is_in_use():
    assert summary_sentences({"model_digest": "a" * 64, "model_in_use": "b" * 64}) == [
        "Another student than that of the last round is in use: bbbbbbbbbbbb."
    ]
    assert summary_sentences({"model_digest": "a" * 64, "model_in_use": "a" * 64}) == []
    assert summary_sentences({"model_digest": "a" * 64, "model_in_use": None}) == []


def test_same_input_gives_the_same_file(tmp_path):
    assert _full(tmp_path) == _full(tmp_path)


def test_path_that_cannot_be_written_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write report\.html"):
        _render(tmp_path / "file", {})
