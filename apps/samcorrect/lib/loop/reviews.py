"""What people decide about labels, by image id and version number, and the state that an image is in."""

from samcorrect.lib.errors import RequestError, UnknownLabelError
from samcorrect.lib.loop.versions import version_of
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.schema import TAGS, LabelVersionRow

# Of a reason in the queue's reply; the whole of it is in the label's info.
MAX_WHY = 160


def image_state(workspace: Workspace, image_id: str, *, now: float | None = None) -> str:
    """State of an image, at the cost of a few look-ups.

    Args:
        workspace: The store.
        image_id: The image.
        now: Seconds since the epoch.

    Returns:
        `unlabelled`; `pseudo` or `corrected`, as its best label; `in review` while it is reserved for somebody;
        `approved`; `rejected` where its newest label is, until it has a newer one.

    Raises:
        RequestError, UnknownImageError: No such image.
    """
    return workspace.store.ledger.state(workspace.store.find_image(image_id).id, now=now)


def why_rejected(workspace: Workspace, image_id: str) -> str | None:
    """Who rejected an image's newest label and why, shortened for the queue's reply; None where nobody did."""
    review = workspace.store.ledger.rejection(image_id)
    if review is None:
        return None
    why = f"rejected by {review.reviewer}: {review.reason}"
    return why if len(why) <= MAX_WHY else f"{why[: MAX_WHY - 3]}..."


def reject_label(
    workspace: Workspace, image_id: str, version: int | None = None, *, reviewer: str, reason: str
) -> LabelVersionRow:
    """Reject a version, by default the best one: nothing is learnt from it, and its image goes to the queue's head.

    Raises:
        RequestError: The reviewer or the reason is blank, too long, or holds control characters.
        UnknownImageError, UnknownLabelError: No such image or version.
        LabelError: The version is another image's.
        ConflictError: It is rejected already.
    """
    label = _reviewed(workspace, image_id, version)
    return workspace.store.ledger.reject(image_id, label.id, reviewer=reviewer, reason=reason)


def approve_label(
    workspace: Workspace,
    image_id: str,
    version: int | None = None,
    *,
    reviewer: str,
    comment: str = "",
    expected_best: int | None = None,
    even_rejected: bool = False,
) -> LabelVersionRow:
    """Approve a version, by default `expected_best`, without that the best one, as it is; see
    `LabelStore.approve_label`.

    Raises:
        RequestError: As `reject_label`, or `expected_best` has a tag of a viewer's own and can be no image's best.
        UnknownImageError, UnknownLabelError, LabelError: As `reject_label`, also of `expected_best`.
        ConflictError: The version is rejected and `even_rejected` is not set, or somebody else's final label is newer
            than `expected_best`, the best version that the reviewer saw (by default the version itself).
    """
    label = _reviewed(workspace, image_id, expected_best if version is None else version)
    if expected_best is not None and (seen := version_of(workspace, image_id, expected_best)).tag not in TAGS:
        raise RequestError(
            f"version {expected_best} has the tag {seen.tag!r:.80}, so it is never an image's best label; give as "
            "expected_best the version that the history shows as best"
        )
    return workspace.store.approve_label(
        label, user=reviewer, comment=comment, expected_best=expected_best, even_rejected=even_rejected
    )


def comment_on_label(
    workspace: Workspace, image_id: str, version: int | None = None, *, reviewer: str, text: str
) -> None:
    """Keep a comment on a version, by default the best one. Raises as `reject_label`, but for ConflictError."""
    label = _reviewed(workspace, image_id, version)
    workspace.store.ledger.comment(image_id, label.id, reviewer=reviewer, text=text)


def _reviewed(workspace: Workspace, image_id: str, version: int | None) -> LabelVersionRow:
    if version is not None:
        return version_of(workspace, image_id, version)
    best = workspace.store.ledger.best_label(workspace.store.find_image(image_id).id, with_rejected=True)
    if best is None:
        raise UnknownLabelError(f"{image_id} has no label yet, so there is nothing to decide about")
    return best
