from pathlib import Path

import pytest

from samcorrect.lib.activelearning.strategies import LowestQuality, Random, display_name
from samcorrect.lib.loop.queue import NextImage
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings


def chosen(score):
    return NextImage("ward/a", score, None, None, None, None, [], "why")


@pytest.mark.parametrize(
    ("name", "score", "shown"),
    [
        ("a.png", None, "a.png"),
        ("a.png", 0.414, "a (score 0.41).png"),
        ("a.b.NII.GZ", 1.0, "a.b (score 1.00).NII.GZ"),
    ],
)
def test_the_name_shows_the_score_and_keeps_the_suffix(name, score, shown):
    assert display_name(Path("/studies/ward") / name, chosen(score)) == shown


@pytest.mark.parametrize("strategy", [LowestQuality, Random])
def test_two_clients_never_get_the_same_image(make_studies, strategy):
    workspace = open_workspace(make_studies("a.png", "b.png"), Settings(threads=1, warm_slices=0))
    serve = strategy(workspace)
    first, second = serve({"client_id": "me"}, None), serve({"client_id": "you"}, None)
    assert {first["id"], second["id"]} == {"a", "b"}
    assert first["checksum"].startswith("SHA256:")
    assert serve({"client_id": "third"}, None) is None
