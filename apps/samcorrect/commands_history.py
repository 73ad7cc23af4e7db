"""The commands about what was: versions, restore, diff, backup, restore-backup, audit."""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from samcorrect.console import EXIT_FAULT, show_progress, shown, tell_set_aside
from samcorrect.lib.errors import SettingsError, StoreError
from samcorrect.lib.loop import workspace as ws
from samcorrect.lib.loop.audit import explain_image, export_rows
from samcorrect.lib.loop.versions import diff_versions, list_versions, restore_version
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.backup import restore_backup as restore_from
from samcorrect.lib.store.backup import write_backup
from samcorrect.lib.store.files import write_atomically
from samcorrect.lib.store.schema import STATE_REJECTED
from samcorrect.lib.store.sources import open_studies

# Lines that `audit verify` prints of one kind.
MAX_DIFFERENCES = 20
# Columns of a table that goes into a file or a pipe.
WIDE = 200


def versions(parsed: argparse.Namespace, settings: Settings) -> int:
    """List every version of an image's label."""
    told = list_versions(ws.open_workspace(parsed.studies, settings), parsed.image)
    if parsed.json:
        print(json.dumps(told, indent=1))
        return 0
    table = Table("version", "tag", "score", "made by", "round", "from", "when", "model", "how", box=None)
    for row in told:
        number, score = f"{row['version']}{' best' if row['is_best'] else ''}", shown(row["score"], "not scored")
        parent = "" if row["parent"] is None else str(row["parent"])
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))
        made = (row["maker"], str(row["round"]), parent, when, row["model_digest"][:12], row["runtime"])
        tag = f"{row['tag']}, rejected" if row["state"] == STATE_REJECTED else row["tag"]
        table.add_row(number, tag, score, *made)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table if told else f"{parsed.image} has no label yet")
    return 0


def restore(parsed: argparse.Namespace, settings: Settings) -> int:
    """Make an old version the best label again."""
    workspace = ws.open_workspace(parsed.studies, settings)
    row = restore_version(workspace, parsed.image, parsed.version, user=parsed.by)
    print(f"version {parsed.version} of {parsed.image} is the best label again, as version {row.id} ({row.tag})")
    return 0


def diff(parsed: argparse.Namespace, settings: Settings) -> int:
    """Compare two versions of a label."""
    workspace = ws.open_workspace(parsed.studies, settings)
    told = diff_versions(workspace, parsed.image, parsed.first, parsed.second)
    if parsed.json:
        print(json.dumps(told, indent=1))
        return 0
    for row in told:
        changes = f"{row['n_added_vox']} voxels added, {row['n_removed_vox']} removed ({row['changed_mm3']:g} mm3)"
        print(f"{row['structure']:24s} Dice {shown(row['dice'])}  {changes}")
    if not told:
        print("both are empty")
    return 0


def backup(parsed: argparse.Namespace, settings: Settings) -> int:
    """Write a backup."""
    store = ws.open_workspace(parsed.studies, settings).store
    with show_progress() as progress:
        told = write_backup(store, parsed.file, progress=partial(progress, "backing up files"))
    print(f"{told['n_labels']} label file(s), the ledger and the models are in {parsed.file}; the images are not")
    return tell_set_aside([(name, "gone or changed on the disk") for name in told["damaged"]])


def restore_backup(parsed: argparse.Namespace, settings: Settings) -> int:
    """Make the state folder from a backup."""
    _, state_dir = open_studies(parsed.studies, settings.state)
    with show_progress() as progress:
        checking = partial(progress, "checking labels")
        told = restore_from(parsed.file, state_dir, settings.ledger_url, progress=checking)
    print(f"{told['n_labels']} label file(s), the ledger and the models are back in {state_dir}")
    return tell_set_aside([(name, "was damaged before the backup") for name in told["damaged"]])


def audit(parsed: argparse.Namespace, settings: Settings) -> int:
    """Verify, export or explain the audit log."""
    workspace = ws.open_workspace(parsed.studies, settings)
    if parsed.action == "verify":
        return _verify(workspace, parsed.noted)
    if parsed.action == "explain":
        lines = explain_image(workspace, parsed.image)
        told = [f"{line}\n" for line in lines] or [f"nothing has happened to {parsed.image} yet\n"]
    else:
        told = export_rows(workspace, parsed.format, parsed.image)
    if parsed.action == "export" and parsed.out is not None:
        if parsed.out.exists():
            raise StoreError(f"{parsed.out} exists already, and an export is never overwritten; give another name")
        write_atomically(parsed.out, lambda path: _write_lines(path, told))
        return 0
    sys.stdout.writelines(told)
    return 0


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def _verify(workspace: ws.Workspace, noted: str | None) -> int:
    number, _, digest = (noted or "").partition(":")
    if noted is not None and not (number.isdecimal() and digest):
        raise SettingsError(
            f"--noted takes N:HASH, as an earlier `samcorrect audit verify` printed it; got {noted!r:.80}"
        )
    verdict = workspace.store.ledger.verify_audit((int(number), digest) if noted is not None else None)
    if verdict.first_broken is not None:
        print(f"BROKEN at row {verdict.first_broken}: {verdict.why}")
    for difference in verdict.differences[:MAX_DIFFERENCES]:
        print(f"DIFFERENT: {difference}")
    if len(verdict.differences) > MAX_DIFFERENCES:
        print(f"... and {len(verdict.differences) - MAX_DIFFERENCES} more")
    if not verdict.is_whole:
        return EXIT_FAULT
    print(f"the log is whole and leads to what the ledger holds; its end is {verdict.n_rows}:{verdict.head}")
    return 0
