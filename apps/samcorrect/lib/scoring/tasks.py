"""Scoring methods `label_quality` and `self_correction`: stages over the whole store, each in a process of its own."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.correction import correct_store
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.loop.workspace import Progress, Workspace, log_progress


class StoreStage(ScoringMethod):
    """A stage over the whole store; its log lines are what the host shows as the task's `details`."""

    text: ClassVar[str]

    def __init__(self, workspace: Workspace):
        """Work on `workspace`."""
        super().__init__(self.text)
        self.workspace = workspace

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Run the stage and return its counts. Raises ProtocolError without a protocol, RequestError for bad params."""
        self.workspace.require_protocol()
        return self.run(request, log_progress)

    @abstractmethod
    def run(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """The stage itself."""


class LabelQuality(StoreStage):
    """Scores what changed since the last scoring, or, with the param `full`, every label."""

    text = "Scores every best label without ground truth, by students that never saw its case"

    def run(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Returns the counts of `score_store`."""
        return score_store(self.workspace, full=parse_full(request.get("full")), progress=progress)


class SelfCorrection(StoreStage):
    """Corrects every label of low quality."""

    text = "Scores every best label and corrects those of low quality; the versions before are kept"

    def run(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Returns the counts of `correct_store`."""
        return correct_store(self.workspace, progress=progress)


def parse_full(value: object) -> bool:
    """Whether a request asks for a full scoring; not where it says nothing. Raises RequestError where it is no bool."""
    if not isinstance(value, bool | None):
        raise RequestError(f"`full` is true or false; got {value!r:.40}")
    return bool(value)
