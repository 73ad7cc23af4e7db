"""The tables of the first ledgers, which had no revision: those are taken for this one."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    _create_images_and_runs()
    _create_labels()
    _create_models_and_leases()


def _create_images_and_runs() -> None:
    op.create_table(
        "image",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("queue_score", sa.Double),
        sa.Column("is_approved", sa.Boolean, nullable=False),
        sa.Column("added_at", sa.Double, nullable=False),
        sa.Column("info", sa.JSON, nullable=False),
    )
    op.create_index("ix_image_queue", "image", ["status", "is_approved", "queue_score"])
    op.create_table(
        "run",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("config_digest", sa.String, nullable=False, index=True),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("snapshot", sa.JSON, nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("is_finished", sa.Boolean, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
    )


def _create_labels() -> None:
    op.create_table(
        "label_version",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("image_id", sa.String, sa.ForeignKey("image.id"), nullable=False, index=True),
        sa.Column("tag", sa.String, nullable=False),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("run.id")),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("maker", sa.String, nullable=False),
        sa.Column("model_digest", sa.String, nullable=False),
        sa.Column("prompts", sa.JSON, nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("content_sha256", sa.String, nullable=False),
        sa.Column("parent_id", sa.Integer, sa.ForeignKey("label_version.id")),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("info", sa.JSON, nullable=False),
    )
    op.create_index("ix_label_image_tag", "label_version", ["image_id", "tag", "id"])
    op.create_table(
        "quality",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("label_version_id", sa.Integer, sa.ForeignKey("label_version.id"), nullable=False, index=True),
        sa.Column("structure_index", sa.Integer, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("expected_dice", sa.Double),
        sa.Column("expected_dice_low", sa.Double),
        sa.Column("expected_dice_high", sa.Double),
        sa.Column("posterior_good", sa.Double),
        sa.Column("features", sa.JSON, nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("label_version_id", "structure_index"),
    )


def _create_models_and_leases() -> None:
    op.create_table(
        "model",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, unique=True),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("run.id")),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "lease",
        sa.Column("image_id", sa.String, sa.ForeignKey("image.id"), primary_key=True),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False, index=True),
    )
