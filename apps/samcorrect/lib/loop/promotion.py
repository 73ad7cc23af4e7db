"""The promotion gate: whether a trained student takes the place of the one in use.

It judges by labels that people approved of the audit share, of cases that are held out of training. The split is in the
ledger: every second case, by a digest of its name, is held out from its first approval of the audit share on, with all
of its images, and stays so, until there are MAX_HELD_OUT_CASES. Every second, and no more than needed: a person's label
is worth most as a teacher, the gate needs ten, and about twenty approvals of the audit share give them. Calibration,
which trains nothing, uses all of them.

Before there are ten it judges by labels that were trusted before the first correction, frozen in the ledger, and what
it promotes is provisional: the first decision by approved labels looks at it again. Such labels of a machine cannot say
whether it is right to listen to people, who were asked because the machine errs: a candidate that learnt labels of
people which the student in use had not is judged by these, so that only one that did not learn them is refused.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from samcorrect.lib.core.metrics import dice, rounded
from samcorrect.lib.errors import ImageError, LabelError
from samcorrect.lib.loop.approvals import audit_finals
from samcorrect.lib.loop.cohort import Cohort, standing
from samcorrect.lib.loop.students import Trained, cases_of
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.student import Student
from samcorrect.lib.store.image_ids import log_name
from samcorrect.lib.store.records.models import LEFT_BY, PROMOTED_BY, REPLACED
from samcorrect.lib.store.schema import MODEL_CANDIDATE, TAG_CORRECTED, TAG_FINAL, LabelVersionRow, ModelRow

logger = logging.getLogger(__name__)

# With so many approved labels the gate judges by those.
MIN_APPROVED_FOR_GATE = 10
# Share of the cases with approvals of the audit share, and how many at most: twice what the gate needs, so that ten are
# left where some are rejected.
HELD_OUT_SHARE, MAX_HELD_OUT_CASES = 0.5, 20
# Few patients can all be drawn: one for each fold is left to learn from.
MIN_TAUGHT_CASES = 2
# Trusted labels that are frozen; a paired difference of mean Dice over more of them costs time and says no more.
MAX_FROZEN_IMAGES = 100
# Two trainings of one recipe differ by about this much; less is no reason to refuse.
GATE_TOLERANCE = 0.005
# Below this a training has collapsed or not begun to learn; no viewer should be offered its masks.
MIN_GATE_DICE = 0.1
ON_APPROVED = "approved labels held out of training"
ON_TRUSTED = "trusted machine labels (provisional)"
ON_UNSCORED = "labels that are not scored (provisional)"
ON_LEARNT = "approved labels that it learnt (provisional)"
# In the metrics of a model: how many approved labels it learnt.
N_LEARNT = "n_approved_learnt"
# What a decision leaves in the metrics of its model; those of earlier releases lack the number learnt.
DECISION = ("status", "dice", "dice_before", "n_labels", N_LEARNT, "is_provisional", "reason")


@dataclass(frozen=True)
class Gate:
    """What students are judged by.

    Attributes:
        labels: Label versions, and the structures of each that count.
        on: What they are, in words.
        is_provisional: They are a machine's, or the candidate learnt them.
        n_learnt: How many approved labels the candidate learnt.
    """

    labels: list[tuple[LabelVersionRow, tuple[int, ...]]]
    on: str
    is_provisional: bool
    n_learnt: int = 0


def hold_out_cases(workspace: Workspace, cohort: Cohort) -> np.ndarray:
    """(n,) bool: images of the cohort that nothing may learn from; cases that are new to the split are drawn first.

    A case is a subfolder or a patient; where there are too few of them to be patients, each image is one. What was held
    out once stays so, also where images count as other cases by now.
    """
    ledger = workspace.store.ledger
    rows = ledger.images()
    image_ids = [row.id for row in rows]
    case_of = dict(zip(image_ids, cases_of(image_ids, [row.case_id for row in rows]), strict=True))
    before = set(ledger.held_out_images())
    asked = [*sorted(before), *(final.image_id for final in audit_finals(workspace))]
    drawn = dict.fromkeys(case_of[i] for i in asked if i in case_of and _draw(case_of[i]) < HELD_OUT_SHARE)
    n_free = max(0, len(set(case_of.values())) - MIN_TAUGHT_CASES)
    cases = set(list(drawn)[: min(MAX_HELD_OUT_CASES, n_free)])
    held_out = before | {image_id for image_id, case in case_of.items() if case in cases}
    ledger.hold_out(held_out)
    return np.array([row.id in held_out for row in cohort.images], dtype=bool)


def open_gate(workspace: Workspace, cohort: Cohort, trusted: np.ndarray | None, learnt: np.ndarray) -> Gate:
    """What to judge by now: approved labels held out, else those that the candidate learnt beyond the student in use,
    else those frozen as trusted, which are frozen here at first.

    Args:
        workspace: With a protocol.
        cohort: Images with a label.
        trusted: (n, K) bool, structures of the cohort's labels that are trusted; None where none is scored. Corrected
            labels never count: they were made to agree with students.
        learnt: (L,) numbers of the images that the candidate learnt.
    """
    stands = standing(workspace, cohort)
    taught = stands & cohort.is_approved & np.isin(np.arange(len(cohort)), learnt)
    gate = partial(Gate, n_learnt=int(taught.sum()))
    approved = _approved_labels(workspace)
    if len(approved) >= MIN_APPROVED_FOR_GATE:
        indices = workspace.require_protocol().indices
        return gate([(label, indices) for label in approved], ON_APPROVED, is_provisional=False)
    every = np.repeat(stands[:, None], cohort.n_structures, 1)
    chosen = _usable_labels(cohort, every if trusted is None else trusted & every)
    if trusted is not None:
        pairs = [(label.id, index) for label, indices in chosen for index in indices]
        workspace.store.ledger.freeze_gate(workspace.require_protocol().digest, pairs)
    in_use = workspace.store.ledger.promoted_model()
    if in_use is not None and taught.sum() > in_use.metrics.get(N_LEARNT, 0):
        return gate(_usable_labels(cohort, every & taught[:, None]), ON_LEARNT, is_provisional=True)
    frozen = _frozen_labels(workspace, cohort)
    on = ON_UNSCORED if trusted is None and not frozen else ON_TRUSTED
    return gate(frozen or chosen, on, is_provisional=True)


def decide(
    workspace: Workspace, trained: Trained, gate: Gate, *, round_number: int = 0, run_id: int | None = None
) -> dict[str, Any]:
    """Compare a candidate with the student in use and promote or refuse it; both stay on the disk.

    Returns:
        `digest`, `status` (promoted or refused), `dice`, `dice_before`, `n_labels`, `n_approved_learnt`,
        `is_provisional`, `reason`, and how the training went (see `trainings.Curve`).
    """
    ledger, student = workspace.store.ledger, trained.student
    row = ledger.add_model(
        ModelRow(
            digest=student.digest,
            path=trained.path,
            status=MODEL_CANDIDATE,
            run_id=run_id,
            round=round_number,
            created_at=time.time(),
        )
    )
    if row.status != MODEL_CANDIDATE and (row.run_id, row.round) == (run_id, round_number) and run_id is not None:
        # A killed round goes on after its decision: the candidate is not compared with itself.
        kept = {key: row.metrics[key] for key in DECISION if key in row.metrics}
        return {"digest": row.digest, **kept, **asdict(trained.curve)}
    current = _in_use(workspace, student, gate)
    candidate, *others = gate_dice(workspace, gate, [student] if current is None else [student, current])
    before = others[0] if others else None
    left_by = row.metrics.get(LEFT_BY)
    fault = trained.curve.fault
    is_good = not fault and candidate >= MIN_GATE_DICE and (before is None or not candidate < before - GATE_TOLERANCE)
    is_promoted = bool(is_good) and left_by is None
    decision = {
        "status": "promoted" if is_promoted else "refused",
        "dice": rounded(candidate),
        "dice_before": None if before is None else rounded(before),
        "n_labels": len(gate.labels),
        N_LEARNT: gate.n_learnt,
        "is_provisional": gate.is_provisional,
        "reason": _reason(gate, candidate, before)
        + (f"; {left_by} went back from this student" if left_by else "")
        + (f"; the training has collapsed: {fault}" if fault else ""),
        **asdict(trained.curve),
    }
    ledger.decide_model(row.id, is_promoted=is_promoted, metrics=decision)
    return {"digest": student.digest, **decision}


def gate_dice(workspace: Workspace, gate: Gate, students: Sequence[Student]) -> list[float]:
    """The mean Dice of each student over the gate's structures, on their images' grids; nan where none is defined.

    An image that cannot be read any more is quarantined with its reason, and left out, as is one that is another now.
    """
    store = workspace.store
    values: list[list[float]] = []
    for label, indices in gate.labels:
        try:
            volume = store.read_image(label.image_id)
            label_map = store.read_label(label, volume)
        except ImageError as error:
            store.ledger.quarantine(label.image_id, str(error))
            logger.warning("image %s is quarantined: %s", log_name(label.image_id), type(error).__name__)
            continue
        except LabelError:  # of a file that was replaced since; the image may have a label of its own by now
            continue
        predictions = [student.predict(volume.array) for student in students]
        values += [[dice(label_map == index, p == index) for p in predictions] for index in indices]
    table = np.array(values, dtype=np.float64).reshape(-1, len(students))
    return [float(np.nanmean(column)) if np.isfinite(column).any() else float("nan") for column in table.T]


def _in_use(workspace: Workspace, candidate: Student, gate: Gate) -> Student | None:
    """The student that a candidate is compared with, or None; one that was promoted provisionally is judged first."""
    row = workspace.store.ledger.promoted_model()
    while row is not None and not gate.is_provisional and row.metrics.get("is_provisional"):
        row = _judge_again(workspace, row, gate)
    current = None if row is None else workspace.load_student(row)
    return current if current is not None and current.indices == candidate.indices else None


def _judge_again(workspace: Workspace, row: ModelRow, gate: Gate) -> ModelRow:
    """Compare a provisional student by approved labels with those before it; returns what is in use then.

    These are all back to the last one that is not provisional: a run may put one provisional student after another in
    use. What a person promoted stays, whatever the gate thinks of it, until a better candidate comes.
    """
    ledger, student = workspace.store.ledger, workspace.load_student(row)
    earlier = [] if PROMOTED_BY in row.metrics else _before(workspace, row)
    students = {of.digest: workspace.load_student(of) for of in earlier}
    earlier = [of for of in earlier if students[of.digest].indices == student.indices]
    value, *values = gate_dice(workspace, gate, [student, *(students[of.digest] for of in earlier)])
    before = max(values, default=None)
    reason = f"compared again: {_reason(gate, value, before)}"
    told = {"dice": rounded(value), "dice_before": None if before is None else rounded(before)}
    told |= {"n_labels": len(gate.labels), "is_provisional": False, "reason": reason}
    if before is None or not value < before - GATE_TOLERANCE:
        ledger.decide_model(row.id, is_promoted=True, metrics={**told, "status": "promoted"})
        return ledger.promoted_model()
    best = earlier[values.index(before)]
    ledger.promote_model(best.id, reason=f"{row.digest[:12]} was {reason}", is_return=True)
    ledger.decide_model(row.id, is_promoted=False, metrics={**told, "status": "refused"})
    return ledger.promoted_model()


def _before(workspace: Workspace, row: ModelRow) -> list[ModelRow]:
    """What was in use before a model, the latest first, up to the first that is not provisional."""
    found = [row]
    while (replaced := found[-1].metrics.get(REPLACED)) is not None and replaced not in {of.digest for of in found}:
        found.append(workspace.store.ledger.find_model(replaced))
        if not found[-1].metrics.get("is_provisional"):
            break
    return found[1:]


def _reason(gate: Gate, candidate: float, before: float | None) -> str:
    if np.isnan(candidate):
        return f"no Dice is defined on {len(gate.labels)} {gate.on}; approve labels, or promote it yourself"
    reason = f"Dice {candidate:.4f} on {len(gate.labels)} {gate.on}"
    if before is not None:
        reason += f", {before:.4f} before"
    if candidate < MIN_GATE_DICE:
        reason += f"; below {MIN_GATE_DICE}, the training has collapsed or was too short"
    return reason


def _approved_labels(workspace: Workspace) -> list[LabelVersionRow]:
    """The labels that stand of images which are held out and were served at random, in order of image."""
    ledger = workspace.store.ledger
    usable = ledger.held_out_images().intersection(ledger.image_ids())
    audited = sorted({final.image_id for final in audit_finals(workspace)} & usable)
    found = [ledger.latest_label(image_id, TAG_FINAL) for image_id in audited]
    return [label for label in found if label is not None]


def _frozen_labels(workspace: Workspace, cohort: Cohort) -> list[tuple[LabelVersionRow, tuple[int, ...]]]:
    """What is frozen for the protocol, without what was rejected since, images that cannot be used now, and what people
    replaced by labels of the cohort: those that they submit while a run is at work do not change its decisions.
    """
    ledger = workspace.store.ledger
    indices: dict[int, list[int]] = {}
    for version, index in ledger.gate_labels(workspace.require_protocol().digest):
        indices.setdefault(version, []).append(index)
    usable = set(ledger.image_ids())
    found = [(ledger.label_version(version), tuple(of)) for version, of in indices.items()]
    finals = {label.image_id: label.id for label in cohort.labels if label.tag == TAG_FINAL}
    return [
        (label, of)
        for label, of in found
        if not label.is_rejected and label.image_id in usable and finals.get(label.image_id, label.id) == label.id
    ]


def _usable_labels(cohort: Cohort, is_usable: np.ndarray) -> list[tuple[LabelVersionRow, tuple[int, ...]]]:
    """The chosen structures of labels that no student changed, of MAX_FROZEN_IMAGES images at most."""
    found = [
        (label, tuple(index for index, usable in zip(cohort.config.indices, of, strict=True) if usable))
        for label, of in zip(cohort.labels, is_usable, strict=True)
        if of.any() and label.tag != TAG_CORRECTED
    ]
    return sorted(found, key=lambda chosen: _draw(chosen[0].image_id))[:MAX_FROZEN_IMAGES]


def _draw(name: str) -> float:
    """A number in [0, 1) that a name alone decides, whatever the seed, so that a split outlives every setting."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
