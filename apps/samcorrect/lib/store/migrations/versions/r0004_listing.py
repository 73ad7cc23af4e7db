"""What lists of all images say of their labels, in the image's own row; indices for queue and counts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

from samcorrect.lib.store.records.listing import relist

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns, and fill them for the labels that are there."""
    op.add_column("image", sa.Column("best_label_id", sa.Integer))
    for name in ("best_present", "shown_labels"):
        op.add_column("image", sa.Column(name, sa.String, nullable=False, server_default=""))
    op.add_column("image", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_image_revision", "image", ["revision"])
    op.drop_index("ix_label_tag", "label_version")
    op.create_index("ix_label_tag", "label_version", ["tag", "image_id", "is_rejected"])
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE image SET revision = 1"))
    if connection.dialect.name == "postgresql":
        op.drop_index("ix_image_queue", "image")
        columns = ["status", "is_approved", sa.text("queue_score NULLS FIRST"), "id"]
        op.create_index("ix_image_queue", "image", columns)
    relist(Session(connection))
