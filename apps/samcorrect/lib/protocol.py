"""The protocol file: which structures to segment, their label indices and where their prompts come from."""

import csv
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from samcorrect.lib.errors import ProtocolError

MAX_INDEX = 255
TOP_LEVEL_KEYS = ("structures", "window_hu")
CSV_COLUMNS = ("image", "label", "x0", "y0", "x1", "y1")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _ordered(window_hu: tuple[float, float]) -> tuple[float, float]:
    if window_hu[0] >= window_hu[1]:
        raise ValueError("a window is [low, high] in Hounsfield units with low below high")
    return window_hu


_HounsfieldUnits = Annotated[float, Field(strict=True, allow_inf_nan=False)]
WindowHu = Annotated[tuple[_HounsfieldUnits, _HounsfieldUnits], AfterValidator(_ordered)]


class BoxPrompt(_Strict):
    """One box for every image, relative to its size: `xyxy` in the slice, or `xyz` ranges for volumes."""

    source: Literal["box"]
    xyxy: tuple[float, float, float, float] | None = None
    xyz: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] | None = None

    def relative(self) -> np.ndarray:
        """(3, 2) start and stop along x, y, z in [0, 1]."""
        if self.xyz is not None:
            return np.array(self.xyz)
        x0, y0, x1, y1 = self.xyxy
        return np.array([[x0, x1], [y0, y1], [0.0, 1.0]])

    @field_validator("xyz", "xyxy")
    @classmethod
    def _inside(cls, value: tuple | None) -> tuple | None:
        if value is None:
            return None
        ranges = value if isinstance(value[0], tuple) else [(value[0], value[2]), (value[1], value[3])]
        for start, stop in ranges:
            if not 0 <= start < stop <= 1:
                raise ValueError(f"a box lies inside [0, 1] and each stop is above its start; got {start} to {stop}")
        return value

    def model_post_init(self, _context: object) -> None:
        if (self.xyxy is None) == (self.xyz is None):
            raise ValueError("a box has either xyxy: [x0, y0, x1, y1] or xyz: [[x0, x1], [y0, y1], [z0, z1]]")


class BoxesFilePrompt(_Strict):
    """A CSV with one box per image and structure in pixels: image, label, x0, y0, x1, y1[, z0, z1]; half-open.

    A row whose coordinates are all empty says that the structure is not in the image.
    """

    source: Literal["boxes_file"]
    path: Path


class StudentPrompt(_Strict):
    """The promoted student's own prediction gives box and mask prompt."""

    source: Literal["student"]


class Structure(_Strict):
    """One anatomical structure, its prompt, and the window of CT values in which SAM sees it."""

    name: str = Field(min_length=1, max_length=64)
    index: int = Field(ge=1, le=MAX_INDEX, strict=True)
    prompt: Annotated[BoxPrompt | BoxesFilePrompt | StudentPrompt, Field(discriminator="source")]
    window_hu: WindowHu | None = None


class _TopLevel(_Strict):
    window_hu: WindowHu | None = None


