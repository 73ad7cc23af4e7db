"""A label picture with a heat map beside it, as one self-contained SVG."""

import base64
import io
from collections.abc import Mapping
from html import escape

import matplotlib as mpl
import numpy as np
from PIL import Image

from samcorrect.lib.report.pictures import LabelPicture, contour_style, picture_svg

COLOUR_MAP = "inferno"
# Of the picture's longest side.
GAP, TEXT_HEIGHT = 0.04, 0.04
FONT = 'font-family="system-ui,sans-serif"'


def beside_heat(
    picture: LabelPicture, structure_names: Mapping[int, str], heat_hw: np.ndarray | None, heat_caption: str
) -> str:
    """Draw a picture, its legend and, beside it, a heat map.

    Args:
        picture: As for `picture_svg`.
        structure_names: Likewise.
        heat_hw: Values in [0, 1] of the same slice as displayed, of any resolution; None draws the picture alone.
        heat_caption: What 0 and 1 in it mean; a line for each part that ends in a semicolon.

    Returns:
        SVG text that refers to nothing outside itself.
    """
    n_rows, n_columns = picture.image_hw.shape
    gap, text = (share * max(n_rows, n_columns) for share in (GAP, TEXT_HEIGHT))
    captions = [] if heat_hw is None else heat_caption.split("; ")
    n_lines = max(len(captions), len(picture.contours))
    width = n_columns if heat_hw is None else 2 * n_columns + gap
    height = n_rows + (n_lines + 0.5) * 1.3 * text
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        f"<title>{_text(picture.caption)}</title>",
        picture_svg(picture, structure_names),
    ]
    for line, name in enumerate(picture.contours):
        style, y = contour_style(name, list(picture.contours)), n_rows + (line + 1) * 1.3 * text
        dashes = " ".join(f"{length * max(n_rows, n_columns) / 100:.2f}" for length in style.dashes) or "none"
        parts += [
            f'<line x1="0" x2="{3 * text:g}" y1="{y - text / 3:g}" y2="{y - text / 3:g}" stroke="{style.colour}"',
            f' stroke-width="{text / 4:g}" stroke-dasharray="{dashes}"/>',
            f'<text x="{3.5 * text:g}" y="{y:g}" font-size="{text:g}" {FONT} fill="#888">{_text(name)}</text>',
        ]
    if heat_hw is not None:
        place = f'x="{n_columns + gap:g}" y="0" width="{n_columns}" height="{n_rows}"'
        parts.append(f'<image href="{_heat_uri(heat_hw, picture.image_hw.shape)}" {place}/>')
        for line, words in enumerate(captions):
            at = f'x="{n_columns + gap:g}" y="{n_rows + (line + 1) * 1.3 * text:g}" font-size="{text:g}"'
            parts.append(f'<text {at} {FONT} fill="#888">{_text(words)}</text>')
        if picture.contours:
            # The label's outline, which `picture_svg` defines.
            parts.append(
                f'<use href="#c0" x="{n_columns + gap:g}" fill="none" stroke="#fff" stroke-width="{gap / 8:g}"/>'
            )
    return "".join([*parts, "</svg>"])


def _text(words: str) -> str:
    # Control characters are not XML.
    return escape("".join(c for c in words if c.isprintable()))


def _heat_uri(heat_hw: np.ndarray, shape_hw: tuple[int, int]) -> str:
    scaled = Image.fromarray(np.ascontiguousarray(heat_hw, np.float32)).resize(shape_hw[::-1], Image.Resampling.BOX)
    colours = mpl.colormaps[COLOUR_MAP](np.clip(np.asarray(scaled), 0, 1), bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
