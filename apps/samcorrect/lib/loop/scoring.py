"""Stage 2: the quality of every label, without ground truth."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from samcorrect.lib.core.calibration import ExpectedDice, each_of_its_kind, expect_dice, nothing_expected
from samcorrect.lib.core.fusion import fuse_features, worst_structure
from samcorrect.lib.core.losses import cross_entropy_map
from samcorrect.lib.core.metrics import rounded
from samcorrect.lib.core.pseudo_label import mask_shapes
from samcorrect.lib.core.quality import (
    EVIDENCE,
    FEATURES,
    agreement,
    cohort_typicality,
    edge_contrast,
    label_features,
    log_area_ratio,
    median_and_spread,
    neighbour_dice,
    outline_ratio,
    peer_surface_dice,
    prompt_dice,
    slice_center,
    surface_tolerance_px,
)
from samcorrect.lib.core.reasons import MAX_REASONS, doubt_structure, explain
from samcorrect.lib.core.reweighting import huang_weights, posterior_good
from samcorrect.lib.loop.approvals import approved_pairs
from samcorrect.lib.loop.audited import AuditedScores, audited_cohort, write_audited
from samcorrect.lib.loop.cohort import Cohort, absent_structures, are_approved
from samcorrect.lib.loop.frame_candidates import CohortCandidates, FrameCandidates, read_candidates
from samcorrect.lib.loop.peer_context import PeerContext, drop_context, write_context
from samcorrect.lib.loop.peers import Peers, compare_with_peers, learn_peers
from samcorrect.lib.loop.students import Trained, predict_cohort, train_on
from samcorrect.lib.loop.workspace import Progress, Workspace, no_progress
from samcorrect.lib.store.schema import TAG_CORRECTED, LabelVersionRow, QualityRow
from samcorrect.lib.store.volumes import says_spacing

STAGE_SCORE = "scoring labels"
# Below this two folds of students learn nothing; the score then rests on the prompts alone and says so.
MIN_IMAGES_FOR_PEERS = 8
HUANG_DROPOUT = 0.2
# Measures of a form: log area, both coordinates of the centre in the slice, log outline ratio, log ratio of the area to
# the peer's and to that of SAM's mask when it is asked with the peer's box, and the centre along the slices.
# What each feature among all labels rests on; a bias that students have in size cancels out.
COHORT_PARTS = {"cohort_area": [0], "cohort_position": [1, 2, 6], "cohort_shape": [3]}
SIZE_PARTS = {"peer_area": [4], "asked_area": [5]}
N_FORMS = 7


@dataclass(frozen=True)
class Scores:
    """Scores of the labels of a cohort of n images and K structures.

    Attributes:
        structure_scores: (n, K) in [0, 1], nan where not defined.
        scores: (n,) the score of the worst structure.
        posterior: (n, K) posterior of the good population; 1 for approved labels.
        expected: Of each structure, over the images.
        features: Of each structure, name to (n,).
        peer_probs: (N, K + 1, side, side) out of fold, or None.
        trained: The preset's first student where it has one (huang2023).
        chosen: (n, K) the candidate of SAM to take now, see `peers.Peers`; None without peers.
        doubts: Of each structure, why its labels are doubtful as a whole, in words; "" where they are not.
        peers: The peers that judged, or None.
        forms: (n, K, N_FORMS) the measures of each label's form, or None.
        audited: What the machine's labels of the audit share score now that people have replaced them; None where there
            are none, or no scores that approvals calibrate.
    """

    structure_scores: np.ndarray
    scores: np.ndarray
    posterior: np.ndarray
    expected: list[ExpectedDice]
    features: list[dict[str, np.ndarray]]
    peer_probs: torch.Tensor | None
    trained: Trained | None = None
    chosen: np.ndarray | None = None
    doubts: tuple[str, ...] = ()
    peers: Peers | None = None
    forms: np.ndarray | None = None
    audited: AuditedScores | None = None

    def doubtful(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names of the structures whose labels are contradicted as a whole, among all `names`."""
        return tuple(name for name, told in zip(names, self.doubts, strict=True) if told)


def score_cohort(workspace: Workspace, cohort: Cohort, *, seed: int, progress: Progress = no_progress) -> Scores:
    """Score the labels of a cohort by the preset."""
    if workspace.settings.preset == "huang2023":
        return _score_by_loss(workspace, cohort, seed=seed, progress=progress)
    candidates = read_candidates(workspace, cohort, progress=progress)
    peers = None
    if len(cohort) >= MIN_IMAGES_FOR_PEERS:
        peers = learn_peers(workspace, cohort, candidates, seed=seed, progress=progress)
    columns, forms = measure_labels(cohort, candidates, peers, progress=progress)
    fused, features, audited = _fuse_with_audited(workspace, cohort, peers, columns, forms)
    expected = expect_structures(workspace, fused, features, cohort.labels, peers, audited)
    scores = finish_scores(cohort.config.names, cohort.labels, fused, expected, features, is_empty=are_empty(forms))
    scores = replace(scores, forms=forms, audited=audited)
    if peers is None:
        return scores
    return replace(scores, peers=peers, peer_probs=peers.probs, chosen=peers.chosen)


