"""The MONAI Label app: from settings to tasks. `samcorrect serve` and `monailabel start_server` both load this file."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp

from samcorrect import __version__
from samcorrect.lib.activelearning.strategies import LowestQuality, Random
from samcorrect.lib.compat.auto_scoring import disable_auto_scoring
from samcorrect.lib.compat.infer import confined_infer, refuse_whole_slides
from samcorrect.lib.compat.quiet_logs import silence_host_logs
from samcorrect.lib.compat.sessions import keep_sessions_in
from samcorrect.lib.configs.tasks import MODELS
from samcorrect.lib.infers.batch import PseudoLabelBatch
from samcorrect.lib.loop.audit import audit_refusal, audit_start
from samcorrect.lib.loop.warming import warm_queue
from samcorrect.lib.loop.workspace import PROTOCOL_NAME, open_workspace
from samcorrect.lib.scoring.tasks import LabelQuality, SelfCorrection
from samcorrect.lib.server.loop_runs import LoopRuns
from samcorrect.lib.server.mend import mend_server
from samcorrect.lib.settings import load_settings
from samcorrect.lib.store.datastore import LedgerDatastore
from samcorrect.lib.store.label_names import ordered_names

logger = logging.getLogger(__name__)

DESCRIPTION = "Pseudo-labels from SAM, scored, corrected and learnt from; a person sees the doubtful ones, worst first"
STRATEGIES = {"lowest_quality": LowestQuality, "random": Random}
SCORING_METHODS = {"label_quality": LabelQuality, "self_correction": SelfCorrection}


class SamCorrect(MONAILabelApp):
    """The app. The host finds it by its direct base class and loads this file as a module of its own."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None):
        """Open the store and register the tasks.

        Args:
            app_dir: Folder of this file.
            studies: Folder of the images, or the URL of a PACS's DICOMweb service.
            conf: The settings of --conf.

        Raises:
            SettingsError: A setting is unknown or out of range, or `studies` is a URL that cannot be used.
            ProtocolError: The protocol is faulty.
            StoreError: The studies or the state folder cannot be used.
        """
        silence_host_logs()
        self.workspace = open_workspace(studies, load_settings(conf or {}))
        keep_sessions_in(self.workspace.store.state_dir)
        labels = ordered_names(self.workspace.protocol)
        super().__init__(app_dir, studies, dict(conf or {}), "samcorrect", DESCRIPTION, __version__, labels)
        disable_auto_scoring(self)
        self.loop_runs = LoopRuns(self.workspace)

    def init_datastore(self) -> LedgerDatastore:
        """Images and labels from the ledger."""
        return LedgerDatastore(self.workspace.store, self.workspace.protocol)

    def init_infers(self) -> dict[str, Any]:
        """All models; without a protocol those that need none."""
        served = {name: model for name, model in MODELS.items() if self.workspace.protocol or not model.needs_protocol}
        if len(served) < len(MODELS):
            studies = self.workspace.store.studies.location
            logger.warning(
                "no protocol: only %s are served; put a %s into %s", ", ".join(served), PROTOCOL_NAME, studies
            )
        return {name: model.infer(self.workspace) for name, model in served.items()}

    def init_trainers(self) -> dict[str, Any]:
        """Trainers of the models that learn."""
        return {name: model.trainer(self.workspace) for name, model in MODELS.items() if model.trainer}

    def init_strategies(self) -> dict[str, Any]:
        """Strategies by name."""
        return {name: strategy(self.workspace) for name, strategy in STRATEGIES.items()}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Scoring methods by name."""
        return {name: method(self.workspace) for name, method in SCORING_METHODS.items()}

    def init_batch_infer(self) -> Callable:
        """Pseudo-labels for many images."""
        return PseudoLabelBatch(self.workspace)

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Run a model on an image of the store."""
        sessions = self.sessions()
        sessions_dir = Path(sessions.store_path) if sessions is not None else None
        return confined_infer(
            self._infers, request, find_image=self.datastore().get_image_uri, sessions_dir=sessions_dir
        )

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Raises RequestError."""
        return refuse_whole_slides()

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Called after a submit; what it returns goes into the reply."""
        return self.datastore().publish_label(image_id)

    def on_init_complete(self) -> None:
        """Called by the server, and only by the server, when the app is up."""
        mend_server(self.workspace.settings.max_upload_mb, self.on_refusal)
        audit_start(self.workspace, "serve")
        self.loop_runs.resume()
        warm_queue(self.workspace)
        super().on_init_complete()

    def on_refusal(self, method: str, route: str, status: int, error: str, client: str, image_id: str | None) -> None:
        """Note a refused request in the audit log."""
        audit_refusal(self.workspace, method, route, status, error, client, image_id=image_id)
