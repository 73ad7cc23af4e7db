"""The promotion gate, with students that call every pixel the same, so that each Dice is known beforehand.

Images have 16 x 12 pixels. Against a label that is 7 all over, a student that says 7 has Dice 1, one that says 3 has
Dice 0 for both structures, and one that says background has 0 for 7 (3 is in neither, so it does not count).
"""

import hashlib
import json

import numpy as np
import pytest
import torch

from samcorrect.lib.core.selection import WHY_AUDIT, WHY_WORST
from samcorrect.lib.loop import promotion
from samcorrect.lib.loop.cohort import best_labels, load_cohort
from samcorrect.lib.loop.models import promote_model, roll_back_model
from samcorrect.lib.loop.promotion import decide, gate_dice, hold_out_cases, open_gate
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.students import Trained
from samcorrect.lib.loop.trainings import Curve
from samcorrect.lib.loop.workspace import open_workspace
from samcorrect.lib.networks.student import StudentConfig, build_network, load_student, student_bytes
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.volumes import LPS_TO_RAS, write_label_map

SHAPE = (16, 12, 1)
NAN = float("nan")
# Of an approved label: nobody learnt it.
NOBODY = np.zeros(0, np.int64)


def is_drawn(case: str) -> bool:
    """The gate holds out the lower half of the digests: those that begin with 0 to 7."""
    return hashlib.sha256(case.encode()).hexdigest()[0] in "01234567"


# Of 60 names those that are drawn, and those that are not.
NAMES = [f"p{number:02d}" for number in range(60)]
DRAWN = [name for name in NAMES if is_drawn(name)]
OTHERS = [name for name in NAMES if not is_drawn(name)]


@pytest.fixture
def open_store(make_studies, phantoms, tmp_path):
    """A function that opens a store of images, each with an original label that is 7 all over."""

    def open_with(*names: str):
        studies = make_studies(*(f"{name}.png" for name in names))
        settings = Settings(protocol=phantoms.images / "protocol.yaml", threads=1, student_side_px=32, student_steps=1)
        workspace = open_workspace(studies, settings.model_copy(update={"state": tmp_path / "state"}))
        for name in names:
            save(workspace, name, 7)
        return workspace

    return open_with


def save(workspace, image_id: str, index: int, tag: str = "original"):
    label_map = np.full(SHAPE, index, np.uint8)
    return workspace.store.save_label_map(image_id, label_map, tag=tag, maker="test", affine=LPS_TO_RAS)


def submit(workspace, image_id: str, index: int, why: str | None = WHY_AUDIT):
    """Let anna, to whom the image was served for a reason, submit a label of one index all over."""
    if why is not None:
        assert workspace.store.ledger.take_lease(image_id, "anna", now=1.0, lease_s=60, why=why)
    path = workspace.store.state_dir / "hers.nii.gz"
    write_label_map(path, np.full(SHAPE, index, np.uint8), LPS_TO_RAS)
    return workspace.store.submit_label(image_id, path, tag="final", user="anna")


def cohort_of(workspace):
    return load_cohort(workspace, best_labels(workspace))


def held_out(workspace) -> list[str]:
    cohort = cohort_of(workspace)
    return [row.id for row, out in zip(cohort.images, hold_out_cases(workspace, cohort), strict=True) if out]


