"""Rows that tests enter into a ledger."""

import hashlib

from samcorrect.lib.store.ledger import Ledger
from samcorrect.lib.store.schema import LabelVersionRow, QualityRow

NOW = 1_000_000.0


def enter(ledger: Ledger, image_id: str, tag: str, content: str, maker: str = "sam:test", **columns) -> LabelVersionRow:
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    row = LabelVersionRow(
        image_id=image_id,
        tag=tag,
        maker=maker,
        path=f"labels/{content}",
        content_sha256=sha256,
        created_at=NOW,
        **columns,
    )
    return ledger.add_label(row)


def score(ledger: Ledger, label: LabelVersionRow, value: float | None) -> None:
    ledger.set_quality(
        label.id,
        [QualityRow(label_version_id=label.id, structure_index=i, score=value, created_at=NOW) for i in (0, 7)],
    )
