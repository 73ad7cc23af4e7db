"""The ledger: one SQLite database under the state folder that knows every image, label version, score, model and run.

It is opened by the server and by its scoring and training processes at once (WAL). A label is in the ledger only after
its file is on the disk, so a killed process leaves at most a file that nobody names.
"""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, Select, create_engine, delete, event, func, select, text, update
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from samcorrect.lib.errors import StoreError, UnknownImageError, UnknownLabelError
from samcorrect.lib.store.schema import (
    IMAGE_STATUS_OK,
    IMAGE_STATUS_QUARANTINED,
    Base,
    ImageRow,
    LabelVersionRow,
    LeaseRow,
    ModelRow,
    QualityRow,
    RunRow,
)
from samcorrect.lib.store.studies import LEDGER_NAME, ImageFile

BUSY_TIMEOUT_S = 30
TAG_ORIGINAL, TAG_CORRECTED, TAG_FINAL = "original", "corrected", "final"
TAGS = (TAG_ORIGINAL, TAG_CORRECTED, TAG_FINAL)
# SQLite's own words: in the driver's ordinary transactions only the first write takes the lock.
BEGIN_WRITING = text("BEGIN IMMEDIATE")
# A file that the scan refused has no id but its name.
IS_REFUSED = ImageRow.path == ImageRow.id
REASON_GONE = "the file is gone from the studies folder"
MODEL_CANDIDATE, MODEL_PROMOTED, MODEL_REFUSED, MODEL_RETIRED = "candidate", "promoted", "refused", "retired"


