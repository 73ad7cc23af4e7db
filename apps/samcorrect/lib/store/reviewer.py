"""`segmentationMeta`, by which 3D Slicer's MONAI Label Reviewer reads and writes what people decided about a label.

It is made from the ledger and never stored: status "approved" approves, "flagged" rejects, a new comment is a comment.
"""

from collections.abc import Mapping

from monailabel.config import settings as host_settings

from samcorrect.lib.errors import RequestError
from samcorrect.lib.store.labels import LabelStore
from samcorrect.lib.store.records.audit import MAX_NAME
from samcorrect.lib.store.records.listing import APPROVED, FLAGGED, META, segmentation_meta
from samcorrect.lib.store.schema import LabelVersionRow, ReviewRow

# The Reviewer lets a label be flagged without a word; a rejection has a reason.
NO_REASON = "flagged in Slicer's Reviewer without a comment"


def take_meta(
    store: LabelStore, label: LabelVersionRow, review: ReviewRow | None, meta: object, user: str
) -> LabelVersionRow:
    """Do what a `segmentationMeta` asks for that the ledger does not say yet; the Reviewer sends all keys every time.

    Args:
        store: The store.
        label: The label that it is about.
        review: The last decision about it, or None.
        meta: As the Reviewer sent it.
        user: Who sends it. Where nobody has to log in, its `approvedBy` says so first.

    Returns:
        The version that what else was noted belongs to: the approved one, else `label`.

    Raises:
        RequestError: It is no JSON object of strings.
        ConflictError: Somebody else decided in the meantime.
    """
    if not isinstance(meta, Mapping):
        raise RequestError(f"`{META}` is a JSON object; got {meta!r:.80}")
    wanted = {key: meta.get(key) or "" for key in ("status", "approvedBy", "comment")}
    for key, value in wanted.items():
        if not isinstance(value, str):
            raise RequestError(f"`{META}.{key}` is a text; got {value!r:.80}")
    known = segmentation_meta(label, review)
    named = wanted["approvedBy"].strip()
    reviewer = (user if host_settings.MONAI_LABEL_AUTH_ENABLE else named or user)[:MAX_NAME]
    comment = " ".join(wanted["comment"].split())
    is_new = comment not in ("", known["comment"])
    is_known = known["status"] == APPROVED and known["approvedBy"] in (reviewer, named)
    if wanted["status"] == APPROVED and not is_known:
        # Whoever approves what is shown as flagged means it.
        return store.approve_label(label, user=reviewer, comment=comment if is_new else "", even_rejected=True)
    if wanted["status"] == FLAGGED and not label.is_rejected:
        store.ledger.reject(label.image_id, label.id, reviewer=reviewer, reason=comment or NO_REASON)
    elif is_new:
        store.ledger.comment(label.image_id, label.id, reviewer=reviewer, text=comment)
    return label
