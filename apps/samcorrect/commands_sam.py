"""The commands about SAM models: `samcorrect models list`, `add` and `verify`."""

import argparse
import shlex

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from samcorrect.console import EXIT_FAULT, print_table
from samcorrect.lib.errors import DependencyError, WeightsError
from samcorrect.lib.loop.sam_models import add_model, known_models, verify_model
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.architectures import ARCHITECTURES


def list_models(workspace: Workspace) -> None:
    """Print the SAM models, where their weights are, and which one is in use."""
    print("SAM models:")
    studies = shlex.quote(workspace.store.studies.location)
    for entry in known_models(workspace.store.state_dir).values():
        used = "*" if entry.name == workspace.settings.sam_model else " "
        is_here = entry.weights is not None and entry.weights.is_file()
        by_hand = "" if entry.sha256 else " --weights FILE"
        where = "weights are here" if is_here else f"samcorrect models add {entry.name} --studies {studies}{by_hand}"
        prompts = ", ".join(ARCHITECTURES[entry.architecture].prompts)
        print(f"{used} {entry.name:14s}  {entry.architecture:12s}  {entry.licence:12s}  {prompts:16s}  {where}")


def add(parsed: argparse.Namespace, workspace: Workspace) -> None:
    """Bring the weights of a SAM model."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as display:
        task = display.add_task(parsed.name, total=None)
        entry = add_model(
            workspace.store.state_dir,
            parsed.name,
            architecture=parsed.architecture,
            weights=parsed.weights,
            sha256=parsed.sha256,
            licence=parsed.licence,
            progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    told = {"model": entry.name, "architecture": entry.architecture, "SHA-256": entry.sha256, "licence": entry.licence}
    print_table(told | {"use it": f"SAMCORRECT_SAM_MODEL={entry.name}"})


def verify(_parsed: argparse.Namespace, workspace: Workspace) -> int:
    """Hash and load the weights of every SAM model that is here; returns 1 where one is not what it should be."""
    code = 0
    for entry in known_models(workspace.store.state_dir).values():
        if entry.weights is None:
            print(f"-    {entry.name}: its weights were not brought")
            continue
        try:
            print(f"ok   {entry.name}: SHA-256 {verify_model(entry)[:12]}..., loads")
        except (WeightsError, DependencyError) as error:
            print(f"FAIL {entry.name}: {error}")
            code = EXIT_FAULT
    return code
