"""What the commands of `samcorrect` do; kept apart from the parser so that --help is instant."""

import argparse
import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from samcorrect.lib.errors import SettingsError, StoreError
from samcorrect.lib.loop import workspace as ws
from samcorrect.lib.loop.arms import compare
from samcorrect.lib.loop.audit import explain_image, export_rows
from samcorrect.lib.loop.cohort import best_labels
from samcorrect.lib.loop.correction import correct_store
from samcorrect.lib.loop.doctor import check_installation
from samcorrect.lib.loop.evaluation import GroundTruth, evaluate_quality, label_dice
from samcorrect.lib.loop.exchange import export_labels, import_labels, import_model
from samcorrect.lib.loop.outcome import write_report
from samcorrect.lib.loop.progress import ProgressFile
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.queue import next_image
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.loop.scoring import score_store
from samcorrect.lib.loop.versions import diff_versions, list_versions, restore_version
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.backup import restore_backup, write_backup
from samcorrect.lib.store.files import write_atomically
from samcorrect.lib.store.schema import STATE_REJECTED
from samcorrect.lib.store.sources import open_studies
from samcorrect.lib.store.studies import LocalStudies

# Done, but some input could not be used.
EXIT_SET_ASIDE = 3
EXIT_FAULT = 1
# Lines that `audit verify` prints of one kind.
MAX_DIFFERENCES = 20
# The process that started a served run is gone.
EXIT_ORPHANED = 75
STDIN = 0
# Columns of a table that goes into a file or a pipe.
WIDE = 200
# The demo has to end within minutes on two cores.
DEMO_ROUNDS, DEMO_STEPS, DEMO_CANDIDATES = 1, 120, 8


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Run the parsed command; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "demo": _demo,
        "loop": _loop,
        "serve": _serve,
        "pseudo-label": lambda p, s: _stage(p, s, pseudo_label_store),
        "score": lambda p, s: _stage(p, s, score_store),
        "correct": lambda p, s: _stage(p, s, correct_store),
        "train": lambda p, s: _stage(p, s, train_student),
        "next": _next,
        "evaluate": _evaluate,
        "doctor": _doctor,
        "import-labels": _import_labels,
        "export": _export,
        "models": _models,
        "versions": _versions,
        "restore": _restore,
        "diff": _diff,
        "backup": _backup,
        "restore-backup": _restore_backup,
        "audit": _audit,
    }
    return commands[parsed.command](parsed, settings)


def _demo(parsed: argparse.Namespace, settings: Settings) -> int:
    source: Path = parsed.sample_data
    if not (source / "protocol.yaml").is_file():
        raise StoreError(
            f"no sample data in {source}; run the demo from the checkout of samcorrect, or give --sample-data"
        )
    studies = parsed.out / "studies"
    shutil.copytree(source / "images", studies, dirs_exist_ok=True)
    shutil.copy(source / "protocol.yaml", studies)
    parsed.studies, parsed.ground_truth, parsed.served = str(studies), source / "labels", False
    parsed.test_images, parsed.test_ground_truth = source / "test-images", source / "test-labels"
    update = {"rounds": DEMO_ROUNDS, "student_steps": DEMO_STEPS, "n_candidates": DEMO_CANDIDATES}
    return _loop(parsed, settings.model_copy(update=update))


def _loop(parsed: argparse.Namespace, settings: Settings) -> int:
    if (parsed.test_images is None) != (parsed.test_ground_truth is None):
        raise SettingsError("--test-images and --test-ground-truth go together")
    if parsed.test_images is not None and parsed.ground_truth is None:
        raise SettingsError("--test-images needs --ground-truth too: the supervised arm learns from it")
    truth = GroundTruth(parsed.ground_truth) if parsed.ground_truth else None
    test = (parsed.test_images, GroundTruth(parsed.test_ground_truth)) if parsed.test_images else None
    workspace = ws.open_workspace(parsed.studies, settings)
    _require_outside(parsed.out, workspace)
    # Before hours of work, not after them.
    if truth is not None:
        truth.check(workspace.store.studies)
    if test is not None:
        test[1].check(LocalStudies(test[0]))
    served = ProgressFile(parsed.out, workspace.settings.rounds) if parsed.served else None
    if served is not None:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with _progress(served) as progress:
        result = run_loop(workspace, progress=progress)
        comparison = None
        if truth is not None:
            with result.timed("compare"):
                comparison = compare(workspace, result, truth, out_dir=parsed.out, test=test, progress=progress)
        json_path, html_path = write_report(workspace, result, parsed.out, truth=truth, comparison=comparison)
    if served is not None:
        served.finish()
    report = json.loads(json_path.read_text(encoding="utf-8"))
    for name, arm in report["arms"].items():
        low, high = (_shown(bound) for bound in arm["dice_ci95"])
        dice = f"Dice {_shown(arm['dice_mean'])} [{low}, {high}]"
        print(f"{name:24s} {dice}  surface Dice {_shown(arm['surface_dice_mean'])}  n {arm['n']}")
    code = _tell_set_aside([(fault["image"], fault["reason"]) for fault in report["quarantined"]])
    print(f"report: {html_path}\nserve the result: {report['serve_command'].replace('samcorrect', _program(), 1)}")
    return code


