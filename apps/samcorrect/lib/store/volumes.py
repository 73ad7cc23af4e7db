"""Images and label maps on disk: NIfTI, NRRD, PNG and JPEG, all read as (H, W, D) arrays with a RAS affine in mm.

The array axes are the file's voxel axes (NIfTI) or x, y (PNG and JPEG, as MONAI's PILReader has it), so a box in x, y,
z is a box along the array axes. D is 1 for 2D images. A PNG has no geometry: it gets 1 mm pixels in LPS order, as
Slicer gives it. Files come from strangers: what a header claims is checked by the file's size before memory is taken.
"""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
from PIL import Image

from samcorrect.lib.errors import GeometryError, ImageError, LabelError
from samcorrect.lib.store.files import write_atomically
from samcorrect.lib.transforms.intensity import intensity_range

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
IMAGE_SUFFIXES = (*LABEL_SUFFIXES, *PICTURE_SUFFIXES)
# Rec. 601, as Pillow makes grey of colour.
LUMINANCE = np.array([0.299, 0.587, 0.114])
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Below this no network of ours sees anything: SAM's encoder keeps one token for 16 x 16 pixels.
MIN_SIDE_VOX = 8
# How far origin and extent of one grid may differ: float32 and the 6 digits that some writers print cost 1e-3 voxels.
GRID_TOLERANCE_VOX = 1e-2
# The same for unit vectors along the axes. A NIfTI quaternion near 180 degrees (LPS order, tilted) loses half its
# digits: nibabel and ITK then read one file up to 6e-4 apart.
DIRECTION_TOLERANCE = 1e-3
MAX_LABEL_INDEX = 255
# 1290 voxels on each side: 8 GiB as float32, more than any scan that a machine of ours could work on.
MAX_VOXELS = 2**31
MAX_HEADER_BYTES = 2**24
# deflate makes 1032 bytes of one at most (zlib.net/zlib_tech.html): what a small file cannot hold, it does not hold.
MAX_INFLATION = 1032
READ_BYTES = 2**20


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie.

    Attributes:
        shape: (H, W, D).
        affine: (4, 4) float64, voxel index to RAS mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along the three array axes."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    def __str__(self) -> str:
        spacing_mm = ", ".join(f"{s:.4g}" for s in self.spacing_mm)
        origin_mm = ", ".join(f"{o:.4g}" for o in self.affine[:3, 3])
        axes = "".join(nib.aff2axcodes(self.affine))
        return f"shape {self.shape}, spacing ({spacing_mm}) mm, origin ({origin_mm}) mm, axes {axes}"


