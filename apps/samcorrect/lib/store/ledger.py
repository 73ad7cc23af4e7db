"""The ledger: one database that knows every image, label version, score, model and run.

It is opened by the server and by its scoring and training processes at once. A label is in the ledger only after its
file is on the disk, so a killed process leaves at most a file that nobody names.
"""

from pathlib import Path

from samcorrect.lib.errors import StoreError
from samcorrect.lib.store.engine import open_engine
from samcorrect.lib.store.records.audit import AuditRecords, Refusals
from samcorrect.lib.store.records.gate import GateRecords
from samcorrect.lib.store.records.images import ImageRecords
from samcorrect.lib.store.records.labels import LabelRecords
from samcorrect.lib.store.records.models import ModelRecords
from samcorrect.lib.store.records.publications import PublicationRecords
from samcorrect.lib.store.records.queue import QueueRecords
from samcorrect.lib.store.records.reviews import ReviewRecords
from samcorrect.lib.store.records.runs import RunRecords


class Ledger(
    ImageRecords,
    LabelRecords,
    QueueRecords,
    ModelRecords,
    GateRecords,
    RunRecords,
    ReviewRecords,
    AuditRecords,
    PublicationRecords,
):
    """Reads and writes of the ledger; rows come back detached from the session.

    Attributes:
        state_dir: The folder of the label files that it knows.
        url: Of its PostgreSQL database; None where it is SQLite's file in the state folder.
    """

    def __init__(self, state_dir: Path, url: str | None = None):
        """Open or create the ledger of a state folder.

        Raises:
            StoreError: The folder cannot be written, the database cannot be opened, or it is not a ledger.
            DependencyError: The driver of `url` is not installed.
        """
        self.state_dir = state_dir
        self.url = url
        self._refusals = Refusals()
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot open the ledger in {state_dir}: {error.strerror or error}. "
                "Give a folder that can be written with --state"
            ) from error
        self._engine = open_engine(state_dir, url)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