class Ledger:
    """Reads and writes of the ledger; rows come back detached from the session."""

    def __init__(self, state_dir: Path):
        """Open or create the ledger of a state folder.

        Raises:
            StoreError: The folder cannot be written, or the file there is not a ledger.
        """
        self.state_dir = state_dir
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._engine = _open(state_dir / LEDGER_NAME)
        except (OSError, DatabaseError) as error:
            raise StoreError(
                f"cannot open the ledger in {state_dir}: {getattr(error, 'orig', None) or error}. "
                "Give a folder that can be written with --state"
            ) from error

    @contextmanager
    def session(self, *, writes: bool = False) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back on an error.

        Args:
            writes: Take the write lock at once. Without it, what another process writes between a read of this block
                and the write that rests on it would be lost.

        Raises:
            StoreError: The disk is full, the file cannot be written, or another process held the lock too long.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                if writes:
                    session.execute(BEGIN_WRITING)
                yield session
        except OperationalError as error:
            raise StoreError(f"the ledger in {self.state_dir} cannot be used: {error.orig}") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # Images

    def sync_images(self, found: Sequence[ImageFile], refused: Sequence[tuple[str, str]] | None = None) -> None:
        """Add new images and note new paths. Images that are gone are quarantined until they are back.

        Args:
            found: Images, some or all of the studies.
            refused: All files that the scan refused, with the reason: they are quarantined, and those that it no longer
                refuses are forgotten. None where the studies were not scanned: `found` then says nothing of the others.
        """
        with self.session(writes=True) as session:
            if refused is not None:
                session.execute(delete(ImageRow).where(IS_REFUSED))
            known = {row.id: row for row in session.scalars(select(ImageRow))}
            for image in found:
                row = known.get(image.id)
                if row is None:
                    known[image.id] = ImageRow(id=image.id, path=str(image.path), added_at=time.time())
                    session.add(known[image.id])
                    continue
                if row.path != str(image.path):
                    row.path = str(image.path)
                if row.reason == REASON_GONE:
                    row.status, row.reason = IMAGE_STATUS_OK, None
            if refused is not None:
                for image_id in known.keys() - {image.id for image in found}:
                    known[image_id].status, known[image_id].reason = IMAGE_STATUS_QUARANTINED, REASON_GONE
            for name, reason in refused or ():
                if name not in known:
                    row = ImageRow(id=name, path=name, added_at=time.time())
                    row.status, row.reason = IMAGE_STATUS_QUARANTINED, reason
                    session.add(row)

    def image(self, image_id: str) -> ImageRow:
        """The row of one image. Raises UnknownImageError."""
        with self.session() as session:
            return _require_image(session, image_id)

    def images(self) -> list[ImageRow]:
        """All images that are not quarantined, in order of id."""
        with self.session() as session:
            query = select(ImageRow).where(ImageRow.status == IMAGE_STATUS_OK)
            return list(session.scalars(query.order_by(ImageRow.id)))

    def quarantine(self, image_id: str, reason: str) -> None:
        """Take an image out of every stage and keep the reason. A later `release_from_quarantine` lets it back."""
        with self.session() as session:
            values = {"status": IMAGE_STATUS_QUARANTINED, "reason": reason}
            session.execute(update(ImageRow).where(ImageRow.id == image_id).values(values))

    def release_from_quarantine(self) -> None:
        """Let all but files that are refused by name or gone try again; a run calls it at its start, since files get
        repaired.
        """
        may_return = ~IS_REFUSED & (ImageRow.reason != REASON_GONE)
        with self.session() as session:
            session.execute(update(ImageRow).where(may_return).values({"status": IMAGE_STATUS_OK, "reason": None}))

    def quarantined(self) -> list[tuple[str, str]]:
        """(image id or file, reason) of every quarantined image."""
        with self.session() as session:
            query = select(ImageRow).where(ImageRow.status == IMAGE_STATUS_QUARANTINED)
            return [(row.id, row.reason or "") for row in session.scalars(query.order_by(ImageRow.id))]

    # Labels

    def add_label(self, row: LabelVersionRow) -> LabelVersionRow:
        """Enter a label version whose file is on the disk; a `final` one approves its image and ends its lease."""
        with self.session() as session:
            session.add(row)
            if row.tag == TAG_FINAL:
                session.execute(update(ImageRow).where(ImageRow.id == row.image_id).values(is_approved=True))
                lease = session.get(LeaseRow, row.image_id)
                if lease is not None:
                    session.delete(lease)
            session.flush()
        return row

    def latest_label(self, image_id: str, tag: str) -> LabelVersionRow | None:
        """The newest version of one tag, or None."""
        query = select(LabelVersionRow).where(LabelVersionRow.image_id == image_id, LabelVersionRow.tag == tag)
        with self.session() as session:
            return session.scalars(query.order_by(LabelVersionRow.id.desc()).limit(1)).first()

    def best_label(self, image_id: str) -> LabelVersionRow | None:
        """The best label by `best_of`; None where there is no label."""
        return best_of(self.latest_label(image_id, tag) for tag in TAGS)

    def latest_labels(self) -> dict[tuple[str, str], LabelVersionRow]:
        """(image id, tag) to the newest version, for the whole store."""
        newest = select(func.max(LabelVersionRow.id)).group_by(LabelVersionRow.image_id, LabelVersionRow.tag)
        with self.session() as session:
            rows = session.scalars(select(LabelVersionRow).where(LabelVersionRow.id.in_(newest)))
            return {(row.image_id, row.tag): row for row in rows}

    def run_label(self, image_id: str, tag: str, run_id: int, round_number: int) -> LabelVersionRow | None:
        """The version that a run made in a round: the checkpoint of one image."""
        query = select(LabelVersionRow).where(
            LabelVersionRow.image_id == image_id,
            LabelVersionRow.tag == tag,
            LabelVersionRow.run_id == run_id,
            LabelVersionRow.round == round_number,
        )
        with self.session() as session:
            return session.scalars(query.order_by(LabelVersionRow.id.desc()).limit(1)).first()

    def run_labels(self, tag: str, run_id: int, round_number: int) -> dict[str, LabelVersionRow]:
        """Image id to the version that a run made in a round, for the whole store."""
        query = select(LabelVersionRow).where(
            LabelVersionRow.run_id == run_id, LabelVersionRow.tag == tag, LabelVersionRow.round == round_number
        )
        with self.session() as session:
            return {row.image_id: row for row in session.scalars(query.order_by(LabelVersionRow.id))}

    def label_version(self, label_version_id: int) -> LabelVersionRow:
        """One label version by its number. Raises UnknownLabelError."""
        with self.session() as session:
            row = session.get(LabelVersionRow, label_version_id)
        if row is None:
            raise UnknownLabelError(f"no label version {label_version_id} in the ledger")
        return row

    def update_label_info(self, label_version_id: int, info: dict) -> None:
        """Merge keys into a label's info."""
        with self.session(writes=True) as session:
            row = session.get_one(LabelVersionRow, label_version_id)
            row.info = {**row.info, **info}

    # Quality

    def set_quality(self, label_version_id: int, rows: Sequence[QualityRow]) -> None:
        """Replace the quality of a label version; index 0, the whole label, sets the image's place in the queue."""
        with self.session(writes=True) as session:
            session.execute(delete(QualityRow).where(QualityRow.label_version_id == label_version_id))
            session.add_all(rows)
            whole = next((row for row in rows if row.structure_index == 0), None)
            if whole is not None:
                image_id = session.get_one(LabelVersionRow, label_version_id).image_id
                session.execute(update(ImageRow).where(ImageRow.id == image_id).values(queue_score=whole.score))

    def quality(self, label_version_id: int) -> dict[int, QualityRow]:
        """Structure index to quality; 0 is the whole label. Empty where the label is not scored."""
        with self.session() as session:
            rows = session.scalars(select(QualityRow).where(QualityRow.label_version_id == label_version_id))
            return {row.structure_index: row for row in rows}

    # Queue

    def queue_head(self, holder: str, limit: int, *, now: float) -> list[ImageRow]:
        """Images that a holder may be given, worst score first; images never scored come before all others.

        Approved, quarantined and images leased to somebody else are left out.
        """
        query = _waiting(holder, now).order_by(ImageRow.queue_score.asc().nulls_first(), ImageRow.id)
        with self.session() as session:
            return list(session.scalars(query.limit(limit)))

    def queue_sample(self, holder: str, limit: int, *, now: float, seed: int) -> list[ImageRow]:
        """The same images as `queue_head`, drawn at random without replacement."""
        waiting = _waiting(holder, now)
        with self.session() as session:
            total = session.scalar(select(func.count()).select_from(waiting.subquery())) or 0
            drawn = random.Random(seed).sample(range(total), min(limit, total))
            rows = (session.scalars(waiting.order_by(ImageRow.id).offset(offset).limit(1)).first() for offset in drawn)
            return [row for row in rows if row is not None]

    def take_lease(self, image_id: str, holder: str, *, now: float, lease_s: float) -> bool:
        """Reserve an image; False where somebody else holds it or a person has approved it in the meantime."""
        with self.session(writes=True) as session:
            if _require_image(session, image_id).is_approved:
                return False
            lease = session.get(LeaseRow, image_id)
            if lease is not None and lease.expires_at > now and lease.holder != holder:
                return False
            session.merge(LeaseRow(image_id=image_id, holder=holder, expires_at=now + lease_s))
            return True

    def held_by(self, holder: str, *, now: float) -> list[str]:
        """Image ids that a holder has reserved."""
        query = select(LeaseRow.image_id).where(LeaseRow.holder == holder, LeaseRow.expires_at > now)
        with self.session() as session:
            return list(session.scalars(query))

    # Models

    def add_model(self, row: ModelRow) -> ModelRow:
        """Enter a model; one of the same digest is returned instead of entered twice."""
        with self.session(writes=True) as session:
            known = session.scalars(select(ModelRow).where(ModelRow.digest == row.digest)).first()
            if known is not None:
                return known
            session.add(row)
            session.flush()
        return row

    def decide_model(self, model_id: int, *, is_promoted: bool, metrics: dict) -> None:
        """Promote a candidate (the model before it retires) or refuse it; the metrics and the reason stay."""
        with self.session(writes=True) as session:
            if is_promoted:
                others = ModelRow.status == MODEL_PROMOTED
                session.execute(update(ModelRow).where(others).values(status=MODEL_RETIRED))
            row = session.get_one(ModelRow, model_id)
            row.status = MODEL_PROMOTED if is_promoted else MODEL_REFUSED
            row.metrics = {**row.metrics, **metrics}

    def promoted_model(self) -> ModelRow | None:
        """The model in use, or None."""
        with self.session() as session:
            query = select(ModelRow).where(ModelRow.status == MODEL_PROMOTED).order_by(ModelRow.id.desc()).limit(1)
            return session.scalars(query).first()

    def models(self) -> list[ModelRow]:
        """All models, oldest first."""
        with self.session() as session:
            return list(session.scalars(select(ModelRow).order_by(ModelRow.id)))

    # Runs

    def open_run(self, config_digest: str, config: dict, snapshot: dict) -> tuple[RunRow, bool]:
        """The run to work on: of this config an unfinished one of the same images or a finished one of the same
        snapshot, else a new one.

        Args:
            config_digest: What the run is asked to do.
            config: The same in full.
            snapshot: What the run sees at its start: `labels` by image id, and `key`; two of one key are the same.

        Returns:
            The run, and whether it was there before.
        """
        with self.session(writes=True) as session:
            wanted = RunRow.config_digest == config_digest
            query = select(RunRow).where(wanted).order_by(RunRow.id.desc()).limit(1)
            last = session.scalars(query).first()
            if last is not None:
                is_same = last.snapshot["key"] == snapshot["key"]
                has_same_images = last.snapshot["labels"].keys() == snapshot["labels"].keys()
                if is_same or (not last.is_finished and has_same_images):
                    return last, True
            row = RunRow(config_digest=config_digest, config=config, snapshot=snapshot, started_at=time.time())
            session.add(row)
            session.flush()
        return row, False

    def run(self, run_id: int) -> RunRow:
        """One run."""
        with self.session() as session:
            return session.get_one(RunRow, run_id)

    def update_run(self, run_id: int, *, progress: dict | None = None, is_finished: bool | None = None) -> None:
        """Merge progress into a run, or close it."""
        with self.session(writes=True) as session:
            row = session.get_one(RunRow, run_id)
            if progress is not None:
                row.progress = {**row.progress, **progress}
            if is_finished is not None:
                row.is_finished = is_finished

    # Counts

    def counts(self) -> dict[str, int]:
        """Images in all, approved, scored, and labels by tag, for status pages."""
        with self.session() as session:
            count = select(func.count()).select_from(ImageRow).where(ImageRow.status == IMAGE_STATUS_OK)
            n_approved = session.scalar(count.where(ImageRow.is_approved.is_(True)))
            is_waiting = ImageRow.is_approved.is_(False) & ImageRow.queue_score.is_not(None)
            counts = {"images": session.scalar(count), "approved": n_approved}
            counts["scored_waiting"] = session.scalar(count.where(is_waiting))
            n_images = func.count(LabelVersionRow.image_id.distinct())
            tags = session.execute(select(LabelVersionRow.tag, n_images).group_by(LabelVersionRow.tag))
            return counts | {f"tag_{tag}": n for tag, n in tags.tuples()}


