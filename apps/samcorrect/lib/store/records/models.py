"""Trained and imported students, and which of them is in use."""

from sqlalchemy import select, update

from samcorrect.lib.store.records.audit import append_audit
from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.records.events import EVENT_PROMOTED, EVENT_REFUSED_MODEL, SAMCORRECT
from samcorrect.lib.store.schema import MODEL_PROMOTED, MODEL_REFUSED, MODEL_RETIRED, ModelRow


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
            if is_promoted:
                others = ModelRow.status == MODEL_PROMOTED
                session.execute(update(ModelRow).where(others).values(status=MODEL_RETIRED))
            row = session.get_one(ModelRow, model_id)
            row.status = MODEL_PROMOTED if is_promoted else MODEL_REFUSED
            row.metrics = {**row.metrics, **metrics}
            details = {"digest": row.digest, "round": row.round, "reason": str(metrics.get("reason", ""))}
            event = EVENT_PROMOTED if is_promoted else EVENT_REFUSED_MODEL
            append_audit(session, event, actor=SAMCORRECT, details=details)

    def promoted_model(self) -> ModelRow | None:
        """The model in use, or None."""
        with self.session() as session:
            query = select(ModelRow).where(ModelRow.status == MODEL_PROMOTED).order_by(ModelRow.id.desc()).limit(1)
            return session.scalars(query).first()

    def models(self) -> list[ModelRow]:
        """All models, oldest first."""
        with self.session() as session:
            return list(session.scalars(select(ModelRow).order_by(ModelRow.id)))
