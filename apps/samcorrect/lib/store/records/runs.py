"""Runs of the loop: what each was asked, what it saw at its start, and how far it is."""

import time

from sqlalchemy import select

from samcorrect.lib.store.records.base import Records
from samcorrect.lib.store.schema import LabelVersionRow, RunRow


class RunRecords(Records):
    """Reads and writes of runs."""

    def open_run(self, config_digest: str, config: dict, snapshot: dict) -> tuple[RunRow, bool]:
        """The run to work on: of this config an unfinished one of the same images, unless a label that it starts from
        was rejected since, or a finished one of the same snapshot, else a new one.

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
                seen = last.snapshot["labels"].keys()
                has_its_images = bool(seen) and seen <= snapshot["labels"].keys()
                starts = set(last.snapshot["labels"].values())
                rejected = session.scalars(select(LabelVersionRow.id).where(LabelVersionRow.is_rejected.is_(True)))
                may_go_on = not last.is_finished and has_its_images and starts.isdisjoint(rejected)
                if is_same or may_go_on:
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