def _require_image(session: Session, image_id: str) -> ImageRow:
    row = session.get(ImageRow, image_id)
    if row is None:
        raise UnknownImageError(f"no image {image_id[:80]!r} in the store; GET /datastore/?output=all lists them")
    return row


def best_of(labels: Iterable[LabelVersionRow | None]) -> LabelVersionRow | None:
    """A person's label, else the newest of the machine's.

    A correction is newer than the label it was made from, so it outranks that one; it does not outrank an original that
    was made or imported after it, for example by another protocol.
    """
    found = [label for label in labels if label is not None and label.tag in TAGS]
    return max(found, key=lambda label: (label.tag == TAG_FINAL, label.id), default=None)


def _waiting(holder: str, now: float) -> Select[tuple[ImageRow]]:
    taken = select(LeaseRow.image_id).where(LeaseRow.expires_at > now, LeaseRow.holder != holder)
    return select(ImageRow).where(
        ImageRow.status == IMAGE_STATUS_OK, ImageRow.is_approved.is_(False), ImageRow.id.not_in(taken)
    )


def _open(path: Path) -> Engine:
    # Not an f-string: a "?" in the path would start the URL's options.
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection, _record) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    # The server and its task processes start together: only one at a time looks for the tables and makes them.
    with engine.begin() as connection:
        connection.execute(BEGIN_WRITING)
        Base.metadata.create_all(connection)
    return engine
