"""What a scoring pass leaves behind, so that labels which change later are judged by the same peers at once."""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from samcorrect.lib.errors import StoreError, WeightsError
from samcorrect.lib.loop.asked_again import ask_cohort
from samcorrect.lib.loop.cohort import Cohort
from samcorrect.lib.loop.frame_candidates import CohortCandidates
from samcorrect.lib.loop.peers import Peers, compare_with_peers
from samcorrect.lib.loop.students import FoldStudent, Pair, empty_probs
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.student import load_student
from samcorrect.lib.store.files import write_bytes_atomically
from samcorrect.lib.store.schema import ImageRow

logger = logging.getLogger(__name__)

CONTEXT_NAME = "peers.npz"
# Raised whenever features or the file change.
CONTEXT_FORMAT = 10
# Settings that change what peers learn or how their words are weighed.
KEY_SETTINGS = (
    "preset",
    "seed",
    "n_candidates",
    "modules",
    "student_batch_size",
    "student_side_px",
    "student_learning_rate",
    "student_dims",
    "student_early_stop",
)


@dataclass(frozen=True)
class PeerContext:
    """The peers of a scoring pass over n labels of K structures.

    Attributes:
        pairs: Their files and what each learnt.
        is_judge, is_believed, is_asked: (K,) bool, as in `Peers`.
        taught_ids: The label versions that there were when the pairs were taught.
        label_ids: (n,) the label versions that were scored.
        forms: (n, K, N_FORMS) of each the measures of its form, as in `Scores`.
        doubtful: The structures whose labels are contradicted as a whole.
    """

    pairs: tuple[Pair, ...]
    is_judge: np.ndarray
    is_believed: np.ndarray
    is_asked: np.ndarray
    taught_ids: frozenset[int]
    label_ids: np.ndarray
    forms: np.ndarray
    doubtful: tuple[str, ...]


class ContextPeers:
    """The students of a context, loaded."""

    def __init__(self, workspace: Workspace, context: PeerContext):
        """Load them. Raises WeightsError where a file is missing or torn."""
        state_dir = workspace.store.state_dir
        self._pairs = [[(of, load_student(state_dir / of.path)) for of in pair] for pair in context.pairs]
        self._workspace, self._is_asked = workspace, context.is_asked
        self._said = {"is_judge": context.is_judge, "is_believed": context.is_believed, "is_asked": context.is_asked}

    def judge(self, cohort: Cohort, candidates: CohortCandidates) -> Peers:
        """What they say of the images of a cohort, in each pair the students that did not learn its case."""
        probs = empty_probs(cohort)
        for row, span in zip(cohort.images, cohort.spans, strict=True):
            probs[span] = self._probs(row, cohort.frames[span])
        asked = ask_cohort(self._workspace, cohort, probs, self._is_asked)
        return replace(compare_with_peers(cohort, candidates, probs), **self._said, asked=asked)

    def _probs(self, row: ImageRow, frames: torch.Tensor) -> torch.Tensor:
        """(D, K + 1, side, side): the mean over the pairs, and over both students where neither learnt the case."""
        of_pairs = []
        for pair in self._pairs:
            judges = [student for of, student in pair if not has_learnt(of, row)]
            # An image that was given to another case since: at least the one that did not learn the image itself.
            judges = judges or [student for of, student in pair if row.id not in of.image_ids]
            of_pairs.append(torch.stack([student.predict_frames(frames) for student in judges]).mean(0))
        return torch.stack(of_pairs).mean(0)


def has_learnt(student: FoldStudent, row: ImageRow) -> bool:
    """Whether a student learnt an image, or another image of its case."""
    return row.id in student.image_ids or row.case_id in student.case_ids


def write_context(workspace: Workspace, context: PeerContext) -> None:
    """Keep a context; where the disk refuses, the next scoring is a full one, and the log says so."""
    told = {
        "key": context_key(workspace),
        "pairs": [[asdict(student) for student in pair] for pair in context.pairs],
        "doubtful": context.doubtful,
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        told=np.array(json.dumps(told)),
        is_judge=context.is_judge,
        is_believed=context.is_believed,
        is_asked=context.is_asked,
        taught_ids=np.array(sorted(context.taught_ids), dtype=np.int64),
        label_ids=context.label_ids,
        forms=context.forms,
    )
    try:
        write_bytes_atomically(_path(workspace), buffer.getvalue())
    except StoreError as error:
        logger.warning("the next scoring teaches peers anew: %s", error)


def drop_context(workspace: Workspace) -> None:
    """Forget the context, before scores that are not of its peers are written."""
    _path(workspace).unlink(missing_ok=True)


def read_context(workspace: Workspace) -> tuple[PeerContext, ContextPeers] | None:
    """The context of the last scoring with its students; None where there is none.

    One that cannot be used (torn, of other settings, or without its students) is None too, and the log says why.
    """
    path = _path(workspace)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            told = json.loads(str(arrays["told"]))
            if told["key"] != context_key(workspace):
                raise ValueError("it is of another protocol, model or other settings")
            context = PeerContext(
                pairs=tuple(_read_pair(pair) for pair in told["pairs"]),
                is_judge=arrays["is_judge"],
                is_believed=arrays["is_believed"],
                is_asked=arrays["is_asked"],
                taught_ids=frozenset(arrays["taught_ids"].tolist()),
                label_ids=arrays["label_ids"],
                forms=arrays["forms"],
                doubtful=tuple(told["doubtful"]),
            )
        return context, ContextPeers(workspace, context)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, WeightsError) as error:
        logger.warning("%s of the last scoring cannot be used: %s", CONTEXT_NAME, error)
        return None


def context_key(workspace: Workspace) -> str:
    """What a context must share with a workspace that uses it."""
    parts = [getattr(workspace.settings, name) for name in (*KEY_SETTINGS, "steps_of_judges")]
    parts += [CONTEXT_FORMAT, workspace.require_protocol().digest, workspace.sam.digest, workspace.sam.runtime]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_pair(pair: Sequence[dict]) -> Pair:
    first, second = (FoldStudent(str(of["path"]), tuple(of["image_ids"]), tuple(of["case_ids"])) for of in pair)
    return first, second


def _path(workspace: Workspace) -> Path:
    return workspace.store.state_dir / CONTEXT_NAME
