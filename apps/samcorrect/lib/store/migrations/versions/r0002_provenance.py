"""What a label was made on, which case an image is of, why it was served, and indices for queue and runs."""

import random

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; the runtime moves out of a label's info, and an image without a folder is its own case."""
    op.add_column("image", sa.Column("case_id", sa.String, nullable=False, server_default=""))
    op.add_column("image", sa.Column("draw", sa.Double, nullable=False, server_default="0"))
    op.add_column("label_version", sa.Column("runtime", sa.String, nullable=False, server_default=""))
    op.add_column("lease", sa.Column("why", sa.String, nullable=False, server_default=""))
    op.drop_index("ix_image_queue", "image")
    op.create_index("ix_image_queue", "image", ["status", "is_approved", "queue_score", "id"])
    op.create_index("ix_image_draw", "image", ["status", "is_approved", "draw"])
    op.create_index("ix_label_run", "label_version", ["run_id", "round"])
    op.create_index("ix_label_tag", "label_version", ["tag", "image_id"])
    op.drop_index("ix_label_version_image_id", "label_version")
    image = sa.table("image", *(sa.column(name) for name in ("id", "case_id", "draw")))
    connection = op.get_bind()
    for (image_id,) in connection.execute(sa.select(image.c.id)).all():
        case_id = image_id.rpartition("/")[0] or image_id
        values = {"case_id": case_id, "draw": random.random()}
        connection.execute(sa.update(image).where(image.c.id == image_id).values(values))
    label = sa.table(
        "label_version", sa.column("id", sa.Integer), sa.column("runtime", sa.String), sa.column("info", sa.JSON)
    )
    for label_id, info in connection.execute(sa.select(label.c.id, label.c.info)).all():
        if runtime := info.pop("runtime", ""):
            values = {"runtime": runtime, "info": info}
            connection.execute(sa.update(label).where(label.c.id == label_id).values(values))
