"""Trained and imported students, and which of them is in use."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from samcorrect.lib.errors import RequestError, UnknownModelError
from samcorrect.lib.store.records.audit import append_audit
from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.events import EVENT_PROMOTED, EVENT_REFUSED_MODEL, SAMCORRECT
from samcorrect.lib.store.schema import MODEL_PROMOTED, MODEL_REFUSED, MODEL_RETIRED, ModelRow

# Keys of `metrics`: digest of the model that was in use before, or None; the person who promoted it; the one who went
# back from it.
REPLACED, PROMOTED_BY, LEFT_BY = "replaced", "promoted_by", "left_by"
# Of a digest, as people give it.
MIN_PREFIX = 4


class ModelRecords(Records):
    """Reads and writes of models."""

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
            row = session.get_one(ModelRow, model_id)
            row.metrics = {**row.metrics, **metrics}
            reason = str(metrics.get("reason", ""))
            if is_promoted:
                _put_in_use(session, row, reason)
                return
            row.status = MODEL_REFUSED
            _append(session, EVENT_REFUSED_MODEL, row, SAMCORRECT, reason)

    def promote_model(self, model_id: int, *, reason: str, by: str | None = None, is_return: bool = False) -> ModelRow:
        """Use a model from now on; its metrics, and the gate's reason among them, stay.

        Args:
            model_id: Its row.
            reason: For the audit log.
            by: The person who decides so; None where the gate does.
            is_return: Back to a model that was in use before: what it replaced then, it still replaces.
        """
        with self.session(writes=True) as session:
            row = session.get_one(ModelRow, model_id)
            _put_in_use(session, row, reason, by=by, is_return=is_return)
        return row

    def promoted_model(self) -> ModelRow | None:
        """The model in use, or None."""
        with self.session() as session:
            query = select(ModelRow).where(ModelRow.status == MODEL_PROMOTED).order_by(ModelRow.id.desc()).limit(1)
            return session.scalars(query).first()

    def models(self) -> list[ModelRow]:
        """All models, oldest first."""
        with self.session() as session:
            return list(session.scalars(select(ModelRow).order_by(ModelRow.id)))

    def find_model(self, prefix: str) -> ModelRow:
        """The model whose digest begins with `prefix`.

        Raises:
            RequestError: The prefix is too short, or fits more than one model.
            UnknownModelError: It fits none.
        """
        if len(prefix) < MIN_PREFIX:
            raise RequestError(
                f"a model is named by the first {MIN_PREFIX} or more characters of its digest, as `samcorrect models "
                f"list` shows it; got {prefix!r}"
            )
        found = [row for row in self.models() if row.digest.startswith(prefix.lower())]
        if not found:
            raise UnknownModelError(f"no model's digest begins with {prefix!r:.80}; `samcorrect models list` shows all")
        if len(found) > 1:
            fitting = ", ".join(row.digest[: len(prefix) + 4] for row in found)
            raise RequestError(f"{prefix!r:.80} fits {len(found)} models, {fitting}; give more of the digest")
        return found[0]


def _put_in_use(
    session: Session, row: ModelRow, reason: str, *, by: str | None = None, is_return: bool = False
) -> None:
    others = select(ModelRow).where(ModelRow.status == MODEL_PROMOTED, ModelRow.id != row.id)
    replaced = None
    for other in session.scalars(others):
        replaced, other.status = other.digest, MODEL_RETIRED
        if is_return and by is not None:
            other.metrics = {**other.metrics, LEFT_BY: by}
    if row.status != MODEL_PROMOTED:
        kept = {key: value for key, value in row.metrics.items() if key not in (PROMOTED_BY, LEFT_BY)}
        if not is_return:
            _bridge(session, row)
            kept[REPLACED] = replaced
        row.metrics = kept if by is None else {**kept, PROMOTED_BY: by}
        row.status = MODEL_PROMOTED
    _append(session, EVENT_PROMOTED, row, by or SAMCORRECT, reason)


def _bridge(session: Session, row: ModelRow) -> None:
    """Let what replaced a model go back to what the model replaced: it comes again, and the way back is no circle."""
    for other in session.scalars(select(ModelRow).where(ModelRow.id != row.id)):
        if other.metrics.get(REPLACED) == row.digest:
            other.metrics = {**other.metrics, REPLACED: row.metrics.get(REPLACED)}


def _append(session: Session, event: str, row: ModelRow, actor: str, reason: str) -> None:
    append_audit(session, event, actor=actor, details={"digest": row.digest, "round": row.round, "reason": reason})
