"""Masks drawn over their images, and contact sheets of such pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segcore import masks

# RGB, far apart in hue and bright on dark and light images alike; cycled by instance.
COLOURS = (
    (255, 99, 71),
    (64, 196, 255),
    (255, 214, 0),
    (105, 240, 174),
    (234, 128, 252),
    (255, 171, 64),
    (140, 158, 255),
    (178, 255, 89),
    (255, 128, 171),
    (29, 233, 182),
)
_BACKGROUND, _TEXT, _SECONDARY_TEXT = (250, 250, 250), (25, 25, 25), (110, 110, 110)  # RGB
_FILL_OPACITY = 0.30  # of a mask; its outline is opaque
_BRIGHTNESS_PERCENTILE = 99.8
_DARK_BELOW, _BRIGHTENED_TO = 200, 240  # values of that percentile
_ENLARGED_TO, _MAX_ENLARGEMENT = 768, 4  # pixels of the longer side of a small image; times
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MAX_LINE_CHARS = 500  # more than fit into any line, and what is measured letter by letter

# Layout of a contact sheet, in pixels.
_PADDING = 14
_CAPTION_HEIGHT = 50
_HEADING_HEIGHT, _HEADING_HEIGHT_WITH_NOTE = 52, 76
_TITLE_BASELINE, _NOTE_BASELINE = 36, 62  # from the top of the sheet
_CAPTION_BASELINES = 20, 40  # from the bottom of the picture


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        counts: COCO compressed RLE strings of the masks, canvas (H, W).
        title: First line below the picture, such as the file name.
        subtitle: Second line.
        is_drawn: The image is a finished picture: it is neither brightened nor drawn upon.
    """

    image: np.ndarray
    counts: Sequence[str | bytes]
    title: str
    subtitle: str = ""
    is_drawn: bool = False


