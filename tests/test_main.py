import logging

import pytest
from monailabel.interfaces.app import MONAILabelApp

from samcorrect.lib.errors import SettingsError
from samcorrect.main import SamCorrect

PROTOCOL = """
structures:
  - {name: heart, index: 3, prompt: {source: box, xyxy: [0.2, 0.2, 0.8, 0.8]}}
  - {name: lung, index: 1, prompt: {source: box, xyxy: [0.1, 0.1, 0.9, 0.9]}}
"""


def test_the_host_finds_the_app_by_its_direct_base():
    assert SamCorrect.__bases__ == (MONAILabelApp,)


def test_without_a_protocol_only_prompts_and_stored_labels_are_served(make_studies, caplog):
    with caplog.at_level(logging.WARNING):
        info = SamCorrect("app", str(make_studies("a.png")), {"threads": "1"}).info()
    assert set(info["models"]) == {"sam_prompt", "sam_volume", "best_label"}
    assert "no protocol: only sam_prompt, sam_volume, best_label are served" in caplog.text
    assert info["labels"] == []


def test_labels_are_a_list_in_index_order(make_studies):
    studies = make_studies("a.png")
    (studies / "protocol.yaml").write_text(PROTOCOL, encoding="utf-8")
    info = SamCorrect("app", str(studies), {"threads": "1"}).info()
    assert info["labels"] == ["lung", "heart"]
    assert set(info["models"]) == {"sam", "sam_prompt", "sam_volume", "corrected_label", "best_label"}
    assert all(model["labels"] == ["lung", "heart"] for model in info["models"].values())
    assert set(info["trainers"]) == {"student"}
    assert set(info["strategies"]) == {"lowest_quality", "random"}
    assert set(info["scoring"]) == {"label_quality", "self_correction"}
    assert info["train_stats"] == {"student": {}}
    assert "config" not in info


@pytest.mark.parametrize(
    ("studies", "conf", "says"),
    [("http://pacs/dicom-web", {}, "--state DIR"), ("studies", {"models": "all"}, "models: no such setting")],
)
def test_bad_settings_are_named(studies, conf, says):
    with pytest.raises(SettingsError, match=says):
        SamCorrect("app", studies, conf)
