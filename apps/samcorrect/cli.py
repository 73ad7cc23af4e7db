"""The `samcorrect` command. Parsers and printing only; the work is in `lib/loop` and `lib/server`."""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from samcorrect import __version__
from samcorrect.lib.errors import SamCorrectError
from samcorrect.lib.settings import Settings

EXIT_FAULT, EXIT_INTERRUPTED = 1, 130
# Settings that are options of every command that opens a workspace.
COMMON_SETTINGS = (
    "ledger_url",
    "protocol",
    "state",
    "preset",
    "seed",
    "threads",
    "sam_model",
    "sam_runtime",
    "n_candidates",
    "student_steps",
    "judge_steps",
    "student_side_px",
    "student_batch_size",
    "student_dims",
    "train_on",
    "modules",
    "huang_noise_rate",
)

# OpenMP reads them as torch is imported. By default threads that wait for each other spin for milliseconds: where other
# work has one of the cores a click then takes seconds. Not to spin at all makes each wait a call of the kernel; some
# microseconds do for the next layer of a network.
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
# Of the commands that make pseudo-labels, by their options.
WORKER_SETTINGS = {"--workers": "workers", "--engine": "engine", "--address": "ray_address"}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="samcorrect",
        description="Label an image store with SAM, find and correct the labels it cannot trust, learn from the rest.",
        epilog="start with: samcorrect demo",
    )
    parser.add_argument("--version", action="version", version=f"samcorrect {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every unit of work")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_loop_commands(commands)
    _add_stage_commands(commands)
    _add_exchange_commands(commands)
    _add_model_commands(commands)
    _add_history_commands(commands)
    _add_audit_commands(commands)
    return parser