def picture_scale(image: np.ndarray, scale: float | None = None) -> float:
    """The size of a picture relative to its image; None: small images are enlarged.

    On a picture of the size of an image of 256 pixels, labels would hide the masks.
    """
    if scale is not None:
        return scale
    return float(min(max(_ENLARGED_TO // max(image.shape[:2]), 1), _MAX_ENLARGEMENT))


def overlay(image: np.ndarray, counts: Sequence[str | bytes], scale: float = 1.0) -> np.ndarray:
    """Masks over an image: each in one colour, with a translucent fill and an opaque outline.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        counts: COCO compressed RLE strings on a canvas of (H, W).
        scale: Size of the result relative to the image.

    Returns:
        (round(H * scale), round(W * scale), 3) uint8 RGB.

    Raises:
        ValueError: A string is not a mask on this canvas.
    """
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = cv2.resize(image, size, interpolation=_interpolation(scale))
    tinted = drawn.copy()
    outlines = []
    for number, text in enumerate(counts):
        inside, corner = _drawn_mask(text, (height, width), size)
        colour = COLOURS[number % len(COLOURS)]
        left, top = corner
        bottom, right = top + inside.shape[0], left + inside.shape[1]
        tinted[top:bottom, left:right][inside > 0] = colour
        contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=corner)
        outlines.append((contours, colour))
    drawn = cv2.addWeighted(tinted, _FILL_OPACITY, drawn, 1 - _FILL_OPACITY, 0)
    for contours, colour in outlines:
        cv2.drawContours(drawn, contours, -1, colour, 1, cv2.LINE_8)
    return drawn


def _drawn_mask(
    text: str | bytes, canvas: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of a mask in a picture of another size, around its box alone.

    Args:
        canvas: (height, width) of the mask.
        size: (width, height) of the picture.

    Returns:
        (h, w) uint8, and the (x, y) of its corner in the picture.
    """
    height, width = canvas
    x, y, w, h = masks.bbox(text, height, width)
    x0, y0, x1, y1 = max(x - 1, 0), max(y - 1, 0), min(x + w + 1, width), min(y + h + 1, height)
    crop = masks.decode_columns(text, height, width, x0, x1)[y0:y1].astype(np.float32)
    left, right = (round(edge * size[0] / width) for edge in (x0, x1))
    top, bottom = (round(edge * size[1] / height) for edge in (y0, y1))
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # it may be smaller than a pixel
    # Resized as float, so that an enlarged outline is smooth and not a staircase.
    interpolation = _interpolation(size[0] / width)
    coverage = cv2.resize(crop, (right - left, bottom - top), interpolation=interpolation)
    return (coverage >= 0.5).astype(np.uint8), (left, top)


def brighten(image: np.ndarray) -> np.ndarray:
    """Brighten a dark image for display: its 99.8th percentile becomes nearly white."""
    level = float(np.percentile(image, _BRIGHTNESS_PERCENTILE))
    if not 0 < level < _DARK_BELOW:
        return image
    return np.clip(image.astype(np.float32) * (_BRIGHTENED_TO / level), 0, 255).astype(np.uint8)


def contact_sheet(
    tiles: Sequence[Tile], title: str, note: str = "", columns: int = 4, side: int = 340
) -> np.ndarray:
    """A grid of overlays with a heading, for people who have never seen the archive.

    Dark images are brightened. Pictures keep their proportions inside a square of `side` pixels.

    Args:
        title, note: The lines of the heading.
        columns: Pictures in a row, at most.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: No tiles.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one tile")
    columns = min(columns, len(tiles))
    pictures = [_tile_picture(tile, side) for tile in tiles]
    rows = [range(len(tiles))[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(pictures[i].shape[0] for i in row) + _CAPTION_HEIGHT + _PADDING for row in rows]
    heading_height = _HEADING_HEIGHT_WITH_NOTE if note else _HEADING_HEIGHT
    cell_width = side + _PADDING
    width = _PADDING + columns * cell_width
    text_width = width - 2 * _PADDING
    sheet = np.full((heading_height + sum(heights), width, 3), _BACKGROUND, np.uint8)
    _write(sheet, title, (_PADDING, _TITLE_BASELINE), 0.85, _TEXT, text_width, thickness=2)
    if note:
        _write(sheet, note, (_PADDING, _NOTE_BASELINE), 0.5, _SECONDARY_TEXT, text_width)
    bottom = heading_height - _CAPTION_HEIGHT - _PADDING
    for row, height in zip(rows, heights, strict=True):
        bottom += height  # pictures stand on their captions
        for column, i in enumerate(row):
            x, (picture_height, picture_width) = (
                _PADDING + column * cell_width,
                pictures[i].shape[:2],
            )
            sheet[bottom - picture_height : bottom, x : x + picture_width] = pictures[i]
            title_baseline, subtitle_baseline = (bottom + offset for offset in _CAPTION_BASELINES)
            _write(sheet, tiles[i].title, (x, title_baseline), 0.5, _TEXT, side)
            _write(sheet, tiles[i].subtitle, (x, subtitle_baseline), 0.45, _SECONDARY_TEXT, side)
    return sheet


def _tile_picture(tile: Tile, side: int) -> np.ndarray:
    image = tile.image if tile.is_drawn else brighten(tile.image)
    return overlay(image, tile.counts, side / max(image.shape[:2]))


def to_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG file."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(f"an image of shape {image.shape} cannot be written as PNG")
    return data.tobytes()


def _interpolation(scale: float) -> int:
    return cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR


def _write(
    sheet: np.ndarray,
    text: str,
    origin: tuple[int, int],
    font_scale: float,
    colour: tuple[int, int, int],
    max_width: int,
    thickness: int = 1,
) -> None:
    """Write one line of text whose baseline begins at `origin` (x, y).

    Text wider than `max_width` pixels loses its beginning: the end of a name tells more. OpenCV's
    fonts have ASCII characters only.
    """
    text = text[-_MAX_LINE_CHARS:].encode("ascii", "replace").decode()
    shown = text
    while cv2.getTextSize(shown, _FONT, font_scale, thickness)[0][0] > max_width and len(text) > 1:
        text = text[1:]
        shown = "..." + text
    cv2.putText(sheet, shown, origin, _FONT, font_scale, colour, thickness, cv2.LINE_AA)