def student_that_says(workspace, channel: int, strength: float = 10.0) -> Trained:
    """A finished training of a network with one answer: channel 0 is background, 1 is index 7, 2 is index 3."""
    config = StudentConfig(("right blob", "left blob"), (7, 3), 32)
    network = build_network(config, seed=0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.zero_()
            if name.endswith("bias") and len(parameter) == 3:
                parameter[channel] = strength
    content = student_bytes(network, config)
    relative = f"models/{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path = workspace.store.state_dir / relative
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    student = load_student(path)
    return Trained(student, relative, Curve([(1, 0.5)]))


def decide_now(workspace, trained: Trained, trusted: bool | None = True):
    """A decision where every structure of every label is trusted, or none, or where nothing is scored."""
    cohort = cohort_of(workspace)
    learnt = np.flatnonzero(~hold_out_cases(workspace, cohort))
    table = None if trusted is None else np.full((len(cohort), 2), trusted)
    return decide(workspace, trained, open_gate(workspace, cohort, table, learnt))


def test_every_second_case_of_the_audit_share_is_held_out_and_stays_so(open_store, tmp_path):
    workspace = open_store(*DRAWN[:5], *OTHERS[:3])
    assert held_out(workspace) == []
    for name in (*DRAWN[:3], *OTHERS[:3]):
        submit(workspace, name, 7)
    submit(workspace, DRAWN[3], 7, WHY_WORST)
    wanted = DRAWN[:3]
    assert held_out(workspace) == wanted
    ledger = workspace.store.ledger
    rejected = ledger.latest_label(wanted[0], "final")
    ledger.reject(wanted[0], rejected.id, reviewer="ben", reason="wrong side")
    assert held_out(workspace) == wanted
    again = open_workspace(tmp_path / "studies", workspace.settings)
    assert held_out(again) == wanted
    assert [row.image_id for row in ledger.audit_rows() if row.event == "image held out"] == wanted
    assert ledger.verify_audit().is_whole


def test_no_more_cases_are_held_out_than_are_needed(open_store, monkeypatch):
    monkeypatch.setattr(promotion, "MAX_HELD_OUT_CASES", 2)
    workspace = open_store(*DRAWN[:4])
    for name in (DRAWN[3], DRAWN[1], DRAWN[0]):
        submit(workspace, name, 7)
    assert held_out(workspace) == [DRAWN[1], DRAWN[3]]


def test_all_images_of_a_patient_are_on_one_side_also_those_that_come_later(open_store, make_studies):
    patients = [f"ward/{name}" for name in NAMES[:8]]
    case = next(patient for patient in patients if is_drawn(patient))
    workspace = open_store(*(f"{patient}/{side}" for patient in patients for side in ("left", "right")))
    submit(workspace, f"{case}/left", 7)
    assert held_out(workspace) == [f"{case}/left", f"{case}/right"]
    make_studies(f"{case}/third.png")
    workspace.store.rescan()
    save(workspace, f"{case}/third", 7)
    assert held_out(workspace) == [f"{case}/left", f"{case}/right", f"{case}/third"]


def test_two_patients_are_left_to_learn_from(open_store):
    patients = [patient for name in NAMES if is_drawn(patient := f"ward/{name}")][:4]
    workspace = open_store(*(f"{patient}/{side}" for patient in patients for side in ("left", "right")))
    for patient in patients:
        submit(workspace, f"{patient}/left", 7)
    first_two = [f"{patient}/{side}" for patient in patients[:2] for side in ("left", "right")]
    assert held_out(workspace) == sorted(first_two)


def test_what_was_held_out_stays_so_where_images_count_as_other_cases(open_store):
    drawn, other = (next(n for n in NAMES if is_drawn(n) is wanted) for wanted in (True, False))
    images = [f"{folder}/{name}" for folder in (drawn, other, "a", "b", "c") for name in ("left", "right")]
    workspace = open_store(*images)
    # As when the folders were too few to be patients.
    workspace.store.ledger.hold_out({f"{other}/left"})
    assert held_out(workspace) == [f"{other}/left"]


def test_folders_that_are_too_few_to_be_patients_are_not_held_out_whole(open_store):
    images = [f"batch{number % 2}/{name}" for number, name in enumerate(NAMES[:8])]
    drawn = next(image for image in images if is_drawn(image))
    workspace = open_store(*images)
    submit(workspace, drawn, 7)
    assert held_out(workspace) == [drawn]


def test_no_student_that_may_be_promoted_learns_from_what_is_held_out(open_store):
    workspace = open_store(*NAMES[:8], DRAWN[-1])
    submit(workspace, DRAWN[-1], 7)
    first = train_student(workspace)
    submit(workspace, DRAWN[-1], 3, why=None)
    assert train_student(workspace)["digest"] == first["digest"]
    for name in NAMES[:8]:
        save(workspace, name, 3)
    assert train_student(workspace)["digest"] != first["digest"]
    alone = workspace.with_settings(train_on="approved")
    with pytest.raises(ValueError, match="the promotion gate holds all of them out"):
        train_student(alone)


def test_ten_approved_labels_held_out_make_the_gate(open_store):
    workspace = open_store(*DRAWN[:10], *OTHERS[:3])
    for name in (*DRAWN[:9], *OTHERS[:3]):
        submit(workspace, name, 3)
    told = decide_now(workspace, student_that_says(workspace, 2))
    # Frozen are 12 approved labels of 3, each with Dice 1 for 3, and an original of 7 with Dice 0 for 7 and for 3.
    assert (told["is_provisional"], told["n_labels"], told["dice"]) == (True, 13, pytest.approx(12 / 14, abs=1e-6))
    submit(workspace, DRAWN[9], 3)
    told = decide_now(workspace, student_that_says(workspace, 2, 11.0))
    assert (told["is_provisional"], told["n_labels"], told["dice"], told["dice_before"]) == (False, 10, 1.0, 1.0)
    assert told["reason"] == "Dice 1.0000 on 10 approved labels held out of training, 1.0000 before"
    workspace.store.ledger.reject(
        DRAWN[0], workspace.store.ledger.latest_label(DRAWN[0], "final").id, reviewer="ben", reason="wrong"
    )
    assert decide_now(workspace, student_that_says(workspace, 2, 12.0))["is_provisional"]


def test_approvals_that_were_served_worst_first_or_imported_make_no_gate(open_store):
    workspace = open_store(*DRAWN[:11])
    for name in DRAWN[:11]:
        submit(workspace, name, 3, WHY_WORST)
    assert decide_now(workspace, student_that_says(workspace, 2))["is_provisional"]
    assert held_out(workspace) == []


def test_the_trusted_labels_of_the_first_decision_are_frozen(open_store):
    workspace = open_store("a", "b", "c")
    cohort = cohort_of(workspace)
    trusted = np.array([[True, True], [True, False], [False, False]])
    first = open_gate(workspace, cohort, trusted, NOBODY)
    assert [(label.image_id, indices) for label, indices in first.labels] == [("a", (3, 7)), ("b", (7,))]
    save(workspace, "a", 3, tag="corrected")
    later = open_gate(workspace, cohort_of(workspace), np.ones((3, 2), dtype=bool), NOBODY)
    assert [(label.id, indices) for label, indices in later.labels] == [(row.id, of) for row, of in first.labels]
    # Still 7 all over: Dice 1 for 7 of a and b; 3 is in neither label nor prediction.
    assert gate_dice(workspace, later, [student_that_says(workspace, 1).student]) == [1.0]
    workspace.store.ledger.reject("a", first.labels[0][0].id, reviewer="ben", reason="wrong")
    assert [label.image_id for label, _ in open_gate(workspace, cohort, trusted, NOBODY).labels] == ["b"]


def test_a_label_that_students_changed_is_never_what_they_are_judged_by(open_store):
    workspace = open_store("a", "b")
    save(workspace, "a", 3, tag="corrected")
    gate = open_gate(workspace, cohort_of(workspace), np.ones((2, 2), dtype=bool), NOBODY)
    assert [label.image_id for label, _ in gate.labels] == ["b"]


def test_an_image_that_is_gone_is_left_out(open_store, tmp_path):
    workspace = open_store("a", "b")
    save(workspace, "b", 3)
    gate = open_gate(workspace, cohort_of(workspace), np.ones((2, 2), dtype=bool), NOBODY)
    (tmp_path / "studies" / "b.png").write_bytes(b"no picture")
    assert gate_dice(workspace, gate, [student_that_says(workspace, 1).student]) == [1.0]
    assert [image_id for image_id, _ in workspace.store.ledger.quarantined()] == ["b"]


def test_an_image_that_is_another_one_by_now_is_left_out_and_keeps_its_place(open_store, tmp_path):
    workspace = open_store("a", "b")
    save(workspace, "b", 3)
    gate = open_gate(workspace, cohort_of(workspace), np.ones((2, 2), dtype=bool), NOBODY)
    images = tmp_path / "studies"
    (images / "b.png").write_bytes((images / "a.png").read_bytes())
    assert gate_dice(workspace, gate, [student_that_says(workspace, 1).student]) == [1.0]
    assert workspace.store.ledger.quarantined() == []


def test_labels_that_nobody_scored_are_used_and_not_frozen(open_store):
    workspace = open_store("a", "b")
    told = decide_now(workspace, student_that_says(workspace, 1), trusted=None)
    assert (told["status"], told["is_provisional"], told["n_labels"]) == ("promoted", True, 2)
    assert told["reason"] == "Dice 1.0000 on 2 labels that are not scored (provisional)"
    assert workspace.store.ledger.gate_labels(workspace.protocol.digest) == []


def test_a_worse_candidate_is_refused_and_keeps_its_figures(open_store):
    workspace = open_store("a", "b")
    good = decide_now(workspace, student_that_says(workspace, 1))
    worse = decide_now(workspace, student_that_says(workspace, 2))
    assert (worse["status"], worse["dice"], worse["dice_before"]) == ("refused", 0.0, 1.0)
    row = workspace.store.ledger.find_model(worse["digest"])
    assert {"digest": row.digest, **row.metrics} == json.loads(json.dumps(worse))
    assert "Dice 0.0000 on 2 trusted machine labels (provisional), 1.0000 before" in row.metrics["reason"]
    assert workspace.store.ledger.promoted_model().digest == good["digest"]


def test_who_learnt_what_people_corrected_is_not_judged_by_what_they_corrected(open_store):
    workspace = open_store("a", "b", "c")
    assert decide_now(workspace, student_that_says(workspace, 1))["status"] == "promoted"
    submit(workspace, "a", 3, WHY_WORST)
    deaf = decide_now(workspace, student_that_says(workspace, 1, 11.0))
    assert (deaf["status"], deaf["dice"], deaf["n_approved_learnt"]) == ("refused", 0.0, 1)
    told = decide_now(workspace, student_that_says(workspace, 2))
    assert (told["status"], told["is_provisional"], told["dice"], told["dice_before"]) == ("promoted", True, 1.0, 0.0)
    assert told["reason"] == "Dice 1.0000 on 1 approved labels that it learnt (provisional), 0.0000 before"
    # Who learnt no more of people is judged by the machine's labels again, of b and c: a's was replaced.
    again = decide_now(workspace, student_that_says(workspace, 2, 12.0))
    assert (again["status"], again["n_labels"], again["dice"], again["dice_before"]) == ("refused", 2, 0.0, 0.0)


def test_what_people_submit_while_a_run_is_at_work_does_not_change_what_it_is_judged_by(open_store):
    workspace = open_store("a", "b")
    cohort, trusted = cohort_of(workspace), np.ones((2, 2), dtype=bool)
    before = open_gate(workspace, cohort, trusted, NOBODY)
    submit(workspace, "a", 3)
    found = [
        [label.image_id for label, _ in gate.labels]
        for gate in (before, *(open_gate(workspace, of, trusted, NOBODY) for of in (cohort, cohort_of(workspace))))
    ]
    assert found == [["a", "b"], ["a", "b"], ["b"]]


def test_a_round_that_was_killed_after_its_decision_tells_it_again(open_store):
    workspace = open_store("a", "b")
    run, _ = workspace.store.ledger.open_run("digest", {}, {})
    submit(workspace, "a", 7, WHY_WORST)
    candidate, cohort = student_that_says(workspace, 1), cohort_of(workspace)
    gate = open_gate(workspace, cohort, np.ones((2, 2), dtype=bool), np.arange(2))
    first, again = (decide(workspace, candidate, gate, round_number=1, run_id=run.id) for _ in range(2))
    assert (first["status"], first["n_approved_learnt"]) == ("promoted", 1)
    assert again == first


def test_without_what_the_gate_holds_out_a_candidate_learnt_nothing_of_people(open_store):
    workspace = open_store(DRAWN[0], "a", "b")
    assert decide_now(workspace, student_that_says(workspace, 1))["status"] == "promoted"
    submit(workspace, DRAWN[0], 3)
    told = decide_now(workspace, student_that_says(workspace, 2))
    assert (told["status"], told["n_approved_learnt"], told["n_labels"]) == ("refused", 0, 2)


@pytest.mark.parametrize(("channel", "strength"), [(0, 10.0), (1, NAN)], ids=["all background", "weights are nan"])
def test_a_training_that_collapsed_is_refused(open_store, channel, strength):
    workspace = open_store("a", "b")
    told = decide_now(workspace, student_that_says(workspace, channel, strength))
    assert (told["status"], told["dice"]) == ("refused", 0.0)
    assert told["reason"].endswith("the training has collapsed or was too short")


def test_a_candidate_is_refused_where_there_is_nothing_to_compare_on(open_store):
    workspace = open_store("a", "b")
    told = decide_now(workspace, student_that_says(workspace, 1), trusted=False)
    assert (told["status"], told["dice"], told["n_labels"]) == ("refused", None, 0)
    assert "no Dice is defined on 0 trusted machine labels" in told["reason"]


@pytest.fixture
def provisional(open_store):
    """A store in which the gate left a student of 3 for one of 7, as machine labels say; both students' digests."""
    workspace = open_store(*DRAWN[:10], "a", "b")
    first = decide_now(workspace, student_that_says(workspace, 2), trusted=None)
    assert first["status"] == "refused"
    promote_model(workspace, first["digest"], by="carl")
    second = decide_now(workspace, student_that_says(workspace, 1), trusted=None)
    assert (second["status"], second["is_provisional"]) == ("promoted", True)
    return workspace, first["digest"], second["digest"]


@pytest.mark.parametrize("n_provisional", [1, 2])  # a run of two rounds puts two in use, which are equally wrong
def test_provisional_students_that_approved_labels_contradict_give_their_place_back(provisional, n_provisional):
    workspace, first, last = provisional
    ledger = workspace.store.ledger
    if n_provisional == 2:
        last = decide_now(workspace, student_that_says(workspace, 1, strength=9), trusted=None)["digest"]
        assert ledger.promoted_model().digest == last
    for name in DRAWN[:10]:
        submit(workspace, name, 3)
    candidate = decide_now(workspace, student_that_says(workspace, 0))
    # The candidate is compared with the first, which is in use again.
    assert (candidate["status"], candidate["dice_before"]) == ("refused", 1.0)
    assert ledger.promoted_model().digest == first
    row = ledger.find_model(last)
    assert (row.status, row.metrics["is_provisional"]) == ("refused", False)
    assert row.metrics["reason"].startswith("compared again: Dice 0.0000 on 10 approved labels")
    assert ledger.verify_audit().is_whole


def test_a_provisional_student_that_approved_labels_confirm_stays(provisional):
    workspace, _, second = provisional
    for name in DRAWN[:10]:
        submit(workspace, name, 7)
    ledger = workspace.store.ledger
    assert decide_now(workspace, student_that_says(workspace, 0))["dice_before"] == 1.0
    row = ledger.promoted_model()
    assert (row.digest, row.metrics["is_provisional"], row.metrics["dice"]) == (second, False, 1.0)
    assert row.metrics["reason"].startswith("compared again: Dice 1.0000 on 10 approved labels")
    assert ledger.verify_audit().is_whole


def test_what_a_person_promoted_stays_whatever_the_gate_says(provisional):
    workspace, first, second = provisional
    promote_model(workspace, first, by="carl")
    promote_model(workspace, second, by="carl")
    for name in DRAWN[:10]:
        submit(workspace, name, 3)
    told = decide_now(workspace, student_that_says(workspace, 0))
    assert (told["status"], workspace.store.ledger.promoted_model().digest) == ("refused", second)


def test_a_student_that_a_person_went_back_from_is_not_promoted_again_by_the_gate(open_store):
    workspace = open_store("a", "b")
    save(workspace, "b", 3)
    # Each is right for one of the two labels: 1 for its own, and 0 twice for the other.
    first, second = student_that_says(workspace, 2), student_that_says(workspace, 1)
    assert [decide_now(workspace, one)["status"] for one in (first, second)] == ["promoted", "promoted"]
    assert roll_back_model(workspace, by="carl").digest == first.student.digest
    told = decide_now(workspace, second)
    assert (told["status"], told["dice"]) == ("refused", pytest.approx(1 / 3, abs=1e-6))
    assert told["reason"].endswith("; carl went back from this student")
    assert promote_model(workspace, second.student.digest, by="carl").status == "promoted"
    assert decide_now(workspace, second)["status"] == "promoted"
