"""Students as people handle them: promoted, rolled back, brought in, and written for other programs."""

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from samcorrect.lib.errors import ConflictError, RequestError, StoreError, UnknownModelError, WeightsError
from samcorrect.lib.loop.bundle import is_bundle, read_bundle, write_bundle
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.onnx_file import onnx_bytes
from samcorrect.lib.networks.student import Student, load_student
from samcorrect.lib.store.files import write_bytes_atomically
from samcorrect.lib.store.records.audit import MAX_NAME
from samcorrect.lib.store.records.models import REPLACED
from samcorrect.lib.store.records.reviews import check_text
from samcorrect.lib.store.schema import MODEL_CANDIDATE, MODEL_PROMOTED, ModelRow

FORMATS = ("bundle", "onnx")


def promote_model(workspace: Workspace, prefix: str, *, by: str) -> ModelRow:
    """Use a student from now on, whatever the gate said of it; its metrics and the gate's reason stay.

    Args:
        workspace: With a protocol.
        prefix: How its digest begins.
        by: The person who decides so, for the audit log.

    Raises:
        RequestError: The prefix fits several, or the name is blank, too long or holds control characters.
        UnknownModelError: The prefix fits none.
        ConflictError: The student is in use already.
        WeightsError: Its file is gone or damaged, or it segments other structures than the protocol.
    """
    by = check_text("name", by, MAX_NAME)
    row = workspace.store.ledger.find_model(prefix)
    if row.status == MODEL_PROMOTED:
        raise ConflictError(f"the model {row.digest[:12]} is in use already")
    _require_same_task(workspace, workspace.load_student(row), f"the model {row.digest[:12]}")
    return workspace.store.ledger.promote_model(row.id, reason="promoted by command", by=by)


def roll_back_model(workspace: Workspace, *, by: str) -> ModelRow:
    """Go back to the student that was in use before the one in use; once more, to the one before that.

    Args:
        workspace: With a protocol.
        by: The person who decides so, for the audit log.

    Raises:
        UnknownModelError: None is in use, or none was before it.
        RequestError, WeightsError: As `promote_model`.
    """
    by, ledger = check_text("name", by, MAX_NAME), workspace.store.ledger
    current = ledger.promoted_model()
    if current is None:
        raise UnknownModelError("no model is in use, so there is none to go back from")
    before = current.metrics.get(REPLACED)
    if before is None:
        raise UnknownModelError(
            f"no model was in use before {current.digest[:12]}; use another with `samcorrect models promote DIGEST`"
        )
    row = ledger.find_model(before)
    _require_same_task(workspace, workspace.load_student(row), f"the model {row.digest[:12]}")
    return ledger.promote_model(row.id, reason=f"rolled back from {current.digest[:12]}", by=by, is_return=True)


def import_model(workspace: Workspace, path: Path, *, promote: bool, by: str | None = None) -> dict[str, Any]:
    """Bring in a student trained elsewhere; it is copied into the state folder.

    Args:
        workspace: With a protocol.
        path: A student's file, or the folder of a bundle that `export_model` wrote; nothing in either is executed.
        promote: Use it at once; else it stays a candidate.
        by: The person who promotes it, for the audit log.

    Raises:
        WeightsError: Not a student's file or bundle, or it segments other structures than the protocol.
        RequestError: The name is blank, too long or holds control characters.
    """
    by = None if by is None else check_text("name", by, MAX_NAME)
    if path.is_dir():
        student, content = read_bundle(path)
    else:
        student, content = load_student(path), path.read_bytes()
    _require_same_task(workspace, student, path.name)
    relative = f"models/imported-{hashlib.sha256(content).hexdigest()[:32]}.pt"
    write_bytes_atomically(workspace.store.state_dir / relative, content)
    row = workspace.store.ledger.add_model(
        ModelRow(
            digest=student.digest,
            path=relative,
            status=MODEL_CANDIDATE,
            created_at=time.time(),
            metrics={"reason": f"imported from {path.name}"},
        )
    )
    if row.path != relative and not _is_whole(workspace, row):
        write_bytes_atomically(workspace.store.state_dir / row.path, content)
    if promote and row.status != MODEL_PROMOTED:
        row = workspace.store.ledger.promote_model(row.id, reason="imported and promoted by command", by=by)
    return {"digest": student.digest, "status": row.status}


def _is_whole(workspace: Workspace, row: ModelRow) -> bool:
    try:
        return load_student(workspace.store.state_dir / row.path).digest == row.digest
    except WeightsError:
        return False


def export_model(
    workspace: Workspace, out: Path, *, file_format: str, prefix: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a student for other programs: as a MONAI bundle, which is a folder, or as one ONNX file.

    Args:
        workspace: The store.
        out: The folder or file; it appears whole or not at all.
        file_format: One of FORMATS.
        prefix: How its digest begins; by default the student in use.
        overwrite: Replace what an earlier export left at `out`.

    Returns:
        `digest`, `format` and `path`.

    Raises:
        RequestError: Unknown format, `out` exists, is no earlier export, or the prefix fits several.
        UnknownModelError: None is in use, or the prefix fits none.
        WeightsError: The student's file is gone or damaged.
        DependencyError: ONNX is wanted and its packages are not installed.
        StoreError: `out` cannot be written.
    """
    if file_format not in FORMATS:
        raise RequestError(f"models are exported as {' or '.join(FORMATS)}; got {file_format!r:.40}")
    _require_free(out, file_format, overwrite=overwrite)
    row = workspace.store.ledger.promoted_model() if prefix is None else workspace.store.ledger.find_model(prefix)
    if row is None:
        raise UnknownModelError("no model is in use yet: train one, or name one by its digest")
    student = workspace.load_student(row)
    if file_format == "onnx":
        write_bytes_atomically(out, onnx_bytes(student))
    else:
        _write_folder(out, student, row)
    return {"digest": row.digest, "format": file_format, "path": str(out)}


def _require_free(out: Path, file_format: str, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise RequestError(f"{out} exists already; give another --out, or --overwrite")
    if not (is_bundle(out) if file_format == "bundle" else out.is_file()):
        raise RequestError(f"{out} is no earlier export as {file_format}, so it is not overwritten; give another --out")


def _write_folder(out: Path, student: Student, row: ModelRow) -> None:
    """Write a bundle beside its place and move it there, so that it is whole whenever it is there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:40]}."))
        try:
            write_bundle(scratch / "new", student, row.metrics)
            if out.exists():
                os.replace(out, scratch / "old")
            os.replace(scratch / "new", out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {out.name} in {out.parent}: {error.strerror or error}") from error


def _require_same_task(workspace: Workspace, student: Student, name: str) -> None:
    protocol = workspace.require_protocol()
    if (student.names, student.indices) != (protocol.names, protocol.indices):
        theirs, ours = (dict(zip(x.names, x.indices, strict=True)) for x in (student, protocol))
        raise WeightsError(f"{name} segments {theirs}; the protocol asks for {ours}")
