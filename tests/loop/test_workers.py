"""Pseudo-labels made by worker processes and on a Ray cluster: those of this process, whatever dies on the way."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from samcorrect.lib.errors import StoreError
from samcorrect.lib.loop import workers
from samcorrect.lib.loop.pseudo_label import STAGE_CANDIDATES, pseudo_label_store
from samcorrect.lib.loop.workers import ImageTask, count_workers
from samcorrect.lib.loop.workspace import Workspace, open_workspace
from samcorrect.lib.settings import Settings

ALL_TEN = {"n_labelled": 10, "n_kept": 0, "n_quarantined": 0}


@pytest.fixture(scope="module")
def serial_labels(phantoms, tmp_path_factory) -> dict[str, tuple[str, dict]]:
    """What this process alone makes of the phantoms."""
    settings = phantoms.settings.model_copy(update={"state": tmp_path_factory.mktemp("serial") / "state", "workers": 1})
    workspace = open_workspace(phantoms.images, settings, cache_dir=phantoms.cache)
    pseudo_label_store(workspace)
    return labels_of(workspace)


def labels_of(workspace: Workspace) -> dict[str, tuple[str, dict]]:
    labels = workspace.store.ledger.latest_labels()
    return {image_id: (row.content_sha256, row.info) for (image_id, tag), row in labels.items() if tag == "original"}


@pytest.fixture
def fresh_workspace(phantom_workspace, phantoms, new_state, tmp_path):
    """A function that opens a workspace that knows the embeddings of all images but two and no candidates."""

    def open_with(**settings: object) -> Workspace:
        cache = new_state(tmp_path / "state") / "cache"
        for path in sorted(cache.rglob("*.npy"))[:2]:
            path.unlink()
        return phantom_workspace(cache_dir=cache, **settings)

    return open_with


@pytest.mark.slow
def test_processes_make_the_labels_of_one_process_though_a_worker_is_killed(fresh_workspace, serial_labels):
    def kill_a_worker(stage: str, done: int, _total: int) -> None:
        if (stage, done) == (STAGE_CANDIDATES, 3):
            next(p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())).kill()

    workspace = fresh_workspace(workers=2)
    assert pseudo_label_store(workspace, progress=kill_a_worker) == ALL_TEN
    assert labels_of(workspace) == serial_labels
    assert len(list((workspace.cache_dir / "candidates").iterdir())) == 10


@pytest.mark.long
def test_a_ray_cluster_makes_the_labels_of_one_process(fresh_workspace, serial_labels, ray_address):
    workspace = fresh_workspace(engine="ray", ray_address=ray_address)
    assert pseudo_label_store(workspace) == ALL_TEN
    assert labels_of(workspace) == serial_labels
    assert len(list((workspace.cache_dir / "candidates").iterdir())) == 10
    assert list(workspace.store.state_dir.glob("workers-*")) == []


@pytest.mark.parametrize(
    ("given", "n_images", "expected"),
    [
        ({"workers": 3}, 100, 3),
        ({"workers": 3}, 2, 2),
        ({"workers": 3}, 0, 1),
        ({"threads": 1}, 100, 1),
        ({"threads": 2}, 100, 2),
        ({"threads": 2}, 19, 1),
    ],
)
def test_as_many_workers_as_asked_for_or_as_there_are_threads_and_images_for(given, n_images, expected, monkeypatch):
    plenty = psutil.virtual_memory()._replace(available=2**40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: plenty)
    assert count_workers(Settings(**given), n_images) == expected


def test_memory_for_one_more_worker_is_there_or_it_is_not_started(monkeypatch):
    memory = psutil.virtual_memory()._replace(available=int(4.9 * psutil.Process().memory_info().rss))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert count_workers(Settings(threads=8), 1000) == 1


def test_a_worker_says_what_it_lacks(phantom_workspace, tmp_path):
    workspace = phantom_workspace()
    job = workers._job(workspace, beacon=None)
    task = ImageTask("case0", "case0.png", tmp_path / "gone.png")
    assert workers._work(job, lambda models, _: models.require_protocol().digest, task) == job.protocol_digest
    faults = {
        "samcorrect is .* there and 0.0 here": {"version": "0.0"},
        "does not see .*nowhere; all machines": {"beacon": tmp_path / "nowhere" / "beacon"},
        "protocol.yaml was changed meanwhile": {"protocol_digest": "other"},
        "runs lite_medsam .* and this process lite_medsam .* as torch-fp64": {"sam": (*job.sam[:2], "torch-fp64")},
        "no protocol file at .*gone.yaml": {"protocol_path": tmp_path / "gone.yaml"},
    }
    for says, changes in faults.items():
        with pytest.raises(StoreError, match=f"a worker on .* cannot begin: .*{says}"):
            workers._work(replace(job, **changes), len, task)
    with pytest.raises(StoreError, match=r"does not see .*gone\.png; all machines"):
        workers._work(replace(job, beacon=Path(__file__)), len, task)
