"""`samcorrect models`: which students and SAM models there are, which are used, and how they come and go."""

import argparse
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from samcorrect import commands_sam
from samcorrect.console import print_table, shown
from samcorrect.lib.loop import workspace as ws
from samcorrect.lib.loop.models import export_model, import_model, promote_model, roll_back_model
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.records.models import PROMOTED_BY
from samcorrect.lib.store.schema import ModelRow

# Columns of a table that goes into a file or a pipe.
WIDE = 200
# Of a digest that is shown.
SHORT_DIGEST = 12


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Run `samcorrect models ACTION`; returns the exit code."""
    actions: dict[str, Callable[[argparse.Namespace, ws.Workspace], int | None]] = {
        "list": _list,
        "promote": _promote,
        "rollback": _rollback,
        "import": _import,
        "export": _export,
        "add": commands_sam.add,
        "verify": commands_sam.verify,
    }
    return actions[parsed.action](parsed, ws.open_workspace(parsed.studies, settings)) or 0


def _list(_parsed: argparse.Namespace, workspace: ws.Workspace) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    rows = workspace.store.ledger.models()
    console.print(_student_table(rows) if rows else "no student was trained or imported yet: samcorrect train")
    commands_sam.list_models(workspace)


def _student_table(rows: list[ModelRow]) -> Table:
    table = Table("student", "status", "promoted by", "round", "Dice", "before", "labels", "when", "reason", box=None)
    for row in rows:
        told = row.metrics
        figures = (shown(told.get("dice"), ""), shown(told.get("dice_before"), ""), str(told.get("n_labels", "")))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created_at))
        names = (row.digest[:SHORT_DIGEST], row.status, escape(told.get(PROMOTED_BY, "")), str(row.round))
        table.add_row(*names, *figures, when, escape(told.get("reason", "")))
    return table


def _promote(parsed: argparse.Namespace, workspace: ws.Workspace) -> None:
    row = promote_model(workspace, parsed.digest, by=parsed.by)
    print(f"the student {row.digest[:SHORT_DIGEST]} is in use from now on")


def _rollback(parsed: argparse.Namespace, workspace: ws.Workspace) -> None:
    row = roll_back_model(workspace, by=parsed.by)
    print(f"the student {row.digest[:SHORT_DIGEST]} is in use again")


def _import(parsed: argparse.Namespace, workspace: ws.Workspace) -> None:
    print_table(import_model(workspace, parsed.file, promote=parsed.promote, by=parsed.by))


def _export(parsed: argparse.Namespace, workspace: ws.Workspace) -> None:
    told = export_model(
        workspace, parsed.out, file_format=parsed.format, prefix=parsed.digest, overwrite=parsed.overwrite
    )
    print_table(told)
