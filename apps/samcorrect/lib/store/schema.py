"""The tables of the ledger."""

import math
import random
from typing import Any, ClassVar

from sqlalchemy import JSON, Double, ForeignKey, Index, TypeDecorator, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# The newest script in `migrations/versions`: a change of the tables below needs a new one.
REVISION = "0005"
IMAGE_STATUS_OK = "ok"
IMAGE_STATUS_QUARANTINED = "quarantined"
TAG_ORIGINAL, TAG_CORRECTED, TAG_FINAL = "original", "corrected", "final"
TAGS = (TAG_ORIGINAL, TAG_CORRECTED, TAG_FINAL)
PACS_PENDING, PACS_STORED, PACS_REFUSED = "pending", "stored", "refused"
# Makers that are persons begin with it.
USER = "user:"
DECISION_APPROVED, DECISION_REJECTED, DECISION_COMMENT = "approved", "rejected", "comment"
# States of an image; of a label the same, without the first two.
STATE_UNLABELLED, STATE_IN_REVIEW, STATE_REJECTED = "unlabelled", "in review", "rejected"
STATE_OF_TAG = {TAG_FINAL: "approved", TAG_CORRECTED: "corrected", TAG_ORIGINAL: "pseudo"}
MODEL_CANDIDATE, MODEL_PROMOTED, MODEL_REFUSED, MODEL_RETIRED = "candidate", "promoted", "refused", "retired"


class Number(TypeDecorator):
    """A float; nan is null, as SQLite has it already and PostgreSQL, which ranks it above all numbers, has not."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: object) -> float | None:
        """What is stored for a value."""
        return None if value is None or math.isnan(value) else value


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar = {float: Number}


class ImageRow(Base):
    """An image of the studies.

    `path` is relative to them, `case_id` the patient that the image is of. `queue_score` is its best label's quality,
    null until scored; `is_approved` means that it has a final label. `draw`, uniform in [0, 1), is its place in the
    random order of audits. `is_held_out`, once set, stays: no student that may be promoted learns from the image, the
    promotion gate judges by it. `best_label_id`, `best_present` and `shown_labels` repeat what `records/listing.py`
    reads from its labels, so that lists of all images need no other table; `revision` is the highest of all images
    whenever something changes that lists show.
    """

    __tablename__ = "image"
    __table_args__ = (
        # In PostgreSQL its scores begin with null, as the queue does, and as they do in SQLite by themselves.
        Index("ix_image_queue", "status", "is_approved", "queue_score", "id"),
        Index("ix_image_draw", "status", "is_approved", "draw"),
        Index("ix_image_revision", "revision"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    case_id: Mapped[str] = mapped_column(default="", server_default="")
    status: Mapped[str] = mapped_column(default=IMAGE_STATUS_OK)
    reason: Mapped[str | None]
    queue_score: Mapped[float | None]
    draw: Mapped[float] = mapped_column(default=random.random, server_default="0")
    is_approved: Mapped[bool] = mapped_column(default=False)
    is_held_out: Mapped[bool] = mapped_column(default=False, server_default=false())
    added_at: Mapped[float]
    info: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    best_label_id: Mapped[int | None]
    best_present: Mapped[str] = mapped_column(default="", server_default="", deferred=True)
    shown_labels: Mapped[str] = mapped_column(default="", server_default="", deferred=True)


class LabelVersionRow(Base):
    """One version of a label; never changed once written, but for what viewers noted and `is_rejected`."""

    __tablename__ = "label_version"
    __table_args__ = (
        Index("ix_label_image_tag", "image_id", "tag", "id"),
        Index("ix_label_tag", "tag", "image_id", "is_rejected"),
        Index("ix_label_run", "run_id", "round"),
        Index("ix_label_rejected", "is_rejected", "image_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("image.id"))
    tag: Mapped[str]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    round: Mapped[int] = mapped_column(default=0)
    maker: Mapped[str]
    model_digest: Mapped[str] = mapped_column(default="")
    runtime: Mapped[str] = mapped_column(default="", server_default="")
    prompts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    path: Mapped[str]
    content_sha256: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("label_version.id"))
    created_at: Mapped[float]
    is_rejected: Mapped[bool] = mapped_column(default=False, server_default=false())
    info: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)

    @property
    def state(self) -> str:
        """rejected, approved, corrected or pseudo; a viewer's own tag is pseudo, since nobody vouches for it."""
        return STATE_REJECTED if self.is_rejected else STATE_OF_TAG.get(self.tag, STATE_OF_TAG[TAG_ORIGINAL])


class QualityRow(Base):
    """The quality of one structure (index 0: of the whole label) of one label version.

    The expected Dice was calibrated with `n_approved` approved labels; 0: it is a prior.
    """

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
    n_approved: Mapped[int] = mapped_column(default=0, server_default="0")
    features: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    reasons: Mapped[list[str]] = mapped_column(JSON, default=list)
    created_at: Mapped[float]


class ModelRow(Base):
    """A trained or imported student. `status`: candidate, promoted, refused or retired."""

    __tablename__ = "model"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    path: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    round: Mapped[int] = mapped_column(default=0)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[float]


class GateLabelRow(Base):
    """A structure of a label that was trusted before the first correction under a protocol: until enough labels are
    approved, the promotion gate judges by these. Rows are written once for a protocol and never changed.
    """

    __tablename__ = "gate_label"

    protocol_digest: Mapped[str] = mapped_column(primary_key=True)
    label_version_id: Mapped[int] = mapped_column(ForeignKey("label_version.id"), primary_key=True)
    structure_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class RunRow(Base):
    """One run of the loop: what it was asked to do, the images and approvals at its start, and how far it is."""

    __tablename__ = "run"

    id: Mapped[int] = mapped_column(primary_key=True)
    config_digest: Mapped[str] = mapped_column(index=True)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    snapshot: Mapped[dict[str, Any]] = mapped_column(JSON)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    is_finished: Mapped[bool] = mapped_column(default=False)
    started_at: Mapped[float]


class LeaseRow(Base):
    """An image reserved for one annotator until `expires_at` (seconds since the epoch), and why it was served."""

    __tablename__ = "lease"

    image_id: Mapped[str] = mapped_column(ForeignKey("image.id"), primary_key=True)
    holder: Mapped[str]
    expires_at: Mapped[float] = mapped_column(index=True)
    why: Mapped[str] = mapped_column(default="", server_default="")


class ReviewRow(Base):
    """What a person decided about a label: `decision` is approved, rejected or comment; `reason` is theirs."""

    __tablename__ = "review"
    __table_args__ = (Index("ix_review_image", "image_id", "id"), Index("ix_review_label", "label_version_id", "id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(ForeignKey("image.id"))
    label_version_id: Mapped[int | None] = mapped_column(ForeignKey("label_version.id"))
    decision: Mapped[str]
    reviewer: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float]


class AuditRow(Base):
    """One event. `hash` is over the row and the hash before it, `details` is canonical JSON, and ids have no gap."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_image", "image_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float]
    event: Mapped[str]
    actor: Mapped[str]
    image_id: Mapped[str | None]
    label_version_id: Mapped[int | None]
    details: Mapped[str] = mapped_column(default="{}")
    hash: Mapped[str]


class AuditHeadRow(Base):
    """How long the audit log is and how it ends, so that rows taken off its end are missed."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n_rows: Mapped[int]
    hash: Mapped[str]
