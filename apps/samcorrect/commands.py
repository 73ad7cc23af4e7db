"""What the commands of `samcorrect` do; kept apart from the parser so that --help is instant."""

import argparse
import json
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from samcorrect import commands_history as history
from samcorrect import commands_models
from samcorrect.console import EXIT_SET_ASIDE, print_table, show_progress, shown, tell_set_aside
from samcorrect.lib.errors import LabelError, SettingsError, StoreError
from samcorrect.lib.loop import workspace as ws
from samcorrect.lib.loop.arms import compare
from samcorrect.lib.loop.cohort import NO_LABELS, best_labels
from samcorrect.lib.loop.correction import correct_store
from samcorrect.lib.loop.doctor import check_installation
from samcorrect.lib.loop.evaluation import GroundTruth, evaluate_quality, label_dice
from samcorrect.lib.loop.exchange import export_labels, import_labels
from samcorrect.lib.loop.explain import write_explanation
from samcorrect.lib.loop.outcome import write_report
from samcorrect.lib.loop.progress import ProgressFile
from samcorrect.lib.loop.pseudo_label import pseudo_label_store
from samcorrect.lib.loop.queue import next_image
from samcorrect.lib.loop.rescoring import score_store
from samcorrect.lib.loop.retraining import train_student
from samcorrect.lib.loop.rounds import run_loop
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.studies import LocalStudies

# The process that started a served run is gone.
EXIT_ORPHANED = 75
STDIN = 0
# The demo has to end within minutes on two cores.
DEMO_ROUNDS, DEMO_STEPS, DEMO_CANDIDATES = 1, 120, 8


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Run the parsed command; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "demo": _demo,
        "loop": _loop,
        "serve": _serve,
        "pseudo-label": lambda p, s: _stage(p, s, pseudo_label_store),
        "score": _score,
        "correct": lambda p, s: _stage(p, s, correct_store),
        "train": lambda p, s: _stage(p, s, train_student),
        "next": _next,
        "evaluate": _evaluate,
        "doctor": _doctor,
        "import-labels": _import_labels,
        "export": _export,
        "models": commands_models.run,
        "versions": history.versions,
        "restore": history.restore,
        "diff": history.diff,
        "backup": history.backup,
        "restore-backup": history.restore_backup,
        "audit": history.audit,
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
        truth.check(workspace.store.studies, workspace.require_protocol())
    if test is not None:
        test[1].check(LocalStudies(test[0]), workspace.require_protocol())
    served = ProgressFile(parsed.out, workspace.settings.rounds) if parsed.served else None
    if served is not None:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with show_progress(served) as progress:
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
        low, high = (shown(bound) for bound in arm["dice_ci95"])
        dice = f"Dice {shown(arm['dice_mean'])} [{low}, {high}]"
        print(f"{name:24s} {dice}  surface Dice {shown(arm['surface_dice_mean'])}  n {arm['n']}")
    for name, reason in report.get("left_out", {}).items():
        print(f"{name:24s} left out: {reason}")
    code = tell_set_aside([(fault["image"], fault["reason"]) for fault in report["quarantined"]])
    print(f"report: {html_path}\nserve the result: {report['serve_command'].replace('samcorrect', _program(), 1)}")
    return code


def _serve(parsed: argparse.Namespace, settings: Settings) -> int:
    # Importing the host takes seconds and prints; no other command needs it.
    from samcorrect.lib.server.serve import serve

    serve(settings, parsed.studies, parsed.host, parsed.port)
    return 0


def _stage(parsed: argparse.Namespace, settings: Settings, stage: Callable[..., dict]) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    with show_progress() as progress:
        told = stage(workspace, progress=progress)
    print_table({key: value for key, value in told.items() if key != "losses"})
    return tell_set_aside(workspace.store.ledger.quarantined())


def _score(parsed: argparse.Namespace, settings: Settings) -> int:
    if parsed.explain is None:
        if parsed.out is not None or parsed.map is not None:
            raise SettingsError("--out and --map are of one image: name it with --explain IMAGE")
        return _stage(parsed, settings, partial(score_store, full=parsed.full))
    workspace = ws.open_workspace(parsed.studies, settings)
    if parsed.map is not None:
        _require_outside(parsed.map, workspace)
    for line in write_explanation(workspace, parsed.explain, out=parsed.out, map_path=parsed.map):
        print(line)
    return 0


def _next(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    chosen = next_image(workspace, parsed.holder, strategy=parsed.strategy)
    if chosen is None:
        print("no image waits: all are approved or reserved")
        return 0
    told = {"image": chosen.image_id, "why": chosen.why, "score": chosen.score, "expected Dice": chosen.expected_dice}
    print_table(told | {f"reason {n}": reason for n, reason in enumerate(chosen.reasons, start=1)})
    return 0


def _evaluate(parsed: argparse.Namespace, settings: Settings) -> int:
    workspace = ws.open_workspace(parsed.studies, settings)
    protocol, ledger = workspace.require_protocol(), workspace.store.ledger
    labels = best_labels(workspace)
    if not labels:
        raise LabelError(NO_LABELS)
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
    print_table({key: value for key, value in ranking.items() if key != "structures"})
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
    with show_progress() as progress:
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
    with show_progress() as progress:
        told = export_labels(workspace, parsed.out, file_format=parsed.format, states=states, progress=progress)
    print(f"{told['n_exported']} label(s) exported; where each comes from: {told['manifest']}")
    return tell_set_aside(told["refused"])


def _require_outside(out: Path, workspace: ws.Workspace) -> None:
    """Raises SettingsError where label files in `out` would be taken for images of the studies."""
    studies, state_dir = workspace.store.studies, workspace.store.state_dir
    if out.resolve().is_relative_to(state_dir.resolve()):
        return
    if isinstance(studies, LocalStudies) and out.resolve().is_relative_to(studies.folder.resolve()):
        raise SettingsError(
            f"{out} lies in the studies folder {studies.folder}, where labels would be taken for images"
        )


def _program() -> str:
    """How this program was called, so that the command it prints works outside of its virtual environment too."""
    path = Path(sys.argv[0])
    return shlex.quote(os.path.relpath(path)) if path.is_absolute() and path.is_file() else "samcorrect"


def _end_with_stdin() -> None:
    """End this process when the one that holds the other end of its standard input ends, however that ends."""
    # Not sys.stdin, whose lock this thread would still hold at the end of the run: Python aborts on that.
    while os.read(STDIN, 1):
        pass
    os._exit(EXIT_ORPHANED)
