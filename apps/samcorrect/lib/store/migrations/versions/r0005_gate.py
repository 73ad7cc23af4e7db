"""What the promotion gate judges by: images that are held out of training, and labels that were trusted at first."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column and the table; no image is held out yet."""
    op.add_column("image", sa.Column("is_held_out", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "gate_label",
        sa.Column("protocol_digest", sa.String, primary_key=True),
        sa.Column("label_version_id", sa.Integer, sa.ForeignKey("label_version.id"), primary_key=True),
        sa.Column("structure_index", sa.Integer, primary_key=True, autoincrement=False),
    )
