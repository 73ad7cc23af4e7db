import time
from pathlib import Path

import pytest

from samcorrect.lib.activelearning.strategies import LowestQuality, Random, display_name
from samcorrect.lib.errors import ImageError
from samcorrect.lib.loop.queue import NextImage
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.records.images import REASON_GONE


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


@pytest.mark.parametrize("strategy", [LowestQuality, Random])
def test_an_image_that_cannot_be_read_is_set_aside_and_the_next_is_served(make_studies, monkeypatch, strategy):
    workspace = open_workspace(make_studies("a.png", "b.png", "c.png"), Settings(threads=1, warm_slices=0))
    store, file_of = workspace.store, workspace.store.studies.file

    def file(path: str) -> Path:
        if path == "a.png":
            raise ImageError("the slices are sheared")
        return file_of(path)

    monkeypatch.setattr(store.studies, "file", file)
    (store.studies.folder / "b.png").unlink()
    serve = strategy(workspace)
    # The second call has to try whatever the first did not meet.
    assert serve({"client_id": "me"}, None)["id"] == "c"
    assert serve({"client_id": "you"}, None) is None
    assert dict(store.ledger.quarantined()) == {"a": "the slices are sheared", "b": REASON_GONE}
    assert store.ledger.held_by("me", now=time.time()) == ["c"]
    assert store.ledger.held_by("you", now=time.time()) == []
