"""What people decided about labels, and the audit log."""

import time

import sqlalchemy as sa
from alembic import op

from samcorrect.lib.store.records.events import (
    EVENT_TAKEN_OVER,
    GENESIS_HASH,
    SAMCORRECT,
    canonical,
    label_details,
    sealed,
)

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables, and the column that says that a version is rejected; the log begins with what there is."""
    op.add_column("label_version", sa.Column("is_rejected", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_label_rejected", "label_version", ["is_rejected", "image_id"])
    op.add_column("quality", sa.Column("n_approved", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "review",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("image_id", sa.String, sa.ForeignKey("image.id"), nullable=False),
        sa.Column("label_version_id", sa.Integer, sa.ForeignKey("label_version.id")),
        sa.Column("decision", sa.String, nullable=False),
        sa.Column("reviewer", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("ix_review_image", "review", ["image_id", "id"])
    op.create_index("ix_review_label", "review", ["label_version_id", "id"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("image_id", sa.String),
        sa.Column("label_version_id", sa.Integer),
        sa.Column("details", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
    )
    op.create_index("ix_audit_image", "audit", ["image_id", "id"])
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n_rows", sa.Integer, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
    )
    _take_over()


def _take_over() -> None:
    """Write a row of the log for each label version, with its score, and for the promoted model."""
    connection, number, previous = op.get_bind(), 0, GENESIS_HASH
    tables = sa.MetaData()
    tables.reflect(connection, only=("label_version", "quality", "model", "audit", "audit_head"))
    label, quality, model, audit, head = (
        tables.tables[name] for name in ("label_version", "quality", "model", "audit", "audit_head")
    )
    whole = sa.select(quality.c.label_version_id, quality.c.score).where(quality.c.structure_index == 0)
    scores = dict(connection.execute(whole).tuples().all())
    found = [
        (row["image_id"], row["id"], label_details(row) | ({"score": scores[row["id"]]} if row["id"] in scores else {}))
        for row in connection.execute(sa.select(label).order_by(label.c.id)).mappings()
    ]
    in_use = sa.select(model.c.digest).where(model.c.status == "promoted")
    found += [(None, None, {"digest": digest}) for digest in connection.scalars(in_use)]
    for image_id, version, details in found:
        number += 1
        columns = {"id": number, "at": time.time(), "event": EVENT_TAKEN_OVER, "actor": SAMCORRECT}
        columns |= {"image_id": image_id, "label_version_id": version, "details": canonical(details)}
        previous = sealed(columns, previous)
        connection.execute(sa.insert(audit).values(**columns, hash=previous))
    if found:
        connection.execute(sa.insert(head).values(id=1, n_rows=number, hash=previous))
