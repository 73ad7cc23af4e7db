"""Label maps as DICOM SEG on the frames of a series, and back; written and read by highdicom."""

import importlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from pydicom.dataset import Dataset

from samcorrect import __version__
from samcorrect.lib.errors import DependencyError, GeometryError, LabelError
from samcorrect.lib.store.dicom_image import Frame, frames_of, stack_frames

MANUFACTURER = "samcorrect"
SERIES_NUMBER = 300  # as the host numbers its own
# Type 2 attributes that a SEG takes over from its source; where a header lacks one, it is empty.
COPIED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
COPIED_TIMES = ("StudyDate", "StudyTime")
# What DICOM has for "something anatomical, not coded further"; the structure's name says what.
ANATOMICAL_STRUCTURE = ("123037004", "SCT", "Anatomical Structure")
SERIES = "of the label"
MAX_LABEL_LENGTH, MAX_NAME_LENGTH = 64, 60


@dataclass(frozen=True)
class Origin:
    """Where a label comes from, as a SEG can tell it.

    Attributes:
        user: Who approved it.
        key: What no other version of a label has; its SEG gets UIDs made from it, so storing it twice stores it once.
        algorithm: What made the label that the person started from, or "" where there was none (MANUAL).
        algorithm_version: Its version or digest.
    """

    user: str
    key: str
    algorithm: str = ""
    algorithm_version: str = ""


def write_seg(label_map: np.ndarray, names: Mapping[int, str], headers: Sequence[Dataset], origin: Origin) -> Dataset:
    """A DICOM SEG of a label map.

    DICOM numbers segments from 1 without gaps, so segments are numbered in the order of the indices; where these are
    1 to K, a segment's number is its index. A structure that is absent from the label map keeps its segment, empty.

    Args:
        label_map: (H, W, D) uint8 on the grid of the series, as `dicom_image.read_series` has it.
        names: Index to name of all structures that the label could hold.
        headers: All instances of the series, without pixels, in any order.
        origin: Who and what made the label.

    Raises:
        DependencyError: highdicom is not installed.
        GeometryError: The label map is not on the grid of the series.
        LabelError: An index has no name, or DICOM cannot describe this series' frames in a SEG.
    """
    hd = _highdicom()
    unnamed = sorted(set(np.unique(label_map).tolist()) - {0} - set(names))
    if unnamed or not names:
        raise LabelError(f"the label holds the indices {unnamed} without a name; named are {dict(names)!r:.200}")
    sources, frames = _sources(headers)
    if label_map.shape != (*frames[0].shape_yx[::-1], len(frames)):
        raise GeometryError(
            f"the label has {label_map.shape} voxels, its series {len(frames)} frames of {frames[0].shape_yx} (y, x); "
            "the series was changed in the PACS"
        )
    numbers = {index: number for number, index in enumerate(sorted(names), start=1)}
    table = np.zeros(256, np.uint8)
    table[list(numbers)] = list(numbers.values())
    pixels = np.zeros((len(frames), *frames[0].shape_yx), np.uint8)
    for slot, frame in enumerate(frames):
        pixels[frame.number if len(sources) == 1 else slot] = table[label_map[..., slot]].T
    try:
        seg = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels,
            segmentation_type="BINARY",
            segment_descriptions=[_segment(hd, numbers[index], names[index], origin) for index in sorted(names)],
            series_instance_uid=_uid("series", origin.key),
            series_number=SERIES_NUMBER,
            sop_instance_uid=_uid("instance", origin.key),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description="approved by a person",
            content_creator_name=_person_name(origin.user),
            series_description="samcorrect segmentation",
        )
    except (AttributeError, TypeError, ValueError) as error:
        # Not its text: that can hold values of the header.
        kind = sources[0].SOPClassUID.name
        raise LabelError(f"highdicom describes no SEG for this {kind} ({type(error).__name__})") from error
    seg.SpecificCharacterSet = "ISO_IR 192"  # highdicom names none, and names of people are not ASCII
    return seg