@dataclass(frozen=True)
class Volume:
    """An array on a grid.

    Attributes:
        array: (H, W, D); D is 1 where `n_dims` is 2.
        affine: (4, 4) float64, voxel index to RAS mm.
        n_dims: 2 or 3, the dimensions of the image as its users see it.
    """

    array: np.ndarray
    affine: np.ndarray
    n_dims: int

    @cached_property
    def intensity_range(self) -> tuple[float, float]:
        """The values that become 0 and 1, found at the first use: in 200 slices of 512 x 512 that takes a second."""
        return intensity_range(self.array)

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return Grid(self.array.shape, self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along the three array axes."""
        return self.grid.spacing_mm


def suffix_of(path: Path) -> str:
    """The image suffix of `path` in lower case (".nii.gz" counts as one), or "" where it is none of ours."""
    name = path.name.lower()
    return next((s for s in IMAGE_SUFFIXES if name.endswith(s)), "")


def says_spacing(file_name: str) -> bool:
    """Whether a file of this name says how large a voxel is; a PNG or JPEG does not."""
    return not file_name.lower().endswith(PICTURE_SUFFIXES)


def read_image(path: Path) -> Volume:
    """Read an image as float32; colour becomes luminance, as seen on black where it is transparent.

    Raises:
        ImageError: Not a readable 2D or 3D image, or it holds NaN or infinite values; the message names the file.
    """
    array, affine, n_dims = _read(path, ImageError)
    array = np.ascontiguousarray(array, dtype=np.float32)
    if n_bad := array.size - np.count_nonzero(np.isfinite(array)):
        raise ImageError(f"{path.name}: {n_bad} values are NaN or infinite; repair or remove the image")
    if min(array.shape[:2]) < MIN_SIDE_VOX:
        raise ImageError(
            f"{path.name}: the slices are {array.shape[:2]} voxels, at least {MIN_SIDE_VOX} are needed on each side"
        )
    return Volume(array, affine, n_dims)


def read_grid(path: Path) -> Grid:
    """Where the voxels of an image or label file lie, from its header alone.

    Raises:
        ImageError: The header cannot be read.
    """
    suffix = suffix_of(path)
    try:
        if suffix in (".nii.gz", ".nii"):
            header = nib.load(path)
            shape, affine = header.shape, np.asarray(header.affine, dtype=np.float64)
        elif suffix == ".nrrd":
            header = nrrd.read_header(str(path))
            shape, affine = tuple(int(n) for n in header["sizes"]), _nrrd_affine(header)
        else:
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                shape, affine = picture.size, LPS_TO_RAS.copy()
    except Exception as error:  # as in _read
        raise ImageError(f"{path.name}: its header cannot be read: {' '.join(str(error).split())[:200]}") from error
    if any(n != 1 for n in shape[3:]):
        raise ImageError(f"{path.name}: {len(shape)} dimensions {shape}; split it into volumes of 2 or 3 dimensions")
    return Grid((*shape, 1)[:3], affine)


def check_grid(label: Grid, image: Grid, *, name: str = "label") -> None:
    """Raises GeometryError, giving both grids, where a label's voxels are not its image's."""
    if not _is_same_grid(label, image):
        raise _other_grid(label, image, name)


def read_label_map(path: Path) -> Volume:
    """Read a label map as uint8; every value must be a whole number from 0 to 255.

    Raises:
        LabelError: Not readable, or it holds other values.
    """
    array, affine, n_dims = _read(path, LabelError)
    return Volume(np.ascontiguousarray(_as_label_map(array, path.name)), affine, n_dims)


def align_label_map(label: Volume, image: Grid, *, name: str = "label") -> np.ndarray:
    """Put a label map on the grid of its image without resampling: axes are permuted and flipped, nothing else.

    Returns:
        (H, W, D) uint8 on the image's grid.

    Raises:
        GeometryError: No such reorientation exists; the message gives both grids.
    """
    voxel_to_voxel = np.linalg.inv(image.affine) @ label.affine
    signs = np.rint(voxel_to_voxel[:3, :3])
    if not (np.array_equal(np.abs(signs).sum(0), np.ones(3)) and np.array_equal(np.abs(signs).sum(1), np.ones(3))):
        raise _other_grid(label.grid, image, name)
    axes = [int(np.argmax(np.abs(signs[axis]))) for axis in range(3)]
    flipped = [axis for axis in range(3) if signs[axis, axes[axis]] < 0]
    array = np.transpose(label.array, axes)
    reorientation = np.eye(4)
    reorientation[:3, :3] = signs
    reorientation[flipped, 3] = np.array(array.shape)[flipped] - 1
    reoriented = Grid(array.shape, label.affine @ np.linalg.inv(reorientation))
    if not _is_same_grid(reoriented, image):
        raise _other_grid(label.grid, image, name)
    return np.ascontiguousarray(np.flip(array, flipped) if flipped else array)


def write_label_map(path: Path, label_map: np.ndarray, affine: np.ndarray, *, is_compressed: bool = True) -> None:
    """Write an (H, W, D) label map as uint8 NIfTI or NRRD by the suffix of `path`, atomically.

    Args:
        path: Where to.
        label_map: (H, W, D), whole numbers.
        affine: (4, 4), voxel index to RAS mm.
        is_compressed: False writes raw NRRD, for viewers that cannot unpack.

    Raises:
        LabelError: The suffix is neither `.nii`, `.nii.gz` nor `.nrrd`, or a value is not a whole number from 0 to 255.
    """
    array, suffix = _as_label_map(label_map, path.name), suffix_of(path)
    if suffix not in LABEL_SUFFIXES:
        raise LabelError(f"{path.name}: labels are written as .nii.gz, .nii or .nrrd")
    encode = partial(encode_label_map, array=array, affine=affine, is_compressed=is_compressed)
    write_atomically(path, encode, suffix=suffix)


def encode_label_map(path: Path, array: np.ndarray, affine: np.ndarray, *, is_compressed: bool = True) -> None:
    """Write a uint8 label map as `write_label_map` does, straight into the file: for one that lives until a reply is
    sent. Fastest where its slices lie side by side (order "F"). Raises OSError where the file cannot be written.
    """
    if suffix_of(path) != ".nrrd":
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        # gzip keeps a time stamp in its header; nibabel writes 0, so equal labels are equal files.
        nib.save(image, path)
    else:
        lps = LPS_TO_RAS @ affine
        header = {
            "space": "left-posterior-superior",
            "space directions": lps[:3, :3].T,
            "space origin": lps[:3, 3],
            "kinds": ["domain"] * 3,
            "encoding": "gzip" if is_compressed else "raw",
        }
        # Level 9 takes ten times as long, for a file of 0.1% of the voxels rather than 0.4%.
        nrrd.write(str(path), array, header, compression_level=1)


def write_map(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write an (H, W, D) map of numbers as float32 NIfTI, atomically.

    Raises:
        LabelError: The suffix is neither `.nii` nor `.nii.gz`.
    """
    suffix = suffix_of(path)
    if suffix not in (".nii.gz", ".nii"):
        raise LabelError(f"{path.name}: maps are written as .nii.gz or .nii")
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    write_atomically(path, lambda temporary: nib.save(image, temporary), suffix=suffix)


def _read(path: Path, error_type: type[Exception]) -> tuple[np.ndarray, np.ndarray, int]:
    suffix = suffix_of(path)
    if not suffix:
        raise error_type(f"{path.name}: not one of the file types {', '.join(IMAGE_SUFFIXES)}")
    if not path.is_file():
        raise error_type(f"{path.name}: no such file in {path.parent}")
    if path.stat().st_size == 0:
        raise error_type(f"{path.name}: the file is empty")
    try:
        if suffix in (".nii.gz", ".nii"):
            array, affine = _read_nifti(path, is_label=error_type is LabelError)
        elif suffix == ".nrrd":
            array, affine = _read_nrrd(path)
        else:
            array, affine = _read_picture(path, is_label=error_type is LabelError)
    except Exception as error:  # whatever a reader trips over in a stranger's file is a fault of that file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise error_type(f"{path.name}: cannot be read as {suffix[1:]}: {reason}") from error
    if array.dtype.kind not in "biuf":
        raise error_type(f"{path.name}: voxels of type {array.dtype}; store one real number per voxel")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    n_dims = 2 if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1) else array.ndim
    if n_dims not in (2, 3):
        raise error_type(f"{path.name}: {n_dims} dimensions {array.shape}; split it into volumes of 2 or 3 dimensions")
    if array.size == 0 or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise error_type(f"{path.name}: no voxels, or an affine that cannot be inverted: shape {array.shape}")
    return array.reshape(*array.shape[:2], -1), affine, n_dims