def _fuse_with_audited(
    workspace: Workspace, cohort: Cohort, peers: Peers | None, columns: dict[str, np.ndarray], forms: np.ndarray
) -> tuple[np.ndarray, list[dict[str, np.ndarray]], AuditedScores | None]:
    """Scores and features of the labels of a cohort, and of those that people saw of the audit share.

    These are fused with the others: a score says how a label compares with others by the students of today, and only
    the scores of one scoring can be compared.
    """
    audited = audited_cohort(workspace, cohort)
    if audited is not None:
        candidates, of_peers = read_candidates(workspace, audited), peers
        if peers is not None:
            of_peers = replace(peers, nearest=compare_with_peers(audited, candidates, peers.probs).nearest)
        more, more_forms = measure_labels(audited, candidates, of_peers)
        columns = {name: np.concatenate([of, more[name]]) for name, of in columns.items()}
        forms = np.concatenate([forms, more_forms])
    features, n = with_typicality(columns, forms), len(cohort)
    fused = fuse_structures(features, peers)
    of_cohort = [{name: values[:n] for name, values in of.items()} for of in features]
    if audited is None:
        return fused, of_cohort, None
    of_audited = [{name: values[n:] for name, values in of.items()} for of in features]
    return fused[:n], of_cohort, AuditedScores(audited.labels, fused[n:], of_audited)


def fuse_structures(features: list[dict[str, np.ndarray]], judges: Peers | PeerContext | None) -> np.ndarray:
    """(n, K) scores of the labels from their features; `judges` says who is believed, None without peers.

    Students are believed only where they know a structure, and SAM's prompts unless its confidence contradicts them.
    """
    fused = []
    for k, of in enumerate(features):
        anchors, scale = _believed(judges, k)
        fused.append(fuse_features(of, EVIDENCE, anchors=anchors, scale=scale).scores)
    return np.stack(fused, 1)


def _believed(judges: Peers | PeerContext | None, k: int) -> tuple[tuple[str, ...], str]:
    """Of a structure, the groups of features that are believed, and the one that the score has the scale of."""
    if judges is None or not judges.is_judge[k]:
        return ("prompt",) if judges is None or judges.is_believed[k] else (), "prompt_dice"
    return ("peer", "prompt") if judges.is_believed[k] else ("peer",), "peer_dice"


def expect_structures(
    workspace: Workspace,
    values: np.ndarray,
    features: list[dict[str, np.ndarray]],
    labels: Sequence[LabelVersionRow],
    judges: Peers | PeerContext | None,
    audited: AuditedScores | None = None,
) -> list[ExpectedDice]:
    """Of each structure, what (n, K) scores and the approvals until now say of the Dice of the n labels.

    Before there are approvals it is the Dice with who is believed, students or SAM's prompts. Of a label that a person
    approved or drew nothing is expected: nobody is to look at it again.
    A label that was corrected is calibrated by approvals of corrected labels alone, and one that was not by the others:
    students made the first agree with students, so that one score does not mean the same of both.
    Labels that people replaced count with the score in `audited`, the others with that in the ledger.
    """
    is_corrected = np.array([label.tag == TAG_CORRECTED for label in labels])
    is_approved, nothing = are_approved(labels), nothing_expected(len(labels))
    told = []
    for k, approved in enumerate(approved_pairs(workspace, audited and audited.of_labels())):
        reference_dice = features[k][_believed(judges, k)[1]]
        kinds = [
            expect_dice(values[:, k], reference_dice, approved.scores[of_kind], approved.dice[of_kind])
            for of_kind in (~approved.is_corrected, approved.is_corrected)
        ]
        told.append(each_of_its_kind(is_approved, each_of_its_kind(is_corrected, *kinds), nothing))
    return told


