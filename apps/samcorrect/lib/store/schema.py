"""The tables of the ledger."""

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

IMAGE_STATUS_OK = "ok"
IMAGE_STATUS_QUARANTINED = "quarantined"


class Base(DeclarativeBase):
    """Base of all tables."""


class ImageRow(Base):
    """An image of the studies folder.

    `queue_score` is its best label's quality, null until scored; `is_approved` means that it has a final label.
    """

    __tablename__ = "image"
    __table_args__ = (Index("ix_image_queue", "status", "is_approved", "queue_score"),)

    id: Mapped[str] = mapped_column(String(512), primary_key=True)
    path: Mapped[str] = mapped_column(String(2048))
    status: Mapped[str] = mapped_column(String(16), default=IMAGE_STATUS_OK)
    reason: Mapped[str | None]
    queue_score: Mapped[float | None] = mapped_column(Float)
    is_approved: Mapped[bool] = mapped_column(default=False)
    added_at: Mapped[float]
    info: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class LabelVersionRow(Base):
    """One version of a label; never changed once written, but for `info` of the viewer."""

    __tablename__ = "label_version"
    __table_args__ = (Index("ix_label_image_tag", "image_id", "tag", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("image.id"), index=True)
    tag: Mapped[str] = mapped_column(String(32))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    round: Mapped[int] = mapped_column(default=0)
    maker: Mapped[str] = mapped_column(String(256))
    model_digest: Mapped[str] = mapped_column(String(64), default="")
    prompts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    path: Mapped[str] = mapped_column(String(2048))
    content_sha256: Mapped[str] = mapped_column(String(64))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("label_version.id"))
    created_at: Mapped[float]
    info: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class QualityRow(Base):
    """The quality of one structure (index 0: of the whole label) of one label version."""

    __tablename__ = "quality"
    __table_args__ = (UniqueConstraint("label_version_id", "structure_index"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    label_version_id: Mapped[int] = mapped_column(ForeignKey("label_version.id"), index=True)
    structure_index: Mapped[int]
    score: Mapped[float | None]
    expected_dice: Mapped[float | None]
    expected_dice_low: Mapped[float | None]
    expected_dice_high: Mapped[float | None]
    posterior_good: Mapped[float | None]
    features: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    reasons: Mapped[list[str]] = mapped_column(JSON, default=list)
    created_at: Mapped[float]


class ModelRow(Base):
    """A trained or imported student. `status`: candidate, promoted, refused or retired."""

    __tablename__ = "model"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str] = mapped_column(String(2048))
    status: Mapped[str] = mapped_column(String(16), index=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    round: Mapped[int] = mapped_column(default=0)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[float]


class RunRow(Base):
    """One run of the loop: what it was asked to do, the images and approvals at its start, and how far it is."""

    __tablename__ = "run"

    id: Mapped[int] = mapped_column(primary_key=True)
    config_digest: Mapped[str] = mapped_column(String(64), index=True)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    snapshot: Mapped[dict[str, Any]] = mapped_column(JSON)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    is_finished: Mapped[bool] = mapped_column(default=False)
    started_at: Mapped[float]


class LeaseRow(Base):
    """An image reserved for one annotator until `expires_at` (seconds since the epoch)."""

    __tablename__ = "lease"

    image_id: Mapped[str] = mapped_column(ForeignKey("image.id"), primary_key=True)
    holder: Mapped[str] = mapped_column(String(256))
    expires_at: Mapped[float] = mapped_column(Float, index=True)