class Protocol(_TopLevel):
    """What to segment and how it is prompted.

    `usual_sizes_vox` is the median size, along the array axes, of a structure's boxes in a boxes file of volumes.

    `window_hu` says that the images are CT and is the window of every structure that has none of its own. Without any
    window images are scaled by their percentiles.

    `boxes` are the rows of the boxes files by image and structure; () where the structure is not in the image.
    """

    structures: tuple[Structure, ...] = Field(min_length=1)
    digest: str = ""
    boxes: dict[tuple[str, str], tuple[float, ...]] = Field(default_factory=dict, repr=False)
    usual_sizes_vox: dict[str, tuple[float, float, float]] = Field(default_factory=dict)

    @property
    def indices(self) -> tuple[int, ...]:
        """Label indices in the order of the file; channel k + 1 of the student is `indices[k]`."""
        return tuple(s.index for s in self.structures)

    @property
    def names(self) -> tuple[str, ...]:
        """Structure names in the order of the file."""
        return tuple(s.name for s in self.structures)

    @property
    def image_window_hu(self) -> tuple[float, float] | None:
        """The window of the whole image, in which the student sees it: the protocol's, else the least that holds the
        windows of all structures.
        """
        own = [s.window_hu for s in self.structures if s.window_hu is not None]
        if self.window_hu is not None or not own:
            return self.window_hu
        return min(low for low, _ in own), max(high for _, high in own)

    def window_of(self, name: str) -> tuple[float, float] | None:
        """The window in which SAM sees a structure; the image's for a name that the protocol does not have."""
        own = next((s.window_hu for s in self.structures if s.name == name), None)
        return own or self.image_window_hu

    def box_vox(self, structure: Structure, image_name: str, shape_hwd: tuple[int, int, int]) -> np.ndarray | None:
        """The structure's box in one image.

        Args:
            image_name: The image as the boxes file has it: its path below the studies folder, or its file name alone.
            shape_hwd: Voxels along the three array axes.

        Returns:
            (3, 2) float64, half-open [start, stop) in voxels along the array axes; None for source `student`, and where
            the boxes file says that the structure is not in the image.

        Raises:
            ProtocolError: The boxes file has no usable box for this image.
        """
        prompt = structure.prompt
        shape = np.array(shape_hwd, dtype=np.float64)[:, None]
        if isinstance(prompt, BoxPrompt):
            return prompt.relative() * shape
        if isinstance(prompt, StudentPrompt):
            return None
        row = self.boxes_row(structure, image_name)
        if row is None:
            raise ProtocolError(
                f"{image_name}: {prompt.path} has no row for the label {structure.name!r}; "
                "where it is not in the image, a row with empty coordinates says so"
            )
        values = self.boxes[row, structure.name]
        if not values:
            return None
        x0, y0, x1, y1, z0, z1 = values if len(values) == 6 else (*values, 0.0, float(shape_hwd[2]))
        box = np.clip(np.array([[x0, x1], [y0, y1], [z0, z1]]), 0, shape)
        if (box[:, 1] - box[:, 0] < 1).any():
            raise ProtocolError(
                f"{image_name}: the box of {structure.name!r} in {prompt.path} lies outside the image {shape_hwd}"
            )
        return box

    def boxes_row(self, structure: Structure, image_name: str) -> str | None:
        """By which name, its path or its file name alone, the boxes file has an image; None where it has not, or where
        the structure is prompted otherwise.
        """
        names = (image_name, PurePosixPath(image_name).name)
        return next((name for name in names if (name, structure.name) in self.boxes), None)

    def require_own_boxes(self, image_names: Iterable[str]) -> None:
        """See that no two of these images, as `box_vox` takes them, would be prompted with the same row.

        Raises:
            ProtocolError: Two of them have one file name, by which alone the boxes file has it.
        """
        taken: dict[tuple[str, str], str] = {}
        of_files = [s for s in self.structures if isinstance(s.prompt, BoxesFilePrompt)]
        for image_name in image_names:
            for structure in of_files:
                row = self.boxes_row(structure, image_name)
                if row is not None and taken.setdefault((row, structure.name), image_name) != image_name:
                    raise ProtocolError(
                        f"{structure.prompt.path} has one row for {row} and the label {structure.name!r}, and there "
                        f"are {taken[row, structure.name]} and {image_name}: give each a row with its path"
                    )


def load_protocol(path: Path) -> Protocol:
    """Read and check a protocol file and the boxes files it names.

    Raises:
        ProtocolError: One message that lists every fault.
    """
    if not path.is_file():
        raise ProtocolError(f"no protocol file at {path}; write one with a list `structures` (see the README)")
    content = path.read_bytes()
    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ProtocolError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not isinstance(document.get("structures"), list) or not document["structures"]:
        raise ProtocolError(
            f"{path}: the top level holds the key `structures`, a list of at least one; got {document!r:.80}"
        )
    faults = [
        f"{key}: no such key; the top level holds {' and '.join(TOP_LEVEL_KEYS)}"
        for key in document
        if key not in TOP_LEVEL_KEYS
    ]
    window_hu = None
    try:
        window_hu = _TopLevel(window_hu=document.get("window_hu")).window_hu
    except ValidationError as error:
        faults += [_fault(fault) for fault in error.errors()]
    structures = []
    for number, entry in enumerate(document["structures"], start=1):
        try:
            structures.append(Structure.model_validate(entry))
        except ValidationError as error:
            faults += [f"structures.{number}.{_fault(fault)}" for fault in error.errors()]
    faults += _duplicates(document["structures"])
    faults += _missing_windows(structures) if document.get("window_hu") is None else []
    boxes, file_faults, boxes_content = _boxes_of(document["structures"], path.parent)
    faults += file_faults
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise ProtocolError(f"{path}: {len(faults)} fault(s) in the protocol:\n{lines}")
    digest = hashlib.sha256(content + boxes_content).hexdigest()
    sizes = {structure.name: _usual_size_vox(boxes, structure.name) for structure in structures}
    usual = {name: size for name, size in sizes.items() if size is not None}
    return Protocol(
        structures=tuple(structures), window_hu=window_hu, digest=digest, boxes=boxes, usual_sizes_vox=usual
    )


