"""Students promoted, rolled back, brought in and written."""

import pytest

from samcorrect.lib.errors import ConflictError, RequestError, UnknownModelError, WeightsError
from samcorrect.lib.loop.models import export_model, import_model, promote_model, roll_back_model
from samcorrect.lib.networks.student import StudentConfig, build_network, load_student, student_bytes
from samcorrect.lib.store.schema import ModelRow


def student_file(path, *, seed: int = 5, names=("right blob", "left blob"), indices=(7, 3)):
    config = StudentConfig(names, indices, 32)
    path.write_bytes(student_bytes(build_network(config, seed=seed), config))
    return path


@pytest.fixture
def three(phantom_workspace, tmp_path):
    """A store with three imported students, none in use, and their digests."""
    workspace = phantom_workspace()
    paths = [student_file(tmp_path / f"{seed}.pt", seed=seed) for seed in range(3)]
    return workspace, [import_model(workspace, path, promote=False)["digest"] for path in paths]


def in_use(workspace) -> str | None:
    row = workspace.store.ledger.promoted_model()
    return None if row is None else row.digest


def test_a_student_trained_elsewhere_is_used_once_it_is_promoted(phantom_workspace, tmp_path):
    workspace = phantom_workspace()
    path = student_file(tmp_path / "elsewhere.pt")
    assert import_model(workspace, path, promote=False)["status"] == "candidate"
    assert workspace.student() is None
    told = import_model(workspace, path, promote=True, by="anna")
    path.unlink()
    assert told["status"] == "promoted"
    assert workspace.student().digest == told["digest"]
    assert len(workspace.store.ledger.models()) == 1
    event = list(workspace.store.ledger.audit_rows())[-1]
    assert (event.event, event.actor) == ("model promoted", "anna")


def test_a_student_of_another_protocol_and_other_files_are_refused(phantom_workspace, tmp_path):
    workspace = phantom_workspace()
    other = student_file(tmp_path / "other.pt", indices=(1, 2))
    with pytest.raises(WeightsError, match=r"other\.pt segments .*'right blob': 1.* the protocol asks for .*: 7"):
        import_model(workspace, other, promote=True)
    text = tmp_path / "text.pt"
    text.write_text("no weights")
    with pytest.raises(WeightsError, match="cannot be loaded as a student"):
        import_model(workspace, text, promote=True)
    with pytest.raises(WeightsError, match=r"no student at .*gone\.pt"):
        import_model(workspace, tmp_path / "gone.pt", promote=True)
    with pytest.raises(
        WeightsError, match=r"is no MONAI bundle: configs/metadata\.json and models/model\.pt are wanted"
    ):
        import_model(workspace, tmp_path, promote=True)
    assert workspace.store.ledger.models() == []


def test_rolling_back_goes_the_way_that_promotions_came(three):
    workspace, (a, b, c) = three
    for digest in (a, b, c):
        promote_model(workspace, digest[:8], by="anna")
    assert roll_back_model(workspace, by="ben").digest == b
    assert roll_back_model(workspace, by="ben").digest == a
    with pytest.raises(UnknownModelError, match=f"no model was in use before {a[:12]}"):
        roll_back_model(workspace, by="ben")
    assert in_use(workspace) == a
    ledger = workspace.store.ledger
    assert [row.status for row in ledger.models()] == ["promoted", "retired", "retired"]
    assert [row.metrics.get("left_by") for row in ledger.models()] == [None, "ben", "ben"]
    events = [(row.event, row.actor) for row in ledger.audit_rows()]
    assert events == [("model promoted", "anna")] * 3 + [("model promoted", "ben")] * 2
    assert ledger.verify_audit().is_whole


def test_students_that_a_second_run_brings_again_do_not_close_the_way_back(three):
    """The first rounds of a run of more rounds train the same two students once more."""
    workspace, (a, b, c) = three
    ledger = workspace.store.ledger
    promote_model(workspace, a, by="anna")
    for digest in (b, c, b, c):
        ledger.decide_model(ledger.find_model(digest).id, is_promoted=True, metrics={"reason": "by the gate"})

    assert [roll_back_model(workspace, by="ben").digest for _ in range(2)] == [b, a]
    with pytest.raises(UnknownModelError, match="no model was in use before"):
        roll_back_model(workspace, by="ben")
    assert ledger.verify_audit().is_whole