def measure_labels(
    cohort: Cohort,
    candidates: CohortCandidates,
    peers: Peers | None,
    *,
    progress: Progress = no_progress,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What each label says without the others: feature to (n, K) values in [0, 1] or nan, and (n, K, N_FORMS) forms."""
    shape = (len(cohort), cohort.n_structures)
    columns = {name: np.full(shape, np.nan) for name in FEATURES}
    forms = np.full((*shape, N_FORMS), np.nan)
    for number, found in enumerate(candidates):
        seen = peers.probs[cohort.spans[number]].argmax(1).numpy() if peers is not None else None
        for k in range(cohort.n_structures):
            mask = cohort.mask(number, k + 1)
            told, sizes = _features_alone(cohort, number, k, mask), [np.nan, np.nan]
            of_sam = [] if found is None else [(found[k].masks, found[k].confidence)]
            if peers is not None:
                peer = seen == k + 1
                told |= _features_of_peers(cohort, number, k, mask, peer, peers, found)
                sizes[0] = log_area_ratio(mask, peer)
                asked = None if peers.asked is None else peers.asked.masks(cohort.spans[number], k)
                if asked is not None:
                    taken = asked[0][0]
                    told["asked_dice"], sizes[1] = agreement(mask, taken), log_area_ratio(mask, taken)
                    of_sam.append(asked)
                elif peers.is_asked is not None and peers.is_asked[k] and not (mask.any() or peer.any()):
                    sizes[1] = 0.0  # nobody sees anything to ask about
            if of_sam:
                told["prompt_dice"] = prompt_dice(mask, *map(np.concatenate, zip(*of_sam, strict=True)))
            for name, value in told.items():
                columns[name][number, k] = value
            forms[number, k] = [*mask_shapes(mask), np.log(outline_ratio(mask)), *sizes, slice_center(mask)]
        progress(STAGE_SCORE, number + 1, len(cohort))
    return columns, forms


def are_empty(forms: np.ndarray) -> np.ndarray:
    """(n, K) bool: the labels that are empty, by the (n, K, N_FORMS) measures of their forms."""
    return np.isnan(forms[..., 0])


def with_typicality(columns: dict[str, np.ndarray], forms: np.ndarray) -> list[dict[str, np.ndarray]]:
    """All features of labels: for each structure, name to (n,) values in [0, 1] or nan.

    Args:
        columns: Feature to (n, K).
        forms: (n, K, N_FORMS) of all labels, among which each is more or less ordinary.
    """
    features = [{name: values[:, k] for name, values in columns.items()} for k in range(forms.shape[1])]
    for k, of in enumerate(features):
        of |= {name: cohort_typicality(forms[:, k, parts]) for name, parts in COHORT_PARTS.items()}
        of |= {name: _size_typicality(forms[:, k, parts], are_empty(forms[:, k])) for name, parts in SIZE_PARTS.items()}
    return features


def _size_typicality(ratios: np.ndarray, is_empty: np.ndarray) -> np.ndarray:
    """`cohort_typicality` of (n, 1) log ratios of areas: 1 where label and other are both empty, and these set no
    standard for the others.
    """
    agrees_on_nothing = is_empty & (ratios[:, 0] == 0)
    typicality = np.ones(len(ratios))
    typicality[~agrees_on_nothing] = cohort_typicality(ratios[~agrees_on_nothing])
    return typicality


def _features_alone(cohort: Cohort, number: int, k: int, mask: np.ndarray) -> dict[str, float]:
    """What a label, its image and SAM's own words say of it."""
    of_prompt = cohort.labels[number].info.get("structures", {}).get(cohort.config.names[k], {})
    told = {name: of_prompt.get(name) for name in ("prompt_agreement", "stability", "predicted_iou")}
    return {name: np.nan if value is None else value for name, value in told.items()} | {
        "edge_contrast": edge_contrast(mask, cohort.content(number)),
        "neighbour_dice": neighbour_dice(mask),
    }


def _features_of_peers(
    cohort: Cohort,
    number: int,
    k: int,
    mask: np.ndarray,
    peer: np.ndarray,
    peers: Peers,
    found: list[FrameCandidates] | None,
) -> dict[str, float]:
    """What the students say of a label, and the candidate of SAM that is nearest to them."""
    is_told = says_spacing(cohort.images[number].path)
    spacing_mm = np.linalg.norm(cohort.affines[number][:3, :3], axis=0) if is_told else None
    tolerance_px = surface_tolerance_px(spacing_mm, cohort.shapes[number][:2], cohort.config.side_px)
    probs = peers.probs[cohort.spans[number], k + 1].numpy()
    told = label_features(mask, probs, peer, tolerance_px=tolerance_px)
    if found is not None:
        choice = found[k].masks[peers.nearest[number, k]]
        told["choice_dice"] = agreement(mask, choice)
        told["choice_surface_dice"] = peer_surface_dice(mask, choice, tolerance_px=tolerance_px)
    return told


def write_scores(workspace: Workspace, cohort: Cohort, scores: Scores) -> None:
    """Enter the scores of a cohort's labels in the ledger, and keep its peers for the labels that change later."""
    drop_context(workspace)
    write_quality(workspace, cohort.labels, scores, np.arange(len(cohort)))
    if scores.audited is not None:
        write_audited(workspace, scores.audited)
    if scores.peers is not None:
        label_ids = np.array([label.id for label in cohort.labels])
        doubtful = scores.doubtful(cohort.config.names)
        peers, taught_ids = scores.peers, frozenset(label_ids.tolist())
        who = (peers.pairs, peers.is_judge, peers.is_believed, peers.is_asked)
        write_context(workspace, PeerContext(*who, taught_ids, label_ids, scores.forms, doubtful))


def write_quality(workspace: Workspace, labels: Sequence[LabelVersionRow], scores: Scores, numbers: np.ndarray) -> None:
    """Enter the scores of some of the labels; structure index 0 is the whole label."""
    now, protocol = time.time(), workspace.require_protocol()
    usual = [{name: median_and_spread(values) for name, values in of.items()} for of in scores.features]
    for number in numbers:
        label, rows, reasons = labels[number], [], []
        worst = worst_structure(scores.structure_scores[number])
        for k, (name, index) in enumerate(zip(protocol.names, protocol.indices, strict=True)):
            told = explain({f: v[number] for f, v in scores.features[k].items()}, usual[k], structure=name)
            if scores.doubts[k]:
                told = [*told[: MAX_REASONS - 1], scores.doubts[k]]
            reasons = [*told, *reasons] if k == worst else [*reasons, *told]
            rows.append(_quality_row(label.id, index, scores, number, k, told, now))
        whole = _quality_row(label.id, 0, scores, number, worst, reasons[:MAX_REASONS], now)
        workspace.store.ledger.set_quality(label.id, [whole, *rows])


def _score_by_loss(workspace: Workspace, cohort: Cohort, *, seed: int, progress: Progress) -> Scores:
    """Label quality of arXiv 2308.00883: the loss under a student trained with multi-level reweighting; score =
    exp(-loss).
    """
    everything = np.arange(len(cohort))
    trained = train_on(
        workspace,
        cohort,
        everything,
        name="reweighted student",
        seed=seed,
        dropout=HUANG_DROPOUT,
        weigh_batch=huang_weights,
        progress=progress,
    )
    probs = predict_cohort([trained], cohort)
    losses = [
        cross_entropy_map(probs[span].clamp(min=1e-7).log(), cohort.targets[span]).mean() for span in cohort.spans
    ]
    image_scores = np.array([float(torch.exp(-loss)) for loss in losses])
    fused = np.repeat(image_scores[:, None], cohort.n_structures, 1)
    expected = [nothing_expected(len(cohort))] * cohort.n_structures
    features: list[dict[str, np.ndarray]] = [{} for _ in range(cohort.n_structures)]
    scores = finish_scores(cohort.config.names, cohort.labels, fused, expected, features)
    return replace(scores, peer_probs=probs, trained=trained)


def finish_scores(
    names: Sequence[str],
    labels: Sequence[LabelVersionRow],
    fused: np.ndarray,
    expected: list[ExpectedDice],
    features: list[dict[str, np.ndarray]],
    *,
    is_empty: np.ndarray | None = None,
) -> Scores:
    """What follows from the (n, K) scores of structures: that of the whole label, the posterior and the doubts;
    `is_empty` where empty labels score by being rightly so (not by the loss of the whole image).
    """
    is_approved = are_approved(labels)
    empty = [None] * len(names) if is_empty is None else is_empty.T
    posterior = np.stack([posterior_good(column, is_empty=of) for column, of in zip(fused.T, empty, strict=True)], 1)
    posterior[is_approved] = 1.0
    with np.errstate(all="ignore"):
        scores = np.where(np.isnan(fused).all(1), np.nan, np.nanmin(np.where(np.isnan(fused), np.inf, fused), axis=1))
    is_missed = np.zeros(len(names), bool)
    if is_empty is not None:
        is_missed = is_empty.all(0) & ~(absent_structures(labels, names) | is_approved[:, None]).all(0)
    told = zip(names, features, is_missed, strict=True)
    doubts = tuple(doubt_structure(name, of, is_missed=bool(missed)) for name, of, missed in told)
    return Scores(fused, scores, posterior, expected, features, None, doubts=doubts)


def _quality_row(
    label_id: int, index: int, scores: Scores, number: int, k: int, reasons: list[str], now: float
) -> QualityRow:
    expected = scores.expected[k]
    return QualityRow(
        label_version_id=label_id,
        structure_index=index,
        score=rounded(scores.structure_scores[number, k]),
        expected_dice=rounded(expected.mean[number]),
        expected_dice_low=rounded(expected.low[number]),
        expected_dice_high=rounded(expected.high[number]),
        posterior_good=rounded(scores.posterior[number, k]),
        n_approved=int(expected.n_approved[number]),
        features={name: rounded(values[number]) for name, values in scores.features[k].items()},
        reasons=reasons,
        created_at=now,
    )
