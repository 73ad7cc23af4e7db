"""The audit log for people and for other programs: what is told at a start, the history of an image, exports."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from samcorrect import __version__
from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.store.records.audit import is_control
from samcorrect.lib.store.records.events import (
    EVENT_APPROVED,
    EVENT_COMMENT,
    EVENT_CORRECTED,
    EVENT_HELD_OUT,
    EVENT_MADE,
    EVENT_REFUSED_REQUEST,
    EVENT_REJECTED,
    EVENT_RESTORED,
    EVENT_SCORED,
    EVENT_STARTED,
    EVENT_SUBMITTED,
    EVENT_TAKEN_OVER,
    SAMCORRECT,
)
from samcorrect.lib.store.schema import TAG_FINAL, AuditRow

FORMATS = ("jsonl", "csv")
COLUMNS = ("id", "at", "event", "actor", "image_id", "label_version_id", "details", "hash")
# A spreadsheet takes a cell that begins so for a formula, which a name must not become.
FORMULA_STARTS = ("=", "+", "-", "@")
SHORT_DIGEST = 8


def audit_start(workspace: Workspace, how: str) -> None:
    """Write to the audit log that samcorrect was started, and with which settings.

    Args:
        workspace: As it was opened.
        how: What was started, for example "serve".
    """
    settings = workspace.settings.model_dump(mode="json", exclude={"ledger_url"})
    settings["ledger"] = "sqlite" if workspace.settings.ledger_url is None else "postgresql"
    protocol = None if workspace.protocol is None else workspace.protocol.digest
    details = {"how": how, "samcorrect": __version__, "settings": settings, "protocol": protocol}
    workspace.store.ledger.audit(EVENT_STARTED, actor=SAMCORRECT, details=details)


def audit_refusal(
    workspace: Workspace, method: str, route: str, status: int, error: str, user: str, *, image_id: str | None = None
) -> None:
    """Write to the audit log that a request on a write endpoint was refused; see `AuditRecords.audit_refusal`."""
    workspace.store.ledger.audit_refusal(method, route, status, error, user, image_id=image_id)


def explain_image(workspace: Workspace, image_id: str) -> Iterator[str]:
    """The history of an image in plain words, a line an event, in local time. Raises as `export_rows`."""
    rows = workspace.store.ledger.audit_rows(workspace.store.find_image(image_id).id)
    return (f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(row.at))}  {explain_row(row)}" for row in rows)


def explain_row(row: AuditRow) -> str:
    """One event in plain words, on one line; of a row that was forged, that it cannot be told."""
    say = SENTENCES.get(row.event)
    try:
        sentence = f"{row.event} by {row.actor}" if say is None else say(row, json.loads(row.details))
    except (AttributeError, KeyError, TypeError, ValueError):
        sentence = f"{row.event} by {row.actor}, with details that cannot be read: run `samcorrect audit verify`"
    return "".join("?" if is_control(character) else character for character in sentence)


def export_rows(workspace: Workspace, file_format: str, image_id: str | None = None) -> Iterator[str]:
    """The audit log as lines of text, each with its line end.

    `jsonl` has a JSON object a row; `csv` the same columns, `details` as JSON, and an apostrophe before a text that a
    spreadsheet would take for a formula. `at` is in seconds since the epoch, as the hashes have it.

    Args:
        workspace: The store.
        file_format: One of FORMATS.
        image_id: Only the rows of this image.

    Raises:
        RequestError: Unknown format, or no image of such an id.
        UnknownImageError: No such image.
    """
    if file_format not in FORMATS:
        raise RequestError(f"the audit log is exported as {' or '.join(FORMATS)}; got {file_format!r:.40}")
    of = None if image_id is None else workspace.store.find_image(image_id).id
    return _lines(workspace, file_format, of)


def _lines(workspace: Workspace, file_format: str, image_id: str | None) -> Iterator[str]:
    if file_format == "csv":
        yield _csv_line(COLUMNS)
    for row in workspace.store.ledger.audit_rows(image_id):
        values = {name: getattr(row, name) for name in COLUMNS}
        if file_format == "csv":
            yield _csv_line(values.values())
        else:
            yield json.dumps(values | {"details": json.loads(row.details)}, ensure_ascii=False) + "\n"


def _csv_line(values: Any) -> str:
    line = io.StringIO()
    cells = [f"'{v}" if isinstance(v, str) and v.startswith(FORMULA_STARTS) else v for v in values]
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _made(row: AuditRow, told: dict[str, Any]) -> str:
    maker = told["maker"].rpartition(":")[2]
    weights = f"weights {told['model'][:SHORT_DIGEST]}" if told["model"] else ""
    how = ", ".join(part for part in (weights, told["runtime"]) if part)
    boxes = [
        f"the box {', '.join(f'{v:.0f}' for v in prompt['box'])} of {name!r}"
        for name, prompt in told["prompts"].items()
        if isinstance(prompt, dict) and prompt.get("box")
    ]
    source = f" from {' and '.join(boxes)}" if boxes else ""
    return f"{maker}{f' ({how})' if how else ''} made version {row.label_version_id}{source}{_thrown_out(told)}"


def _corrected(row: AuditRow, told: dict[str, Any]) -> str:
    source = "" if told["parent"] is None else f"version {told['parent']} into "
    at = f" in round {told['round']}" if told["round"] else ""
    why = f" ({'; '.join(told['reasons'])})" if told.get("reasons") else ""
    sentence = f"{told['maker'].replace(':', ' by the preset ')} changed {source}version {row.label_version_id}{at}"
    return f"{sentence}{why}{_thrown_out(told)}"


def _submitted(row: AuditRow, told: dict[str, Any]) -> str:
    what = "which approves the image" if told["tag"] == TAG_FINAL else f"with the tag {told['tag']!r}"
    return f"{row.actor} submitted version {row.label_version_id}, {what}"


def _scored(row: AuditRow, told: dict[str, Any]) -> str:
    if told["score"] is None:
        return f"version {row.label_version_id} was scored, and no score is defined for it"
    expected = told["expected_dice"]
    dice = "" if expected is None else f" (expected Dice {expected:.2f})"
    return f"version {row.label_version_id} got the score {told['score']:.2f}{dice}"


def _restored(row: AuditRow, told: dict[str, Any]) -> str:
    return f"{row.actor} brought version {told['parent']} back as version {row.label_version_id}"


def _approved(row: AuditRow, told: dict[str, Any]) -> str:
    parent, version = told["parent"], row.label_version_id
    return f"{row.actor} approved version {parent} without a change, as version {version}{_because(told)}"


def _taken_over(row: AuditRow, told: dict[str, Any]) -> str:
    made = f"version {row.label_version_id} ({told['tag']}, by {told['maker']})"
    return f"{made} was there when the log began"


def _refused(row: AuditRow, told: dict[str, Any]) -> str:
    more = f"; {told['unwritten']} more were refused before" if "unwritten" in told else ""
    return f"{told['method']} {told['route']} of {row.actor} was refused: {told['status']} {told['error']}{more}"


def _thrown_out(told: dict[str, Any]) -> str:
    return ", rejected at once: it equals a version that a person rejected" if told.get("rejected") else ""


def _because(told: dict[str, Any]) -> str:
    return f": {told['reason']}" if told["reason"] else ""


SENTENCES: dict[str, Callable[[AuditRow, dict[str, Any]], str]] = {
    EVENT_MADE: _made,
    EVENT_CORRECTED: _corrected,
    EVENT_SUBMITTED: _submitted,
    EVENT_SCORED: _scored,
    EVENT_RESTORED: _restored,
    EVENT_APPROVED: _approved,
    EVENT_REJECTED: lambda row, told: f"{row.actor} rejected version {row.label_version_id}{_because(told)}",
    EVENT_COMMENT: lambda row, told: f"{row.actor} said of version {row.label_version_id}{_because(told)}",
    EVENT_HELD_OUT: lambda row, told: "the image is held out of training from now on, to judge models by",
    EVENT_TAKEN_OVER: _taken_over,
    EVENT_REFUSED_REQUEST: _refused,
}