def _serve(parsed: argparse.Namespace, settings: Settings) -> int:
    # Importing the host takes seconds and prints; no other command needs it.
    from samcorrect.lib.server.serve import serve

    serve(settings, parsed.studies, parsed.host, parsed.port)
    return 0


def _stage(parsed: argparse.Namespace, settings: Settings, stage: Callable[..., dict]) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    with _progress() as progress:
        told = stage(workspace, progress=progress)
    _print_table({key: value for key, value in told.items() if key != "losses"})
    return _tell_set_aside(workspace.store.ledger.quarantined())


def _next(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    chosen = next_image(workspace, parsed.holder, strategy=parsed.strategy)
    if chosen is None:
        print("no image waits: all are approved or reserved")
        return 0
    told = {"image": chosen.image_id, "why": chosen.why, "score": chosen.score, "expected Dice": chosen.expected_dice}
    _print_table(told | {f"reason {n}": reason for n, reason in enumerate(chosen.reasons, start=1)})
    return 0


def _evaluate(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    protocol, ledger = workspace.require_protocol(), workspace.store.ledger
    labels = best_labels(workspace)
    true_dice = label_dice(workspace, labels, GroundTruth(parsed.ground_truth))
    if not true_dice:
        raise StoreError(
            f"no image with a label has ground truth in {parsed.ground_truth}; a ground truth is named like its image"
        )
    for k, name in enumerate(protocol.names):
        values = np.array([dice[k] for dice in true_dice.values()])
        print(f"{name:24s} Dice {np.nanmean(values):.3f} (SD {np.nanstd(values):.3f})  n {np.isfinite(values).sum()}")
    scores = {}
    for image_id in true_dice:
        rows = ledger.quality(labels[image_id].id)
        scores[image_id] = [rows[i].score if i in rows else None for i in protocol.indices]
    ranking = evaluate_quality(scores, true_dice, protocol.names)
    _print_table({key: value for key, value in ranking.items() if key != "structures"})
    return 0


def _doctor(parsed: argparse.Namespace, settings: Settings) -> int:
    checks = check_installation(settings, parsed.studies)
    if parsed.json:
        print(json.dumps([{"name": c.name, "is_ok": c.is_ok, "message": c.message} for c in checks], indent=1))
    else:
        for check in checks:
            print(f"{'ok  ' if check.is_ok else 'FAIL'} {check.name}: {check.message}")
    return 0 if all(check.is_ok for check in checks) else 1


def _import_labels(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    with _progress() as progress:
        told = import_labels(workspace, parsed.folder, approved_by=parsed.approved_by, progress=progress)
    print(f"{told['n_imported']} label(s) imported")
    for name in told["unmatched"]:
        print(f"no image of this name: {name}")
    for name, reason in told["refused"]:
        print(f"refused: {name}: {reason}", file=sys.stderr)
    return EXIT_SET_ASIDE if told["refused"] else 0


def _export(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    _require_outside(parsed.out, workspace)
    states = [state.strip() for state in parsed.states.split(",") if state.strip()]
    with _progress() as progress:
        told = export_labels(workspace, parsed.out, file_format=parsed.format, states=states, progress=progress)
    print(f"{told['n_exported']} label(s) exported; where each comes from: {told['manifest']}")
    return _tell_set_aside(told["refused"])


def _models(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    if parsed.action == "import":
        if parsed.file is None:
            raise SettingsError("samcorrect models import FILE: the file is missing")
        _print_table(import_model(workspace, parsed.file, promote=parsed.promote))
        return 0
    for row in workspace.store.ledger.models():
        print(f"{row.digest[:12]}  {row.status:9s}  round {row.round}  {row.metrics.get('reason', '')}")
    return 0


def _versions(parsed: argparse.Namespace, settings: Settings) -> int:
    told = list_versions(ws.open_workspace(parsed.studies, settings), parsed.image)
    if parsed.json:
        print(json.dumps(told, indent=1))
        return 0
    table = Table("version", "tag", "score", "made by", "round", "from", "when", "model", "how", box=None)
    for row in told:
        number, score = f"{row['version']}{' best' if row['is_best'] else ''}", _shown(row["score"], "not scored")
        parent = "" if row["parent"] is None else str(row["parent"])
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))
        made = (row["maker"], str(row["round"]), parent, when, row["model_digest"][:12], row["runtime"])
        tag = f"{row['tag']}, rejected" if row["state"] == STATE_REJECTED else row["tag"]
        table.add_row(number, tag, score, *made)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table if told else f"{parsed.image} has no label yet")
    return 0


def _restore(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    row = restore_version(workspace, parsed.image, parsed.version, user=parsed.by)
    print(f"version {parsed.version} of {parsed.image} is the best label again, as version {row.id} ({row.tag})")
    return 0


def _diff(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    told = diff_versions(workspace, parsed.image, parsed.first, parsed.second)
    if parsed.json:
        print(json.dumps(told, indent=1))
        return 0
    for row in told:
        changes = f"{row['n_added_vox']} voxels added, {row['n_removed_vox']} removed ({row['changed_mm3']:g} mm3)"
        print(f"{row['structure']:24s} Dice {_shown(row['dice'])}  {changes}")
    if not told:
        print("both are empty")
    return 0


def _backup(parsed: argparse.Namespace, settings: Settings) -> int:
    store = ws.open_workspace(parsed.studies, settings).store
    with _progress() as progress:
        told = write_backup(store, parsed.file, progress=partial(progress, "backing up files"))
    print(f"{told['n_labels']} label file(s), the ledger and the models are in {parsed.file}; the images are not")
    return _tell_set_aside([(name, "gone or changed on the disk") for name in told["damaged"]])


def _restore_backup(parsed: argparse.Namespace, settings: Settings) -> int:
    _, state_dir = open_studies(parsed.studies, settings.state)
    with _progress() as progress:
        checking = partial(progress, "checking labels")
        told = restore_backup(parsed.file, state_dir, settings.ledger_url, progress=checking)
    print(f"{told['n_labels']} label file(s), the ledger and the models are back in {state_dir}")
    return _tell_set_aside([(name, "was damaged before the backup") for name in told["damaged"]])


def _audit(parsed: argparse.Namespace, settings: Settings) -> int:
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


def _require_outside(out: Path, workspace: ws.Workspace) -> None:
    """Raises SettingsError where label files in `out` would be taken for images of the studies."""
    studies, state_dir = workspace.store.studies, workspace.store.state_dir
    if out.resolve().is_relative_to(state_dir.resolve()):
        return
    if isinstance(studies, LocalStudies) and out.resolve().is_relative_to(studies.folder.resolve()):
        raise SettingsError(
            f"--out {out} lies in the studies folder {studies.folder}, where labels would be taken for images"
        )


def _tell_set_aside(faults: Sequence[tuple[str, str]]) -> int:
    """Print what could not be used; returns the exit code, which is not 0 although the others were processed."""
    for name, reason in faults:
        print(f"set aside: {name}: {reason}")
    return EXIT_SET_ASIDE if faults else 0


def _program() -> str:
    """How this program was called, so that the command it prints works outside of its virtual environment too."""
    path = Path(sys.argv[0])
    return shlex.quote(os.path.relpath(path)) if path.is_absolute() and path.is_file() else "samcorrect"


def _shown(value: float | None, otherwise: str = "not defined") -> str:
    return otherwise if value is None else f"{value:.3f}"


def _print_table(told: dict) -> None:
    width = max(len(str(key)) for key in told)
    for key, value in told.items():
        print(f"{key!s:{width}s}  {value}")


def _end_with_stdin() -> None:
    """End this process when the one that holds the other end of its standard input ends, however that ends."""
    # Not sys.stdin, whose lock this thread would still hold at the end of the run: Python aborts on that.
    while os.read(STDIN, 1):
        pass
    os._exit(EXIT_ORPHANED)


@contextmanager
def _progress(also: ws.Progress | None = None) -> Iterator[ws.Progress]:
    """A bar for each stage on a terminal; a line for each finished stage elsewhere; `also` is told the same."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:

        def show(stage: str, done: int, total: int) -> None:
            if also is not None:
                also(stage, done, total)
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=total)
            display.update(bars[stage], completed=done, total=total)
            if done == total and not console.is_terminal:
                console.print(f"{stage}: {done} of {total}", highlight=False)

        yield show