def read_seg(seg: Dataset, headers: Sequence[Dataset], indices: Mapping[str, int]) -> np.ndarray:
    """The label map of a SEG on the grid of its series.

    Args:
        seg: As `write_seg` makes it, or another writer's on the same frames.
        headers: All instances of the series.
        indices: Segment label to index.

    Returns:
        (H, W, D) uint8.

    Raises:
        DependencyError: highdicom is not installed.
        LabelError: A segment has a label without an index, segments overlap, or the SEG is on other frames.
    """
    hd = _highdicom()
    sources, frames = _sources(headers)
    try:
        is_whole = isinstance(seg, hd.seg.Segmentation)
        whole = seg if is_whole else hd.seg.Segmentation.from_dataset(seg)
        labels = {n: whole.get_segment_description(n).segment_label for n in whole.segment_numbers}
        table = np.zeros(256, np.uint8)
        table[list(labels)] = [indices[label] for label in labels.values()]
        common = {"combine_segments": True, "assert_missing_frames_are_empty": True}
        if "NumberOfFrames" in sources[0]:
            at = [frame.number + 1 for frame in frames]
            pixels = whole.get_pixels_by_source_frame(sources[0].SOPInstanceUID, at, **common)
        else:
            at = [source.SOPInstanceUID for source in sources]
            pixels = whole.get_pixels_by_source_instance(at, **common)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LabelError(f"the SEG cannot be read on this series: {error}") from error
    return np.ascontiguousarray(table[pixels].transpose(2, 1, 0))


def segment_labels(seg: Dataset) -> dict[int, str]:
    """Segment number to label of a SEG."""
    return {int(item.SegmentNumber): str(item.SegmentLabel) for item in seg.SegmentSequence}


def _sources(headers: Sequence[Dataset]) -> tuple[list[Dataset], list[Frame]]:
    """The instances of a series in the order of their slices, as highdicom wants them, and its frames in that order."""
    found = [frame for number, header in enumerate(headers) for frame in frames_of(header, number, SERIES)]
    frames, affine = stack_frames(found, SERIES)
    sources = []
    for number in dict.fromkeys(frame.instance for frame in frames):
        source = Dataset()
        source.update(headers[number])
        wanted = dict.fromkeys(COPIED, "") | dict.fromkeys(COPIED_TIMES)
        wanted["SliceThickness"] = float(np.linalg.norm(affine[:3, 2]))
        if source.get("LossyImageCompression") == "01":
            wanted |= {"LossyImageCompressionRatio": "", "LossyImageCompressionMethod": ""}
        for keyword, value in wanted.items():
            if source.get(keyword) is None:
                setattr(source, keyword, value)
        if frames[0].position_mm is None:
            source.pop("FrameOfReferenceUID", None)  # there is nothing that it could refer to
        if "PerFrameFunctionalGroupsSequence" not in source and len(frames) == len(headers):
            source.pop("NumberOfFrames", None)  # one frame is no multi-frame image
        sources.append(source)
    return sources, frames


def _segment(hd: ModuleType, number: int, name: str, origin: Origin) -> Dataset:
    algorithm = None
    if origin.algorithm:
        algorithm = hd.AlgorithmIdentificationSequence(
            name=origin.algorithm[:MAX_LABEL_LENGTH],
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            version=origin.algorithm_version[:MAX_LABEL_LENGTH] or "unknown",
        )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:MAX_LABEL_LENGTH],
        segmented_property_category=hd.sr.CodedConcept(*ANATOMICAL_STRUCTURE),
        segmented_property_type=hd.sr.CodedConcept(*ANATOMICAL_STRUCTURE),
        algorithm_type="SEMIAUTOMATIC" if origin.algorithm else "MANUAL",
        algorithm_identification=algorithm,
    )


def _person_name(user: str) -> str:
    """A user's name as DICOM can hold it: one component, none of the characters that structure a name."""
    clean = "".join(c if c.isprintable() and c not in "\\^=" else " " for c in user).strip()
    return f"{clean[:MAX_NAME_LENGTH] or 'unknown'}^"


def _uid(kind: str, key: str) -> str:
    """A UID made from a UUID, PS3.5 B.2."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{MANUFACTURER}/{kind}/{key}').int}"


def _highdicom() -> ModuleType:
    try:
        return importlib.import_module("highdicom")
    except ImportError as error:
        raise DependencyError(
            "labels are written to a PACS with highdicom 0.22, which is not installed: pip install 'samcorrect[dicom]'"
        ) from error
