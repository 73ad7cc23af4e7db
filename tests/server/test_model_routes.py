"""Students over HTTP."""

import time

import pytest

from samcorrect.lib.networks.student import StudentConfig, build_network, student_bytes
from samcorrect.lib.protocol import load_protocol
from samcorrect.lib.store.schema import ModelRow


@pytest.fixture
def digests(samcorrect_app, phantoms) -> list[str]:
    """Digests of two students, none in use, of the protocol of the phantoms, and of one whose file is gone."""
    workspace = samcorrect_app.workspace
    workspace.protocol = load_protocol(phantoms.images / "protocol.yaml")
    folder = workspace.store.state_dir / "models"
    folder.mkdir()
    for seed in range(2):
        config = StudentConfig(("right blob", "left blob"), (7, 3), 32)
        (folder / f"{seed}.pt").write_bytes(student_bytes(build_network(config, seed=seed), config))
    known = [workspace.load_student(ModelRow(digest=str(n), path=f"models/{n}.pt")).digest for n in range(2)]
    for number, digest in enumerate([*known, "0" * 64]):
        row = ModelRow(digest=digest, path=f"models/{number}.pt", status="candidate", created_at=time.time())
        workspace.store.ledger.add_model(row)
    return [*known, "0" * 64]


def test_students_are_promoted_and_rolled_back_under_the_name_of_the_sender(client, samcorrect_app, digests):
    for digest in digests[:2]:
        told = client.post("/samcorrect/models/promote", json={"digest": digest[:8], "user": "ann"}).json()
        assert (told["digest"], told["status"], told["promoted_by"]) == (digest, "promoted", "ann")
    assert client.post("/samcorrect/models/rollback", json={"user": "ben"}).json()["digest"] == digests[0]
    listed = client.get("/samcorrect/models").json()["models"]
    assert [(row["status"], row["promoted_by"], row["dice"]) for row in listed] == [
        ("promoted", "ben", None),
        ("retired", "ann", None),
        ("candidate", None, None),
    ]
    ledger = samcorrect_app.workspace.store.ledger
    assert [row.actor for row in ledger.audit_rows() if row.event == "model promoted"] == ["ann", "ann", "ben"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"digest": "ab"}, 400), ({"digest": 1}, 400), ({"digest": "zzzz"}, 404), ({"digest": "0000"}, 503)],
)
def test_what_names_no_usable_student_is_refused(client, digests, body, status):
    assert client.post("/samcorrect/models/promote", json=body).status_code == status


def test_there_is_nothing_to_go_back_to_at_first(client, digests):
    assert client.post("/samcorrect/models/rollback").status_code == 404
    client.post("/samcorrect/models/promote", json={"digest": digests[0]})
    assert client.post("/samcorrect/models/promote", json={"digest": digests[0]}).status_code == 409
    assert client.post("/samcorrect/models/rollback", json={}).status_code == 404
