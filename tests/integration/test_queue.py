"""Annotators at one queue, over HTTP against a live server."""

import threading
import time
from pathlib import Path

import pytest
import requests
from PIL import Image

pytestmark = pytest.mark.slow

N_IMAGES = 200
LEASE_S = 4.0


@pytest.fixture(scope="module")
def tiny_studies(tmp_path_factory) -> Path:
    """200 pictures of 8 x 8, without a protocol."""
    studies = tmp_path_factory.mktemp("tiny")
    for number in range(N_IMAGES):
        Image.new("L", (8, 8), number).save(studies / f"case{number:03d}.png")
    return studies


def next_sample(url: str, client_id: str) -> str | None:
    reply = requests.post(f"{url}/activelearning/lowest_quality", json={"client_id": client_id}, timeout=60)
    reply.raise_for_status()
    return reply.json().get("id")


def test_two_annotators_work_through_the_queue_and_never_meet(own_server, tiny_studies, tmp_path):
    given: dict[str, list[str]] = {"ann": [], "bob": []}
    barrier = threading.Barrier(2)

    def work(url: str, client_id: str) -> None:
        barrier.wait()
        while (image_id := next_sample(url, client_id)) not in given[client_id] and image_id is not None:
            given[client_id].append(image_id)

    with own_server(tmp_path, tiny_studies, SAMCORRECT_STATE=str(tmp_path / "state")) as (url, _):
        threads = [threading.Thread(target=work, args=(url, client_id)) for client_id in given]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        # Each is given an image of her own again only when none is left that nobody holds.
        assert sorted(given["ann"] + given["bob"]) == [f"case{number:03d}" for number in range(N_IMAGES)]
        assert min(len(images) for images in given.values()) > 0
        assert next_sample(url, "carl") is None
        released = requests.post(f"{url}/samcorrect/release", json={"client_id": "ann"}, timeout=60).json()["released"]
        assert released == sorted(given["ann"])
        assert next_sample(url, "carl") == released[0]


@pytest.mark.long
def test_an_annotator_who_is_gone_gives_the_image_back_when_her_time_is_over(own_server, tiny_studies, tmp_path):
    settings = {"SAMCORRECT_STATE": str(tmp_path / "state"), "SAMCORRECT_LEASE_S": str(LEASE_S)}
    with own_server(tmp_path, tiny_studies, **settings) as (url, _):
        began = time.monotonic()
        assert next_sample(url, "ann") == "case000"
        assert next_sample(url, "bob") == "case001"
        assert time.monotonic() - began < LEASE_S, "this machine is too slow for the test"
        time.sleep(LEASE_S)
        assert next_sample(url, "carl") == "case000"
