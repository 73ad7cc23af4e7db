"""Names of label values: from what a viewer submits to the protocol's indices, and back to what a viewer is told."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from samcorrect.lib.errors import LabelError, ProtocolError, RequestError
from samcorrect.lib.protocol import Protocol

MAX_NAME_LENGTH = 128


def check_label_info(label_info: object) -> list[dict[str, Any]]:
    """The `label_info` of a submit as `[{"name": str, "idx": int}]`; empty where none was sent.

    Raises:
        RequestError: It has another form, or gives one idx two names.
    """
    if label_info is None:
        return []
    entries = label_info if isinstance(label_info, list) else [label_info]
    checked: dict[int, str] = {}
    for entry in entries:
        name, idx = (entry.get("name"), entry.get("idx")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(idx, int) or isinstance(idx, bool) or not 0 <= idx <= 255:
            raise RequestError(
                f'label_info is a list of {{"name": "heart", "idx": 3}} with idx from 0 to 255; got {entry!r:.80}'
            )
        if len(name) > MAX_NAME_LENGTH:
            raise RequestError(f"a name in label_info has at most {MAX_NAME_LENGTH} characters; got {name!r:.80}")
        if checked.setdefault(idx, name) != name:
            raise RequestError(f"label_info names the value {idx} twice: {checked[idx]!r:.80} and {name!r:.80}")
    return [{"name": name, "idx": idx} for idx, name in checked.items()]


def map_values(
    present_values: Iterable[int], label_info: Sequence[Mapping[str, Any]], protocol: Protocol | None
) -> dict[int, int]:
    """Say which structure each value of a submitted file is.

    Args:
        present_values: Values in the file, without 0.
        label_info: As `check_label_info` returns it; where it is empty the values are the protocol's indices.
        protocol: None leaves all values as they are.

    Returns:
        File value to protocol index.

    Raises:
        LabelError: A value has no name, or a name that the protocol does not know.
    """
    present = sorted(set(present_values) - {0})
    if protocol is None:
        return {value: value for value in present}
    known = ", ".join(f"{s.name!r} = {s.index}" for s in protocol.structures)
    if not label_info:
        unknown = [value for value in present if value not in protocol.indices]
        if unknown:
            raise LabelError(
                f"the label holds the values {unknown}, and no label_info names them; the protocol has {known}"
            )
        return {value: value for value in present}
    names = {entry["idx"]: entry["name"].strip() for entry in label_info}
    unnamed = [value for value in present if value not in names]
    if unnamed:
        raise LabelError(
            f"the label holds the values {unnamed}, which label_info does not name; it names {names!r:.200}"
        )
    index_of = dict(zip(protocol.names, protocol.indices, strict=True))
    foreign = sorted({names[value] for value in present} - set(index_of))
    if foreign:
        raise LabelError(
            f"the protocol has no structure named {', '.join(map(repr, foreign))}; it has {known}. Rename the segment"
        )
    return {value: index_of[names[value]] for value in present}


def require_same_indices(
    protocol: Protocol, label: str, label_info: Sequence[Mapping[str, Any]], value_to_index: Mapping[str, int]
) -> None:
    """See that a protocol gives the structures of a label the indices that they had when it was submitted.

    Args:
        protocol: The protocol of today.
        label: What the message calls the label.
        label_info, value_to_index: As kept with it; names that the protocol does not know are no contradiction.

    Raises:
        ProtocolError: A structure has another index now.
    """
    index_of = dict(zip(protocol.names, protocol.indices, strict=True))
    # Without a protocol two segments may have been of one name.
    submitted: dict[str, list[int]] = {}
    for entry in label_info:
        if str(entry["idx"]) in value_to_index:
            submitted.setdefault(entry["name"].strip(), []).append(value_to_index[str(entry["idx"])])
    for name, indices in submitted.items():
        if name in index_of and index_of[name] not in indices:
            raise ProtocolError(
                f"the protocol gives {name!r} the index {index_of[name]}, and in {label} it is {indices[0]}: what "
                f"people approved would be taken for other structures. Give {name!r} its index {indices[0]} back"
            )


def ordered_names(protocol: Protocol | None) -> list[str]:
    """The structures' names in the order of their indices; empty without a protocol."""
    return [] if protocol is None else [s.name for s in sorted(protocol.structures, key=lambda s: s.index)]


def present_indices(label_map: np.ndarray) -> list[int]:
    """The indices other than background in a label map, ascending."""
    values = label_map.ravel(order="K")
    # Most of a large image is background: left out in words of eight bytes it costs a hundredth of being counted.
    n_whole = values.size // 8 * 8
    words = values[:n_whole].view(np.uint64)
    counts = np.bincount(np.concatenate([words[words != 0].view(values.dtype), values[n_whole:]]), minlength=1)
    return (np.flatnonzero(counts[1:]) + 1).tolist()


def name_indices(
    present: Iterable[int], protocol: Protocol | None, label_info: Sequence[Mapping[str, Any]] = ()
) -> dict[str, int]:
    """Name the indices that are present, in index order.

    Slicer gives the i-th name to the i-th value that is present in the file (ImportLabelmapToSegmentationNode), so an
    absent structure must not be named: a mask of the heart alone would be called "right lung".

    Args:
        present: Indices in the label map.
        protocol: Names the indices; without one the names that the viewer submitted are given back.
        label_info: As submitted.
    """
    if protocol is not None:
        names = dict(zip(protocol.indices, protocol.names, strict=True))
    else:
        names = {entry["idx"]: entry["name"] for entry in label_info}
    named: dict[str, int] = {}
    for index in sorted(present):
        name = names.get(index, f"label {index}")
        named[name if name not in named else f"{name} {index}"] = index
    return named
