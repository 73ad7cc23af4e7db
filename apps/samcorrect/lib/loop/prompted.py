"""A mask from the boxes, clicks and earlier mask of a viewer: in one slice, in some, or through a volume."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from samcorrect.lib.core.boxes import box_of_mask, clip_boxes
from samcorrect.lib.core.clicks import Click
from samcorrect.lib.errors import RequestError
from samcorrect.lib.loop.propagation import spread_marks
from samcorrect.lib.loop.slices import Slices
from samcorrect.lib.loop.workspace import Workspace
from samcorrect.lib.networks.clicks import Marked, mark_box, mark_click, refine
from samcorrect.lib.protocol import BoxPrompt
from samcorrect.lib.store.volumes import Volume

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Prompts:
    """What a person marked of one structure, in voxels along the image's axes.

    Attributes:
        label: Name of the structure; one of the protocol's brings its window and where it is expected.
        axis: The slice axis.
        slice_index: The slice that is meant; None where the boxes and points say it.
        boxes_vox: (3, 2) half-open boxes; several in one slice are parts of one structure.
        foreground, background: Voxels inside and outside of it.
        start: (H, W, D) bool, an earlier mask that is refined; None without one.
        spreads: Whether the slices that were not prompted count too: they keep the earlier mask where there is one,
            else what is marked is carried to them.
    """

    label: str = "structure"
    axis: int = 2
    slice_index: int | None = None
    boxes_vox: tuple[np.ndarray, ...] = ()
    foreground: tuple[Voxel, ...] = ()
    background: tuple[Voxel, ...] = ()
    start: np.ndarray | None = None
    spreads: bool = False

    @property
    def clicked_slice(self) -> int | None:
        """The slice that a person looks at; None where a box in several slices is all there is."""
        if self.slice_index is None and self.foreground:
            return self.foreground[-1][self.axis]
        return self.slice_index


@dataclass(frozen=True)
class _SlicePrompts:
    """The prompts of one slice in pixels of a mask; `start` is a mask (side, side) or None."""

    boxes: np.ndarray
    clicks: tuple[Click, ...]
    start: np.ndarray | None

    @property
    def digest(self) -> str:
        """Of what the clicks refine."""
        start = b"" if self.start is None else self.start.tobytes()
        return hashlib.sha256(self.boxes.tobytes() + start).hexdigest()


def segment_prompts(workspace: Workspace, volume: Volume, prompts: Prompts) -> np.ndarray:
    """Segment what is marked.

    Args:
        workspace: For SAM and its embeddings; needs no protocol.
        volume: The image.
        prompts: At least one box, foreground point or earlier mask.

    Returns:
        (H, W, D) bool on the image's grid. Every foreground voxel and its neighbours in the slice are inside and every
        background voxel and its neighbours outside; where both kinds are neighbours, the voxels themselves are.

    Raises:
        RequestError: No prompt at all, or one that lies outside the image.
    """
    _check(prompts, volume.array.shape)
    protocol = workspace.protocol
    slices = Slices(workspace, volume, prompts.axis, protocol.window_of(prompts.label) if protocol else None)
    prompts = _along(slices, prompts)
    by_slice = {number: _of_slice(slices, prompts, number) for number in _prompted_slices(slices.shape, prompts)}
    expected = _expected_box(workspace, slices, prompts.label)
    marks: dict[int, Marked] = {}
    for number, of_slice in by_slice.items():
        carries = prompts.spreads and prompts.start is None
        marked = _mark(workspace, slices, number, of_slice, marks if carries else {}, expected)
        if marked is not None:
            marks[number] = marked
    masks = {number: marked.mask for number, marked in marks.items()}
    # Slices side by side in memory, as a mask goes to a file: of 200 slices only what is marked is touched.
    made = np.moveaxis(np.zeros(volume.array.shape, bool, order="F"), prompts.axis, 2)
    if prompts.spreads and prompts.start is None:
        masks = _spread(slices, prompts, marks)
    elif prompts.start is not None:
        # Where nothing is marked anew, as with a mask that is lost in SAM's frame, the earlier one stays.
        kept = slice(None) if prompts.spreads else [number for number in by_slice if number not in masks]
        made[:, :, kept] = prompts.start[:, :, kept]
    for number, mask in masks.items():
        made[:, :, number] = slices.to_grid(mask)
    return np.moveaxis(_with_clicks(made, prompts, by_slice), 2, prompts.axis)


def _check(prompts: Prompts, shape: tuple[int, int, int]) -> None:
    if not prompts.boxes_vox and not prompts.foreground and prompts.start is None:
        raise RequestError("no prompt: give a box (`roi`), at least one `foreground` point or an earlier `mask`")
    for name in ("foreground", "background"):
        for point in getattr(prompts, name):
            if not all(0 <= p < s for p, s in zip(point, shape, strict=True)):
                raise RequestError(f"`{name}`: the point {list(point)} lies outside the image of {shape} voxels")
    both = sorted(set(prompts.foreground) & set(prompts.background))
    if both:
        raise RequestError(f"the point {list(both[0])} is in `foreground` and in `background`; take it out of one")
    for box in prompts.boxes_vox:
        if ((box[:, 1] <= 0) | (box[:, 0] >= shape) | (box[:, 1] <= box[:, 0])).any():
            raise RequestError(f"`roi`: the box {box.tolist()} lies outside the image of {shape} voxels")
    if prompts.slice_index is None:
        return
    if not 0 <= prompts.slice_index < shape[prompts.axis]:
        raise RequestError(f"`slice` is {prompts.slice_index}; the image has the slices 0 to {shape[prompts.axis] - 1}")
    at_slice = [p for p in prompts.foreground if p[prompts.axis] == prompts.slice_index]
    if not prompts.boxes_vox and not at_slice and prompts.start is None and not prompts.spreads:
        raise RequestError(
            f"no `foreground` point lies in slice {prompts.slice_index}; set one there or give a box (`roi`)"
        )


def _along(slices: Slices, prompts: Prompts) -> Prompts:
    """The prompts with the slice axis last."""
    return replace(
        prompts,
        boxes_vox=tuple(np.array(slices.in_order(tuple(box))) for box in prompts.boxes_vox),
        foreground=tuple(slices.in_order(p) for p in prompts.foreground),
        background=tuple(slices.in_order(p) for p in prompts.background),
        start=None if prompts.start is None else np.moveaxis(prompts.start, prompts.axis, 2),
    )


def _prompted_slices(shape: tuple[int, int, int], prompts: Prompts) -> list[int]:
    """In the order in which they are marked: later ones refine what earlier ones bring to them."""
    ranges = [_range(box, shape[2]) for box in prompts.boxes_vox]
    points = [p[2] for p in (*prompts.foreground, *prompts.background)]
    if prompts.spreads:
        anchors = [prompts.slice_index if prompts.slice_index in r else (r[0] + r[-1]) // 2 for r in ranges]
        if anchors or points:
            return list(dict.fromkeys([*anchors, *points]))
    if prompts.slice_index is not None:
        return [prompts.slice_index]
    if ranges:
        return sorted({number for r in ranges for number in r})
    if points:
        return [points[len(prompts.foreground) - 1]]
    return [int(n) for n in np.flatnonzero(prompts.start.any((0, 1)))]


def _range(box: np.ndarray, n_slices: int) -> range:
    return range(max(0, int(box[2, 0])), min(n_slices, int(np.ceil(box[2, 1]))))


def _of_slice(slices: Slices, prompts: Prompts, number: int) -> _SlicePrompts:
    shape = slices.shape
    here = [box for box in prompts.boxes_vox if number in _range(box, shape[2]) or number == prompts.slice_index]
    flat = np.array([[*box[:2, 0], *box[:2, 1]] for box in here], dtype=np.float64).reshape(-1, 4)
    clicks = [slices.click(*p[:2], True) for p in prompts.foreground if p[2] == number]
    clicks += [slices.click(*p[:2], False) for p in prompts.background if p[2] == number]
    start = None
    if prompts.start is not None and prompts.start[:, :, number].any():
        seen = slices.to_frame(prompts.start[:, :, number])
        start = seen if seen.any() else None
    return _SlicePrompts(slices.boxes(clip_boxes(flat, shape[:2])), tuple(dict.fromkeys(clicks)), start)


def _mark(
    workspace: Workspace,
    slices: Slices,
    number: int,
    prompts: _SlicePrompts,
    marks: dict[int, Marked],
    expected: np.ndarray | None,
) -> Marked | None:
    """What the prompts mark in a slice; None where nothing or only background is marked and nothing was there."""
    embedding, clicks = slices.embedding(number), list(prompts.clicks)
    key = f"{slices.digest(number)} {prompts.digest} {None if expected is None else expected.tolist()}"
    carried = _carried(slices, number, marks) if not len(prompts.boxes) and prompts.start is None else None
    marked = workspace.marked.recall(key, clicks) if carried is None else None
    if marked is None and len(prompts.boxes):
        marked = _union([mark_box(slices.sam, embedding, b, mask_prompt=prompts.start) for b in prompts.boxes])
    elif marked is None and (carried is not None or prompts.start is not None):
        mask = prompts.start if carried is None else carried
        box = box_of_mask(mask).T.ravel()
        redrawn = mark_box(slices.sam, embedding, box, mask_prompt=mask)
        marked = replace(redrawn, base=mask, mask=mask) if clicks else redrawn
    elif marked is None:
        if not clicks or not clicks[0][2]:
            return None
        marked = mark_click(slices.sam, embedding, clicks[0], slices.content_hw, expected_box=expected)
    for click in [c for c in clicks if c not in marked.clicks]:
        marked = refine(slices.sam, embedding, marked, click, slices.content_hw)
    if carried is None:
        workspace.marked.keep(key, marked)
    return marked


def _union(parts: Sequence[Marked]) -> Marked:
    """The masks of several boxes as one, in the box around them."""
    boxes = np.array([part.box for part in parts])
    mask = np.any([part.mask for part in parts], axis=0)
    hull = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    return Marked((), hull, mask, min(part.confidence for part in parts), mask)


def _carried(slices: Slices, number: int, marks: dict[int, Marked]) -> np.ndarray | None:
    """The mask that the nearest marked slices on both sides bring to a slice; None where they bring none."""
    below = max((n for n in marks if n < number), default=None)
    above = min((n for n in marks if n > number), default=None)
    nearest = {n: marks[n] for n in (below, above) if n is not None}
    if not nearest:
        return None
    span = number if below is None else below, number + 1 if above is None else above
    whole = np.array([0, 0, *slices.content_hw], dtype=np.float64)
    mask = spread_marks(slices, nearest, span=span, limits=whole).get(number)
    return mask if mask is not None and mask.any() else None


def _spread(slices: Slices, prompts: Prompts, marks: dict[int, Marked]) -> dict[int, np.ndarray]:
    """Through all slices; one 3D box alone is not left."""
    span, limits = (0, slices.shape[2]), np.array([0, 0, *slices.content_hw], dtype=np.float64)
    if len(prompts.boxes_vox) == 1 and len(_range(prompts.boxes_vox[0], slices.shape[2])) > 1:
        box = prompts.boxes_vox[0]
        reach = _range(box, slices.shape[2])
        span = min(reach[0], *marks), max(reach[-1], *marks) + 1
        limits = slices.boxes(clip_boxes(np.array([[*box[:2, 0], *box[:2, 1]]]), slices.shape[:2]))[0]
    return spread_marks(slices, marks, span=span, limits=limits)


def _expected_box(workspace: Workspace, slices: Slices, label: str) -> np.ndarray | None:
    """Where the protocol expects a structure in every image, in pixels of a mask."""
    structures = workspace.protocol.structures if workspace.protocol else ()
    prompt = next((s.prompt for s in structures if s.name == label), None)
    if not isinstance(prompt, BoxPrompt):
        return None
    relative = np.array(slices.in_order(tuple(prompt.relative())))[:2] * np.array(slices.shape[:2])[:, None]
    return slices.boxes(np.concatenate([relative[:, 0], relative[:, 1]])[None])[0]


def _with_clicks(made: np.ndarray, prompts: Prompts, by_slice: dict[int, _SlicePrompts]) -> np.ndarray:
    """The mask with every clicked voxel and its neighbours in the slice as the click says."""
    points = [(p, True) for p in prompts.foreground if p[2] in by_slice]
    points += [(p, False) for p in prompts.background if p[2] in by_slice]
    for (row, column, number), is_foreground in points:
        made[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2, number] = is_foreground
    for point, is_foreground in points:
        made[point] = is_foreground
    return made
