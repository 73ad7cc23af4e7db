"""DICOM series as volumes: frames put in order, their grid checked, their values in the unit that the header states.

GDCM (through SimpleITK) decodes the pixels, whatever they are compressed with. Geometry, rescaling and the inversion of
MONOCHROME1 follow the header here: ITK averages unequal gaps away, and GDCM applies RescaleSlope for some SOP classes
alone and inverts before it rescales.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from pydicom.dataset import Dataset

from samcorrect.lib.errors import ImageError
from samcorrect.lib.store.volumes import DIRECTION_TOLERANCE, LPS_TO_RAS, LUMINANCE, MAX_VOXELS, Volume

# How far a slice may lie from where equal spacing puts it, in slice distances. Scanners round positions to 0.1 mm (8%
# of a 0.625 mm step); one missing slice moves its neighbours by half a step or more.
POSITION_TOLERANCE = 0.1
DUPLICATE_MM = 1e-3
ADVICE = "send its volumes to the PACS as series of their own"
MODALITY_UNITS = ("RescaleSlope", "RescaleIntercept", "RealWorldValueMappingSequence")


@dataclass(frozen=True)
class Frame:
    """One frame of a series as its header has it.

    Attributes:
        instance: Number of its instance in the order in which the instances came.
        number: Number of the frame in its instance, from 0.
        shape_yx: Rows and columns.
        spacing_yx_mm: Distance between rows, and between columns.
        thickness_mm: Of the slice; 1 where the header does not say.
        orientation: (6,), directions of a row and of a column in LPS; None where the header does not say.
        position_mm: (3,), LPS of the first voxel's centre; None where the header does not say.
        slope, intercept: From stored values to those of the modality (HU, SUV, ...).
    """

    instance: int
    number: int
    shape_yx: tuple[int, int]
    spacing_yx_mm: tuple[float, float]
    thickness_mm: float
    orientation: np.ndarray | None
    position_mm: np.ndarray | None
    slope: float
    intercept: float


def read_series(instances: Iterable[Dataset], folder: Path, name: str) -> Volume:
    """The volume of a series.

    Args:
        instances: All its instances; each is written to `folder` and let go before the next is asked for.
        folder: A private temporary folder.
        name: What messages call the series.

    Returns:
        The volume: axes along a row (x), along a column (y) and along the slice normal; values rescaled, MONOCHROME1
        inverted within the range of its values, colour as luminance. Frames without a position (a cine) lie 1 mm apart.

    Raises:
        ImageError: The series is no regular stack of frames, or its pixels cannot be decoded.
    """
    frames, paths, is_inverted = [], [], set()
    n_voxels = 0
    for number, instance in enumerate(instances):
        found = frames_of(instance, number, name)
        n_voxels += sum(math.prod(frame.shape_yx) for frame in found)
        if n_voxels > MAX_VOXELS:
            raise ImageError(f"series {name}: more than {MAX_VOXELS} voxels, the limit")
        frames += found
        is_inverted.add(instance.get("PhotometricInterpretation") == "MONOCHROME1")
        paths.append(folder / f"{number}.dcm")
        _save(instance, len(found), paths[-1], name)
    if len(is_inverted) > 1:
        raise ImageError(f"series {name}: MONOCHROME1 and MONOCHROME2 images in one series; {ADVICE}")
    order, affine = stack_frames(frames, name)
    array = np.empty((*order[0].shape_yx[::-1], len(order)), np.float32)
    slots: dict[int, list[int]] = {}
    for slot, frame in enumerate(order):
        slots.setdefault(frame.instance, []).append(slot)
    for number, mine in slots.items():
        decoded = _decode(paths[number], name)
        for slot in mine:
            frame = order[slot]
            if frame.number >= len(decoded) or decoded[frame.number].shape != frame.shape_yx:
                raise ImageError(f"series {name}: the pixels of instance {number + 1} are not those of its header")
            array[..., slot] = (decoded[frame.number] * frame.slope + frame.intercept).T
    if is_inverted == {True}:
        array = array.max() + array.min() - array
    whole = array.astype(np.int16)
    return Volume(whole if np.array_equal(whole, array) else array, affine, 2 if array.shape[2] == 1 else 3)


def frames_of(header: Dataset, instance: int, name: str) -> list[Frame]:
    """The frames of an instance, from its own attributes or from the functional groups of a multi-frame image.

    Args:
        header: The instance, with or without pixels.
        instance: Its number.
        name: What messages call the series.

    Raises:
        ImageError: An attribute is missing or malformed.
    """
    try:
        shape_yx = (int(header.Rows), int(header.Columns))
        n_frames = int(header.get("NumberOfFrames") or 1)
        shared = list(header.get("SharedFunctionalGroupsSequence") or ())
        own = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * n_frames
        return [_frame(header, (item, *shared), instance, number, shape_yx) for number, item in enumerate(own)]
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise ImageError(f"series {name}: instance {instance + 1} has a malformed header: {error}") from error


def stack_frames(frames: Sequence[Frame], name: str) -> tuple[list[Frame], np.ndarray]:
    """Put frames in order along the slice normal.

    Returns:
        The frames in order, and the affine (4, 4) from (column, row, slice) to RAS mm.

    Raises:
        ImageError: They differ in size, spacing or orientation, share a position, leave a gap or are sheared.
    """
    if not frames:
        raise ImageError(f"series {name}: no images in it")
    first = frames[0]
    for what in ("shape_yx", "spacing_yx_mm", "orientation"):
        if any(not _is_near(getattr(frame, what), getattr(first, what)) for frame in frames):
            words = {"shape_yx": "sizes", "spacing_yx_mm": "pixel spacings", "orientation": "orientations"}[what]
            raise ImageError(f"series {name}: {len(frames)} images of different {words}; {ADVICE}")
    has_position = [frame.position_mm is not None and frame.orientation is not None for frame in frames]
    if not any(has_position) and len({frame.instance for frame in frames}) == 1:
        step_mm = first.thickness_mm if len(frames) == 1 else 1.0
        return list(frames), _affine(np.array([1.0, 0, 0, 0, 1, 0]), first.spacing_yx_mm, step_mm, np.zeros(3))
    if not all(has_position):
        raise ImageError(f"series {name}: {len(frames)} images without positions are no volume; {ADVICE}")
    rows_xyz = first.orientation.reshape(2, 3)
    if np.abs(rows_xyz @ rows_xyz.T - np.eye(2)).max() > DIRECTION_TOLERANCE:
        raise ImageError(
            f"series {name}: ImageOrientationPatient {rows_xyz.tolist()} is not two orthogonal unit vectors"
        )
    normal = np.cross(*rows_xyz)
    ordered = sorted(frames, key=lambda frame: float(frame.position_mm @ normal))
    positions_mm = np.array([frame.position_mm for frame in ordered])
    step_mm = first.thickness_mm if len(frames) == 1 else _step_mm(positions_mm, normal, name)
    return ordered, _affine(first.orientation, first.spacing_yx_mm, step_mm, positions_mm[0])


def _frame(header: Dataset, groups: Sequence[Dataset], instance: int, number: int, shape_yx: tuple[int, int]) -> Frame:
    def value(group: str, *keywords: str) -> object:
        for item in groups:
            for keyword in keywords:
                if item.get(group) and item[group][0].get(keyword) is not None:
                    return item[group][0].get(keyword)
        return next((header.get(keyword) for keyword in keywords if header.get(keyword) is not None), None)

    def vector(group: str, keyword: str, size: int) -> np.ndarray | None:
        found = value(group, keyword)
        if found is None:
            return None
        array = np.array(found, np.float64)
        if array.shape != (size,) or not np.isfinite(array).all():
            raise ValueError(f"{keyword} is {found}; {size} numbers are expected")
        return array

    spacing = value("PixelMeasuresSequence", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    dy, dx = (float(mm) for mm in spacing) if spacing else (1.0, 1.0)
    thickness = float(value("PixelMeasuresSequence", "SliceThickness") or 0)
    slope = value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = value("PixelValueTransformationSequence", "RescaleIntercept")
    if not (dx > 0 and dy > 0 and min(shape_yx) > 0 and slope != 0):
        raise ValueError(f"{shape_yx[0]} rows and {shape_yx[1]} columns, spacing {dy, dx} mm, RescaleSlope {slope}")
    return Frame(
        instance=instance,
        number=number,
        shape_yx=shape_yx,
        spacing_yx_mm=(dy, dx),
        thickness_mm=thickness if thickness > 0 else 1.0,
        orientation=vector("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        position_mm=vector("PlanePositionSequence", "ImagePositionPatient", 3),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def _step_mm(positions_mm: np.ndarray, normal: np.ndarray, name: str) -> float:
    """The distance of equally spaced slices; positions (N, 3) are in order along the normal."""
    along_mm = positions_mm @ normal
    gaps_mm = np.diff(along_mm)
    if gaps_mm.min() < DUPLICATE_MM:
        n_shared = int((gaps_mm < DUPLICATE_MM).sum())
        raise ImageError(
            f"series {name}: {n_shared} of {len(along_mm)} slices lie where another one lies (phases, echoes, "
            f"b-values?); {ADVICE}"
        )
    step_mm = float(along_mm[-1] - along_mm[0]) / len(gaps_mm)
    off_mm = np.abs(along_mm - along_mm[0] - step_mm * np.arange(len(along_mm)))
    if off_mm.max() > POSITION_TOLERANCE * step_mm:
        widest = int(gaps_mm.argmax())
        raise ImageError(
            f"series {name}: the slices are not equally spaced: {gaps_mm[widest]:.4g} mm between slices {widest + 1} "
            f"and {widest + 2} of {len(along_mm)}, {np.median(gaps_mm):.4g} mm elsewhere; send the missing slices to "
            "the PACS"
        )
    shear = (positions_mm[-1] - positions_mm[0]) / (along_mm[-1] - along_mm[0]) - normal
    if np.abs(shear).max() > DIRECTION_TOLERANCE:
        degrees = np.degrees(np.arctan(np.linalg.norm(shear)))
        raise ImageError(
            f"series {name}: the slices are sheared by {degrees:.3g} degrees (a tilted gantry); resample it to a "
            "straight stack and send that to the PACS"
        )
    return step_mm


def _affine(
    orientation: np.ndarray, spacing_yx_mm: tuple[float, float], step_mm: float, origin: np.ndarray
) -> np.ndarray:
    along_row, along_column = orientation.reshape(2, 3)
    lps = np.eye(4)
    lps[:3, 0] = along_row * spacing_yx_mm[1]
    lps[:3, 1] = along_column * spacing_yx_mm[0]
    lps[:3, 2] = np.cross(along_row, along_column) * step_mm
    lps[:3, 3] = origin
    return LPS_TO_RAS @ lps


def _is_near(a: object, b: object) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.allclose(a, b, rtol=0, atol=1e-4))


def _save(instance: Dataset, n_frames: int, path: Path, name: str) -> None:
    """Write an instance for GDCM, without units and inversion: what it does not know of it does not apply."""
    if "PixelData" not in instance:
        raise ImageError(f"series {name}: an instance without pixels ({instance.get('Modality', 'no modality')})")
    _drop_modality_units(instance)
    if instance.get("PhotometricInterpretation") == "MONOCHROME1":
        instance.PhotometricInterpretation = "MONOCHROME2"
    try:
        if not instance.file_meta.TransferSyntaxUID.is_compressed:
            n_bits = instance.Rows * instance.Columns * instance.SamplesPerPixel * instance.BitsAllocated * n_frames
            n_bytes = n_bits // 8 * 2 // 3 if "422" in instance.PhotometricInterpretation else n_bits // 8
            if len(instance.PixelData) < n_bytes:
                raise ValueError(f"{len(instance.PixelData)} bytes of pixels, and {n_bytes} by its header")
        instance.save_as(path, write_like_original=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise ImageError(f"series {name}: an instance is malformed: {error}") from error


def _drop_modality_units(instance: Dataset) -> None:
    shared = list(instance.get("SharedFunctionalGroupsSequence") or ())
    for item in (instance, *shared, *(instance.get("PerFrameFunctionalGroupsSequence") or ())):
        for keyword in (*MODALITY_UNITS, "PixelValueTransformationSequence"):
            if keyword in item:
                del item[keyword]


def _decode(path: Path, name: str) -> np.ndarray:
    """Stored values of an instance, (frames, rows, columns)."""
    try:
        image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ImageError(f"series {name}: pixels that GDCM cannot decode; is the file whole?") from error
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = array[..., :3] @ LUMINANCE
    return array.reshape(-1, *array.shape[-2:])
