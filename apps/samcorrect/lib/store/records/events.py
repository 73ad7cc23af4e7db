"""What the audit log tells: the names of its events, what it says of a label version, and how a row is sealed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

EVENT_MADE, EVENT_CORRECTED, EVENT_SUBMITTED = "label made", "label corrected", "label submitted"
EVENT_SCORED, EVENT_RESTORED = "label scored", "label restored"
EVENT_APPROVED, EVENT_REJECTED, EVENT_COMMENT = "label approved", "label rejected", "comment"
EVENT_PROMOTED, EVENT_REFUSED_MODEL = "model promoted", "model refused"
# An image that the promotion gate judges by from now on, so that nothing learns from it.
EVENT_HELD_OUT = "image held out"
EVENT_STARTED, EVENT_REFUSED_REQUEST = "started", "request refused"
# What a ledger of a release without an audit log held already.
EVENT_TAKEN_OVER = "taken over"
LABEL_EVENTS = frozenset({EVENT_MADE, EVENT_CORRECTED, EVENT_SUBMITTED, EVENT_RESTORED, EVENT_APPROVED})
# Who does what no person does.
SAMCORRECT = "samcorrect"
# What the first row seals.
GENESIS_HASH = "0" * 64
# Keys of a version's `info` that change after it was entered: what viewers note, and how it fares with the PACS.
LATER = frozenset({"viewer", "pacs"})
SEALED = ("id", "at", "event", "actor", "image_id", "label_version_id", "details")
# Keys of `details` that tell where a label version comes from, and the columns that hold the same.
ORIGIN = {
    "tag": "tag",
    "sha256": "content_sha256",
    "parent": "parent_id",
    "run": "run_id",
    "round": "round",
    "maker": "maker",
    "model": "model_digest",
    "runtime": "runtime",
    "prompts": "prompts",
}


def canonical(value: Any) -> str:
    """A value as the one JSON text, in ASCII, that stands for it. Raises ValueError where it holds nan."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sealed(columns: Mapping[str, Any], previous: str) -> str:
    """The hash of an audit row: SHA-256 over a JSON list of its columns (see SEALED) and of the hash before."""
    return hashlib.sha256(canonical([*(columns[name] for name in SEALED), previous]).encode()).hexdigest()


def label_details(columns: Mapping[str, Any]) -> dict[str, Any]:
    """What the log says of a label version: ORIGIN, and as `info` a digest of all but LATER."""
    # By way of JSON, as the database gives it back.
    info = json.loads(json.dumps({key: value for key, value in (columns["info"] or {}).items() if key not in LATER}))
    told = {key: columns[name] for key, name in ORIGIN.items()}
    return {**told, "info": hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()}