@pytest.mark.parametrize("fault", ["gone", "torn"])
def test_a_student_whose_file_is_lost_is_brought_back_by_its_bundle(three, tmp_path, fault):
    workspace, (a, _, _) = three
    promote_model(workspace, a, by="anna")
    export_model(workspace, tmp_path / "bundle", file_format="bundle")
    path = workspace.store.state_dir / workspace.store.ledger.find_model(a).path
    path = path.rename(path.with_name("trained.pt"))
    with workspace.store.ledger.session(writes=True) as session:
        session.get_one(ModelRow, workspace.store.ledger.find_model(a).id).path = "models/trained.pt"
    path.unlink() if fault == "gone" else path.write_bytes(path.read_bytes()[:-100])

    assert import_model(workspace, tmp_path / "bundle", promote=False) == {"digest": a, "status": "promoted"}

    assert load_student(path).digest == a


def test_after_a_rollback_the_next_promotion_leads_back_to_what_was_in_use(three):
    workspace, (a, b, c) = three
    for digest in (a, b):
        promote_model(workspace, digest, by="anna")
    roll_back_model(workspace, by="anna")
    promote_model(workspace, c, by="anna")
    assert roll_back_model(workspace, by="anna").digest == a


def test_a_promotion_by_hand_keeps_what_the_gate_said(three):
    workspace, (a, _, _) = three
    ledger = workspace.store.ledger
    ledger.decide_model(ledger.find_model(a).id, is_promoted=False, metrics={"dice": 0.4, "reason": "worse"})
    promote_model(workspace, a, by="  Dr.  Who ")
    metrics = ledger.find_model(a).metrics
    assert metrics == {"dice": 0.4, "reason": "worse", "promoted_by": "Dr. Who", "replaced": None}


def test_digests_and_names_that_say_too_little_or_too_much_are_refused(three):
    workspace, (a, _, _) = three
    ledger = workspace.store.ledger
    for end in ("1", "2"):
        ledger.add_model(ModelRow(digest="abcd" + end * 60, path="models/x.pt", status="candidate", created_at=1.0))
    with pytest.raises(RequestError, match="'abcd' fits 2 models, abcd1111, abcd2222; give more of the digest"):
        promote_model(workspace, "abcd", by="anna")
    with pytest.raises(UnknownModelError, match=r"no model's digest begins with 'ffff00001111'; .*models list"):
        promote_model(workspace, "ffff00001111", by="anna")
    with pytest.raises(RequestError, match=r"first 4 or more characters of its digest.*got 'abc'"):
        promote_model(workspace, "abc", by="anna")
    with pytest.raises(WeightsError, match=r"no student at .*x\.pt"):
        promote_model(workspace, "abcd1", by="anna")
    with pytest.raises(RequestError, match="the name has 1 to 200 characters; got 0"):
        promote_model(workspace, a, by="  ")
    assert in_use(workspace) is None
    promote_model(workspace, a.upper(), by="anna")
    with pytest.raises(ConflictError, match=f"{a[:12]} is in use already"):
        promote_model(workspace, a, by="anna")
    with pytest.raises(RequestError, match="control characters"):
        roll_back_model(workspace, by="an\x1bna")


def test_nothing_is_rolled_back_before_a_student_is_in_use(three):
    with pytest.raises(UnknownModelError, match="no model is in use"):
        roll_back_model(three[0], by="anna")


def test_an_export_replaces_only_an_earlier_export_and_only_when_told(three, tmp_path):
    workspace, (a, b, _) = three
    with pytest.raises(UnknownModelError, match="no model is in use yet"):
        export_model(workspace, tmp_path / "out", file_format="bundle")
    with pytest.raises(RequestError, match="models are exported as bundle or onnx; got 'pickle'"):
        export_model(workspace, tmp_path / "out", file_format="pickle")
    assert export_model(workspace, tmp_path / "out", file_format="bundle", prefix=a[:12])["digest"] == a
    (tmp_path / "out" / "mine.txt").write_text("of the first")
    with pytest.raises(RequestError, match="out exists already; give another --out, or --overwrite"):
        export_model(workspace, tmp_path / "out", file_format="bundle", prefix=b)
    export_model(workspace, tmp_path / "out", file_format="bundle", prefix=b, overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
    other = workspace.store.state_dir.parent / "holiday"
    other.mkdir()
    (other / "picture.png").touch()
    for file_format in ("bundle", "onnx"):
        with pytest.raises(RequestError, match="holiday is no earlier export"):
            export_model(workspace, other, file_format=file_format, prefix=b, overwrite=True)
    assert (other / "picture.png").exists()
    # Nothing that was half done is left behind.
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