def _as_label_map(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "b" or np.can_cast(array.dtype, np.uint8):
        return array.astype(np.uint8, copy=False)
    wrong = ~((array >= 0) & (array <= MAX_LABEL_INDEX) & (array == np.floor(array)))  # nan fails every comparison
    if wrong.any():
        values = ", ".join(f"{value:g}" for value in np.unique(array[wrong])[:3])
        raise LabelError(
            f"{name}: a label map holds whole numbers from 0 to {MAX_LABEL_INDEX}; this one holds {values}"
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def _check_claim(path: Path, shape: tuple[int, ...], itemsize: int, *, inflation: int) -> None:
    """Refuse a header that claims more voxels than the file can hold, before anyone makes room for them."""
    n_voxels = math.prod(int(n) for n in shape)
    most_bytes = path.stat().st_size * inflation
    if n_voxels > MAX_VOXELS or n_voxels * itemsize > most_bytes:
        raise ValueError(
            f"the header claims {' x '.join(map(str, shape))} voxels of {itemsize} bytes; "
            f"this file holds {most_bytes} bytes at most, and {MAX_VOXELS} voxels are the limit"
        )


def _read_nifti(path: Path, *, is_label: bool) -> tuple[np.ndarray, np.ndarray]:
    is_gzip = suffix_of(path) == ".nii.gz"
    with gzip.open(path) if is_gzip else path.open("rb") as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        is_second = nib.Nifti2Header.sizeof_hdr in (int.from_bytes(start[:4], order) for order in ("little", "big"))
        image_class = nib.Nifti2Image if is_second else nib.Nifti1Image
        header = image_class.header_class(start[: image_class.header_class.sizeof_hdr], check=False)
        if header["vox_offset"] > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header['vox_offset']:.0f} bytes; {MAX_HEADER_BYTES} are the limit")
        dtype = header.get_data_dtype()
        if dtype.fields is not None and is_label:
            raise ValueError("a label in colours (RGB voxels) names no classes; store one value per voxel")
        _check_claim(path, header.get_data_shape(), dtype.itemsize, inflation=MAX_INFLATION if is_gzip else 1)
        stream.seek(0)
        image = image_class.from_stream(stream)
        array = np.asanyarray(image.dataobj)
        while is_gzip and stream.read(READ_BYTES):
            pass  # gzip compares its checksum at the end of the file alone, which nibabel does not ask for
    if dtype.fields is not None:
        opacity = array["A"] / 255 if "A" in dtype.fields else 1.0
        array = opacity * sum(weight * array[name] for weight, name in zip(LUMINANCE, "RGB", strict=True))
    return array, np.asarray(image.affine, dtype=np.float64)


def _read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as stream:
        if b"\n\n" not in (start := stream.read(MAX_HEADER_BYTES)) and b"\r\n\r\n" not in start:
            raise ValueError(f"no end of the header within {MAX_HEADER_BYTES} bytes")
        stream.seek(0)
        header = nrrd.read_header(stream)
        if {"data file", "datafile"} & header.keys():
            raise ValueError("the header names another file; only files that hold header and voxels are read")
        if header["encoding"] not in ("raw", "gzip", "gz"):
            raise ValueError(f"the encoding is {header['encoding']!r}; write it as raw or gzip")
        _check_claim(path, tuple(header["sizes"]), 1, inflation=MAX_INFLATION)
        content = stream.read()
    if header["encoding"] != "raw":
        # pynrrd would unpack all there is, were it a million times what the header says.
        n_bytes = 8 * math.prod(map(int, header["sizes"])) + 1
        content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, n_bytes)
        header["encoding"] = "raw"
    return nrrd.read_data(header, io.BytesIO(content)), _nrrd_affine(header)