def _usual_size_vox(boxes: dict[tuple[str, str], tuple[float, ...]], name: str) -> tuple[float, float, float] | None:
    """The median size of the boxes of a structure along the array axes; None without boxes of volumes."""
    of_structure = np.array([box for (_, label), box in boxes.items() if label == name and len(box) == 6])
    if not len(of_structure):
        return None
    return tuple(np.median(of_structure[:, [2, 3, 5]] - of_structure[:, [0, 1, 4]], axis=0).tolist())


def _fault(fault: ErrorDetails) -> str:
    place = ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{place}: no such key; is it misspelt? (got {fault['input']!r:.80})"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r:.80})"


def _missing_windows(structures: list[Structure]) -> list[str]:
    """An image is CT for all of its structures or for none."""
    lacking = [s.name for s in structures if s.window_hu is None]
    if not lacking or len(lacking) == len(structures):
        return []
    return [
        f"window_hu: other structures have one and {', '.join(map(repr, lacking))} none; give each its own, "
        "or one for all at the top level"
    ]


def _duplicates(entries: list) -> list[str]:
    faults = []
    for key in ("index", "name"):
        values = [entry[key] for entry in entries if isinstance(entry, dict) and key in entry]
        repeated = sorted({str(value) for value in values if values.count(value) > 1})
        if repeated:
            faults.append(f"the {key} {', '.join(repeated)} is given to more than one structure")
    return faults


def _boxes_of(entries: list, folder: Path) -> tuple[dict[tuple[str, str], tuple[float, ...]], list[str], bytes]:
    """The boxes of all structures that name a boxes file, the faults of those files, and their content.

    It looks at the entries as written, so that the boxes file of a structure with another fault is checked too.
    """
    boxes: dict[tuple[str, str], tuple[float, ...]] = {}
    faults: list[str] = []
    files: dict[Path, tuple[dict[tuple[str, str], tuple[float, ...]], list[str]]] = {}
    for entry in entries:
        prompt = entry.get("prompt") if isinstance(entry, dict) else None
        if (
            not isinstance(prompt, dict)
            or prompt.get("source") != "boxes_file"
            or not isinstance(prompt.get("path"), str)
        ):
            continue
        path = folder / prompt["path"]
        if path not in files:
            files[path] = _read_boxes(path)
            faults += files[path][1]
        found, file_faults = files[path]
        own = {key: box for key, box in found.items() if key[1] == entry.get("name")}
        boxes |= own
        if not own and not file_faults:
            faults.append(f"{path}: no row has the label {entry.get('name')!r}")
    return boxes, faults, b"".join(path.read_bytes() for path in files if path.is_file())


def _read_boxes(path: Path) -> tuple[dict[tuple[str, str], tuple[float, ...]], list[str]]:
    if not path.is_file():
        return {}, [f"the boxes file {path} does not exist"]
    boxes: dict[tuple[str, str], tuple[float, ...]] = {}
    faults: list[str] = []
    try:
        # Excel starts a CSV with a byte order mark, which "utf-8-sig" takes away.
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        return {}, [f"{path}: not a CSV in UTF-8: {error}"]
    columns = tuple(rows[0]) if rows else ()
    if columns not in (CSV_COLUMNS, (*CSV_COLUMNS, "z0", "z1")):
        return {}, [f"{path}: the columns are {', '.join(columns)}; wanted {', '.join(CSV_COLUMNS)}[, z0, z1]"]
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):  # as Excel leaves rows that were cleared
            continue
        try:
            box = _box_of_row(row, len(columns))
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
            continue
        image, label = row[:2]
        if (image, label) in boxes:
            faults.append(f"{path}, line {number}: a second box for {image} and {label}")
        boxes[image, label] = box
    return boxes, faults


def _box_of_row(row: list[str], n_columns: int) -> tuple[float, ...]:
    """The box of a row of a boxes file; () where all coordinates are empty. Raises ValueError, which says the fault."""
    values = row[2:]
    if len(row) == n_columns and not any(map(str.strip, values)):
        return ()
    try:
        x0, y0, x1, y1, *z = box = tuple(map(float, values))
    except ValueError as error:
        raise ValueError(f"a coordinate is missing or not a number: {', '.join(row)}") from error
    if len(row) != n_columns:
        raise ValueError(f"{len(row)} values for {n_columns} columns")
    if not np.isfinite(box).all() or x1 <= x0 or y1 <= y0 or (z and z[1] <= z[0]):
        raise ValueError(f"each stop must be above its start; got {', '.join(values)}")
    return box
