"""Label pictures: one slice of an image with the contours of one or more label maps, as scalable SVG."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from contourpy import contour_generator
from PIL import Image
from scipy.ndimage import distance_transform_edt

from samcorrect.lib.errors import GeometryError
from samcorrect.lib.transforms.frame import normalise_intensity

# A picture is shown at about 300 px, twice that on a fine screen; more only makes the file larger.
MAX_SIDE_PX = 640
# Lengths below are in hundredths of a picture's longest side, so that pictures of all sizes look alike.
LINE_WIDTH = 0.75
HALO_WIDTH = 1.3
NAME_HEIGHT = 3.4
JPEG_QUALITY = 85


@dataclass(frozen=True)
class ContourStyle:
    """How a contour is drawn: readable on grey for the colour-blind, and apart by its dashes without any colour.

    Attributes:
        colour: Hex RGB.
        dashes: Lengths of dash and gap in hundredths of the picture's longest side; empty for a solid line.
    """

    colour: str
    dashes: tuple[float, ...] = ()


CONTOUR_STYLES = {
    "label": ContourStyle("#56b4e9"),
    "before": ContourStyle("#ff8a3d", (2.2, 1.1)),
    "after": ContourStyle("#56b4e9"),
    "ground truth": ContourStyle("#f0e442", (0.7, 0.9)),
}
OTHER_STYLES = (ContourStyle("#e58cc2", (3.0, 0.8, 0.7, 0.8)), ContourStyle("#2fd6a3", (1.2, 0.6)))


@dataclass(frozen=True)
class LabelPicture:
    """One slice to look at.

    Attributes:
        image_id: The image's id in the store.
        image_hw: (H, W) float in [0, 1], rows and columns as displayed.
        contours: Legend name -> (H, W) integer label map, in drawing order.
        caption: What a reader should know about it, in words.
        score: Quality score in [0, 1]; None or nan where not defined.
    """

    image_id: str
    image_hw: np.ndarray
    contours: dict[str, np.ndarray]
    caption: str
    score: float | None = None


def display_slice(array_hwd: np.ndarray, label_maps: Sequence[np.ndarray]) -> int:
    """Choose the slice that shows most of the labels.

    Args:
        array_hwd: (H, W, D) image.
        label_maps: (H, W, D) integer label maps on the image's grid.

    Returns:
        Index along D of the slice with the most labelled voxels over all maps; the middle one where nothing is.
    """
    n_labelled = np.zeros(array_hwd.shape[2], dtype=np.int64)
    for label_map in label_maps:
        n_labelled += np.count_nonzero(label_map, axis=(0, 1))
    return int(n_labelled.argmax()) if n_labelled.any() else array_hwd.shape[2] // 2


def picture_of(
    image_id: str,
    array_hwd: np.ndarray,
    contours: Mapping[str, np.ndarray],
    *,
    caption: str,
    score: float | None = None,
    affine: np.ndarray | None = None,
) -> LabelPicture:
    """Cut the picture of an image and its label maps out of the volumes.

    Args:
        image_id: The image's id in the store.
        array_hwd: (H, W, D) finite image, axes x, y, z.
        contours: Legend name -> (H, W, D) integer label map, in drawing order.
        caption: What a reader should know about it.
        score: Quality score in [0, 1], or None.
        affine: (4, 4) voxel index to RAS mm; it turns the slice as radiologists view it (patient's right on the left,
            front or head at the top). Without it x runs to the right and y down.

    Returns:
        The slice of `display_slice`, clipped at its percentiles, scaled to [0, 1], no side above MAX_SIDE_PX.

    Raises:
        GeometryError: A label map has another shape than the image.
    """
    for name, label_map in contours.items():
        if label_map.shape != array_hwd.shape:
            raise GeometryError(f"{image_id}: {name!r} has shape {label_map.shape}, the image has {array_hwd.shape}")
    index = display_slice(array_hwd, list(contours.values()))
    image_hw = normalise_intensity(as_displayed(array_hwd[:, :, index], affine))
    step = math.ceil(max(image_hw.shape) / MAX_SIDE_PX)
    # The middle of each block, so that contours stay on the pixels that were averaged.
    rows, columns = (np.minimum(np.arange(0, side, step) + step // 2, side - 1) for side in image_hw.shape)
    maps = {
        name: as_displayed(label_map[:, :, index], affine)[np.ix_(rows, columns)]
        for name, label_map in contours.items()
    }
    small = np.asarray(Image.fromarray(image_hw).reduce(step))
    return LabelPicture(image_id, small, maps, caption, score)


def contour_style(name: str, names: Sequence[str]) -> ContourStyle:
    """The style of the contour `name` among all `names` of a report."""
    others = [other for other in names if other not in CONTOUR_STYLES]
    return CONTOUR_STYLES.get(name) or OTHER_STYLES[others.index(name) % len(OTHER_STYLES)]


def picture_svg(picture: LabelPicture, structure_names: Mapping[int, str]) -> str:
    """Draw a picture as one SVG document that refers to nothing outside itself.

    Args:
        picture: What to draw.
        structure_names: Label index -> name, written inside each structure of the first contour.

    Returns:
        SVG text; the image is an embedded JPEG, the contours are paths.
    """
    n_rows, n_columns = picture.image_hw.shape
    unit = max(n_rows, n_columns) / 100
    size = f'width="{n_columns}" height="{n_rows}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n_columns} {n_rows}" {size}>',
        f'<image href="{_jpeg_uri(picture.image_hw)}" {size}/><g fill="none" stroke-linejoin="round">',
    ]
    for number, (name, label_map) in enumerate(picture.contours.items()):
        style = contour_style(name, list(picture.contours))
        dashes = " ".join(f"{length * unit:.2f}" for length in style.dashes) or "none"
        parts += [
            f'<defs><path id="c{number}" d="{_outline(label_map)}"/></defs>',
            f'<use href="#c{number}" stroke="#0006" stroke-width="{HALO_WIDTH * unit:.2f}"/>',
            f'<use href="#c{number}" stroke="{style.colour}" stroke-width="{LINE_WIDTH * unit:.2f}"',
            f' stroke-dasharray="{dashes}"/>',
        ]
    parts.append("</g>")
    first = next(iter(picture.contours.values()), None)
    if first is not None:
        parts += _names(first, structure_names, unit)
    return "".join([*parts, "</svg>"])


def as_displayed(slice_xy: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """Turn a slice (H, W), axes x and y, into rows and columns as `picture_of` shows them."""
    if affine is None:
        return slice_xy.T
    # Patient axis (0 right-left, 1 back-front, 2 feet-head) that each array axis follows, each patient axis once.
    directions = np.asarray(affine)[:3, :2] / np.linalg.norm(np.asarray(affine)[:3, :2], axis=0)
    patient = [int(np.abs(directions[:, 0]).argmax()), 0]
    rest = [axis for axis in range(3) if axis != patient[0]]
    patient[1] = rest[int(np.abs(directions[rest, 1]).argmax())]
    row, column = (0, 1) if patient[0] > patient[1] else (1, 0)
    displayed = slice_xy.transpose(row, column)
    # Rows run to the back or the feet, columns to the patient's left or to the back: all against RAS+.
    flips = [axis for axis, source in enumerate((row, column)) if directions[patient[source], source] > 0]
    return np.flip(displayed, flips)


def _outline(label_map_hw: np.ndarray) -> str:
    paths = []
    for index in np.unique(label_map_hw[label_map_hw > 0]):
        # A rim of background closes the contours of structures that touch the border; centres lie at + 0.5.
        padded = np.pad(label_map_hw == index, 1).astype(np.float32)
        for line in contour_generator(z=padded).lines(0.5):
            corners = line[:-1] - 0.5
            steps = np.diff(line, axis=0)
            is_turn = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
            paths.append("M" + " ".join(f"{x:g},{y:g}" for x, y in corners[is_turn]) + "Z")
    return "".join(paths)


def _names(label_map_hw: np.ndarray, structure_names: Mapping[int, str], unit: float) -> list[str]:
    font = f'font-family="system-ui,sans-serif" font-size="{NAME_HEIGHT * unit:.2f}" text-anchor="middle"'
    paint = f'fill="#fff" stroke="#000a" stroke-width="{HALO_WIDTH * unit / 2:.2f}" paint-order="stroke"'
    texts = []
    for index in np.unique(label_map_hw[label_map_hw > 0]):
        # Control characters are not XML.
        name = "".join(c for c in str(structure_names.get(int(index), "")) if c.isprintable())
        inside = distance_transform_edt(np.pad(label_map_hw == index, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(int(inside.argmax()), inside.shape)
        place = f'x="{column + 0.5}" y="{row + 0.5}" dominant-baseline="central"'
        texts.append(f"<text {place} {font} {paint}>{escape(name)}</text>")
    return texts


def _jpeg_uri(image_hw: np.ndarray) -> str:
    pixels = np.rint(np.clip(np.nan_to_num(image_hw), 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode="L").save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