def _nrrd_affine(header: dict) -> np.ndarray:
    affine = np.eye(4)
    n_axes = min(3, len(header["sizes"]))
    directions = header.get("space directions")
    if directions is not None:
        n_space = directions.shape[1]
        affine[:n_space, :n_axes] = np.asarray(directions, dtype=np.float64)[:n_axes].T
        affine[:n_space, 3] = header.get("space origin", np.zeros(n_space))
    elif "spacings" in header:
        affine[range(n_axes), range(n_axes)] = header["spacings"][:n_axes]
    space = header.get("space", "left-posterior-superior")
    if space in ("left-posterior-superior", "LPS", "scanner-xyz"):
        affine = LPS_TO_RAS @ affine
    elif space not in ("right-anterior-superior", "RAS"):
        raise ValueError(f"space {space!r} is neither LPS nor RAS")
    return affine


def _read_picture(path: Path, *, is_label: bool) -> tuple[np.ndarray, np.ndarray]:
    # The bytes decide the decoder, not the suffix: of Pillow's many, only these two may see a stranger's file.
    with Image.open(path, formats=("PNG", "JPEG")) as picture:
        picture.load()
        if is_label and picture.format != "PNG":
            raise ValueError("JPEG changes values at every edge and cannot hold a label; store it as PNG or NIfTI")
        if picture.mode in ("P", "PA") and is_label:
            # The class of a label is the palette's index; its colour is for the eye.
            array = np.asarray(picture.getchannel(0) if picture.mode == "PA" else picture)
        elif picture.mode in ("1", "L", "I", "I;16", "I;16B", "F"):
            array = np.asarray(picture)
        else:
            opaque = Image.new("RGBA", picture.size, "black")
            opaque = picture if is_label else Image.alpha_composite(opaque, picture.convert("RGBA"))
            colours = opaque.convert("RGB")
            array = np.asarray(colours.convert("L"))
            if is_label and not (np.asarray(colours) == array[..., None]).all():
                raise ValueError(f"a label in colours ({picture.mode}) names no classes; store them as grey values")
    return array.T, LPS_TO_RAS.copy()


def _is_same_grid(label: Grid, image: Grid) -> bool:
    if label.shape != image.shape:
        return False
    label_mm, image_mm = np.array(label.spacing_mm), np.array(image.spacing_mm)
    stretch_vox = np.abs(label_mm / image_mm - 1) * image.shape
    shift_vox = (np.linalg.inv(image.affine) @ label.affine[:, 3])[:3]
    turn = label.affine[:3, :3] / label_mm - image.affine[:3, :3] / image_mm
    distances_vox = np.abs([*stretch_vox, *shift_vox])
    return distances_vox.max() <= GRID_TOLERANCE_VOX and np.abs(turn).max() <= DIRECTION_TOLERANCE


def _other_grid(label: Grid, image: Grid, name: str) -> GeometryError:
    return GeometryError(
        f"{name} is not on its image's grid: it has {label}; the image has {image}. "
        "Resample the label onto the image and submit it again"
    )
