"""A live server encodes what it serves next before anybody clicks, and its end does not wait for the rest."""

import json
import time

import pytest
import requests

pytestmark = pytest.mark.slow

TIMEOUT_S = 120


def test_what_is_served_next_is_ready_at_the_first_click(own_server, phantoms, tmp_path):
    with own_server(tmp_path, SAMCORRECT_WARM_SLICES="1", SAMCORRECT_STATE=str(tmp_path / "state")) as (url, _):
        sample = requests.post(f"{url}/activelearning/lowest_quality", json={}, timeout=60).json()
        assert sample["id"] == "case0"
        # The one that was served, and the two that come next.
        wait_for_embeddings(tmp_path / "state", 3)
        prompt = {"roi": [12, 54, 17, 59, 0, 0], "slice": 0, "label": "disc"}
        reply = requests.post(
            f"{url}/infer/sam_prompt?image=case0&output=json", data={"params": json.dumps(prompt)}, timeout=60
        )
        reply.raise_for_status()
        assert reply.json()["label_names"] == {"disc": 1}
        assert n_embeddings(tmp_path / "state") == 3
        # Three more wait when the server is told to end.
        requests.post(f"{url}/activelearning/lowest_quality", json={}, timeout=60).raise_for_status()


def wait_for_embeddings(state, n_wanted):
    deadline_s = time.monotonic() + TIMEOUT_S
    while n_embeddings(state) < n_wanted:
        assert time.monotonic() < deadline_s, f"{n_embeddings(state)} slices were encoded"
        time.sleep(0.1)


def n_embeddings(state):
    return len(list((state / "cache" / "embeddings").rglob("*.npy")))
