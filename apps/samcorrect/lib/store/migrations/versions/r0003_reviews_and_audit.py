"""What people decided about labels, and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables; say of versions whether a person rejected them, and of scores what calibrated them."""
    op.add_column("label_version", sa.Column("is_rejected", sa.Boolean, nullable=False, server_default=sa.false()))
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