def _add_loop_commands(commands: Any) -> None:
    demo = _command(commands, "demo", "run the whole loop on the sample data", "samcorrect demo --out demo-out")
    demo.add_argument(
        "--out", type=Path, default=Path("demo-out"), help="folder of studies and report (default: %(default)s)"
    )
    demo.add_argument(
        "--sample-data", type=Path, default=Path("sample-data"), help="the sample data (default: %(default)s)"
    )
    loop = _workspace_command(
        commands,
        "loop",
        "pseudo-label, then rounds of score, correct and retrain; resumes where it was killed",
        "samcorrect loop --studies images --protocol protocol.yaml --rounds 2 --out report",
    )
    _add_settings(loop, WORKER_SETTINGS)
    loop.add_argument("--rounds", type=int, help=_told_of("rounds"))
    loop.add_argument("--out", type=Path, required=True, help="folder for report.html and report.json")
    loop.add_argument(
        # Of the server: write progress.json into --out, and end when standard input does.
        "--served",
        action="store_true",
        help=argparse.SUPPRESS,
    )
    loop.add_argument("--ground-truth", type=Path, help="label maps of the studies, for evaluation only")
    loop.add_argument("--test-images", type=Path, help="held-out images for the comparison")
    loop.add_argument("--test-ground-truth", type=Path, help="label maps of the test images")
    serve = _workspace_command(
        commands,
        "serve",
        "serve the store to 3D Slicer and OHIF",
        "samcorrect serve --studies images --protocol protocol.yaml",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")


def _add_stage_commands(commands: Any) -> None:
    pseudo_label = _workspace_command(
        commands,
        "pseudo-label",
        "label every image with SAM; goes on where it was killed",
        "samcorrect pseudo-label --studies images\n"
        "  samcorrect pseudo-label --studies /shared/images --engine ray --address 10.0.0.7:6379",
    )
    _add_settings(pseudo_label, WORKER_SETTINGS)
    score = _workspace_command(
        commands,
        "score",
        "score every label without ground truth: what changed since the last scoring, or all",
        "samcorrect score --studies images\n  samcorrect score --studies images --explain ward/anna --out anna.html",
    )
    score.add_argument("--full", action="store_true", help="teach new students and score every label again")
    score.add_argument("--explain", metavar="IMAGE", help="score nothing; say why this image's label has its score")
    score.add_argument("--out", type=Path, help="its picture, .svg or .html (default: explain/IMAGE.svg in --state)")
    score.add_argument("--map", type=Path, metavar="FILE", help="also where label and students disagree, as .nii.gz")
    _workspace_command(
        commands, "correct", "score, then correct the labels that are low", "samcorrect correct --studies images"
    )
    _workspace_command(commands, "train", "train a student on the weighted labels", "samcorrect train --studies images")
    following = _workspace_command(
        commands,
        "next",
        "show and reserve the image that a person should see next",
        "samcorrect next --studies images --holder anna",
    )
    following.add_argument(
        "--strategy", default="lowest_quality", help="lowest_quality or random (default: %(default)s)"
    )
    following.add_argument(
        "--holder", default="cli", help="who asks; the image is reserved for them (default: %(default)s)"
    )
    evaluate = _workspace_command(
        commands,
        "evaluate",
        "compare the best labels with ground truth",
        "samcorrect evaluate --studies images --ground-truth labels",
    )
    evaluate.add_argument("--ground-truth", type=Path, required=True, help="label maps named like the images")
    doctor = _workspace_command(
        commands, "doctor", "check the installation and say what is missing", "samcorrect doctor", needs_studies=False
    )
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")


def _add_exchange_commands(commands: Any) -> None:
    taking = _workspace_command(
        commands,
        "import-labels",
        "take over masks that exist already, to score and correct them",
        "samcorrect import-labels masks --studies images",
    )
    taking.add_argument("folder", type=Path, help="label maps named like the images")
    taking.add_argument("--approved-by", metavar="NAME", help="the person who vouches for them: they count as approved")
    export = _workspace_command(
        commands,
        "export",
        "write labels out with a manifest of their provenance",
        "samcorrect export --studies images --out labels --format nnunet --states approved,corrected",
    )
    export.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    export.add_argument("--format", default="nifti", help="nifti or nnunet (default: %(default)s)")
    export.add_argument(
        "--states",
        default="approved,corrected,pseudo",
        help="of approved, corrected, pseudo; a rejected label is never exported (default: %(default)s)",
    )


def _add_model_commands(commands: Any) -> None:
    models = _command(
        commands,
        "models",
        "students: list them, decide which one is used, move them in and out; SAM models: list, add, verify",
        "samcorrect models promote 3fa9c1 --by 'Dr. Who' --studies images\n"
        "  samcorrect models add sam_vit_b --studies images",
    )
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    _workspace_command(
        actions,
        "list",
        "list students with what the gate said, and SAM models",
        "samcorrect models list --studies images",
    )
    promote = _workspace_command(
        actions,
        "promote",
        "use a student from now on, whatever the gate said of it",
        "samcorrect models promote 3fa9c1 --by 'Dr. Who' --studies images",
    )
    promote.add_argument("digest", help="how its digest begins, as `samcorrect models list` shows it")
    rollback = _workspace_command(
        actions,
        "rollback",
        "go back to the student that was in use before",
        "samcorrect models rollback --by 'Dr. Who' --studies images",
    )
    taking = _workspace_command(
        actions,
        "import",
        "bring in a student that was trained elsewhere",
        "samcorrect models import student.pt --studies images",
    )
    taking.add_argument("file", type=Path, help="a student's file, or the folder of a bundle that was exported")
    taking.add_argument("--promote", action="store_true", help="use it at once")
    for parser, is_required in ((promote, True), (rollback, True), (taking, False)):
        parser.add_argument("--by", metavar="NAME", required=is_required, help="who decides so, for the audit log")
    export = _workspace_command(
        actions,
        "export",
        "write the student in use, or another, for other programs",
        "samcorrect models export --format bundle --out student-bundle --studies images",
    )
    export.add_argument("digest", nargs="?", help="how its digest begins (default: the student in use)")
    export.add_argument("--format", default="bundle", help="bundle (of MONAI) or onnx (default: %(default)s)")
    export.add_argument("--out", type=Path, required=True, help="a new folder, or for onnx a new file")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export at --out")
    _add_sam_commands(actions)


def _add_sam_commands(actions: Any) -> None:
    add = _workspace_command(
        actions,
        "add",
        "bring the weights of a SAM model, from its publisher or from a file",
        "samcorrect models add sam_vit_b --studies images\n"
        "  samcorrect models add ours --architecture vit_b --weights ours.pth --licence MIT --studies images",
    )
    add.add_argument("name", help="of the list that `samcorrect models list` shows, or a new one")
    add.add_argument("--architecture", help="of a model that is not in the list: lite_medsam, vit_b, ...")
    add.add_argument("--weights", metavar="FILE|URL", help="a URL is fetched now and never again")
    add.add_argument("--sha256", help="what the weights file must have; needed for a URL")
    add.add_argument("--licence", help="under which the weights may be used")
    _workspace_command(
        actions,
        "verify",
        "hash and load the weights of every SAM model that is here",
        "samcorrect models verify --studies images",
    )


def _add_history_commands(commands: Any) -> None:
    versions = _workspace_command(
        commands,
        "versions",
        "list every version of an image's label: who or what made it, from what, and its score",
        "samcorrect versions ward/anna --studies images",
    )
    restore = _workspace_command(
        commands,
        "restore",
        "make an old version of a label the best one again; nothing is taken away",
        "samcorrect restore ward/anna 17 --by 'Dr. Who' --studies images",
    )
    diff = _workspace_command(
        commands,
        "diff",
        "compare two versions of a label, structure by structure",
        "samcorrect diff ward/anna 17 23 --studies images",
    )
    for parser in (versions, restore, diff):
        parser.add_argument("image", help="the image's id: its path below the studies, without the suffix")
    restore.add_argument("version", type=int, help="its number, as `samcorrect versions` lists it")
    restore.add_argument("--by", metavar="NAME", required=True, help="who restores it")
    diff.add_argument("first", type=int, help="number of the version before")
    diff.add_argument("second", type=int, help="number of the version after")
    for parser in (versions, diff):
        parser.add_argument("--json", action="store_true", help="print JSON")
    backup = _workspace_command(
        commands,
        "backup",
        "write ledger, labels and models, without the images, into one file; the server may go on",
        "samcorrect backup samcorrect-2026-11-24.tar --studies images",
    )
    restoring = _workspace_command(
        commands,
        "restore-backup",
        "make the state folder from a backup; it must be missing or empty",
        "samcorrect restore-backup samcorrect-2026-11-24.tar --studies images",
    )
    for parser in (backup, restoring):
        parser.add_argument("file", type=Path, help="the backup, a tar file")


def _add_audit_commands(commands: Any) -> None:
    audit = _command(
        commands,
        "audit",
        "check, export or explain the log of everything that happened",
        "samcorrect audit explain ward/anna --studies images",
    )
    actions = audit.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = _workspace_command(
        actions,
        "verify",
        "check that no row was changed, and that the log leads to what the ledger holds; exit code 1 if not",
        "samcorrect audit verify --studies images",
    )
    verify.add_argument(
        "--noted", metavar="N:HASH", help="what an earlier check printed: finds a log that was written anew since"
    )
    export = _workspace_command(
        actions, "export", "write the log out", "samcorrect audit export --format csv --out audit.csv --studies images"
    )
    export.add_argument("--format", default="jsonl", help="jsonl or csv (default: %(default)s)")
    export.add_argument("--out", type=Path, help="a new file (default: print it)")
    export.add_argument("--image", metavar="ID", help="only of this image")
    explain = _workspace_command(
        actions,
        "explain",
        "tell the history of an image in plain words",
        "samcorrect audit explain ward/anna --studies images",
    )
    explain.add_argument("image", help="the image's id: its path below the studies, without the suffix")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done, 1 a fault that the message explains, 3 done but some input was set aside, 130 interrupted.
    """
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if parsed.verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    if OPENMP.keys().isdisjoint(os.environ):  # either of them given, the other might contradict it
        os.environ |= OPENMP
    # Here, so that --help and a wrong option do not wait for torch.
    from samcorrect import commands

    try:
        return commands.run(parsed, _settings(parsed))
    except SamCorrectError as error:
        print(f"samcorrect {parsed.command}: {error}", file=sys.stderr)
        return EXIT_FAULT
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def _settings(parsed: argparse.Namespace) -> Settings:
    from samcorrect.lib.settings import load_settings

    given = {name: getattr(parsed, name, None) for name in (*COMMON_SETTINGS, *WORKER_SETTINGS.values(), "rounds")}
    return load_settings(given)


def _command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _workspace_command(
    commands: Any, name: str, summary: str, example: str, *, needs_studies: bool = True
) -> argparse.ArgumentParser:
    parser = _command(commands, name, summary, example)
    parser.add_argument(
        "--studies",
        required=needs_studies,
        help="folder of the images, or the DICOMweb URL of a PACS (then with --state)",
    )
    _add_settings(parser, {f"--{setting.replace('_', '-')}": setting for setting in COMMON_SETTINGS})
    return parser


def _add_settings(parser: argparse.ArgumentParser, options: Mapping[str, str]) -> None:
    for option, setting in options.items():
        parser.add_argument(option, dest=setting, metavar="VALUE", help=_told_of(setting))


def _told_of(setting: str) -> str:
    """What a setting is, what it may be and what it is by default, for argparse."""
    field = Settings.model_fields[setting]
    choices = f"one of {', '.join(get_args(field.annotation))}" if get_origin(field.annotation) is Literal else ""
    default = "" if field.default is None else f"default: {field.default}"
    more = "; ".join(filter(None, (choices, default)))
    return f"{field.description}{f' ({more})' if more else ''}".replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
