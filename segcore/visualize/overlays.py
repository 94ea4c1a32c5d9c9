"""Masks drawn over their images, and sheets of them for a first look."""

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
_PAPER, _INK, _FAINT = (250, 250, 250), (25, 25, 25), (110, 110, 110)
_FILL = 0.30  # opacity of a mask; its outline is opaque
_PAD = 14
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        counts: COCO compressed RLE strings of the masks, canvas (H, W).
        title: First line below the picture, such as the file name.
        subtitle: Second line.
    """

    image: np.ndarray
    counts: Sequence[str | bytes]
    title: str
    subtitle: str = ""


def overlay(image: np.ndarray, counts: Sequence[str | bytes], scale: float = 1.0) -> np.ndarray:
    """Masks over an image: see-through fill and an opaque outline, one colour each.

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
        mask = masks.decode(text, height, width)
        # through float, so that an enlarged outline is smooth and not a staircase
        enlarged = cv2.resize(mask.astype(np.float32), size, interpolation=_interpolation(scale))
        inside = (enlarged >= 0.5).astype(np.uint8)
        colour = COLOURS[number % len(COLOURS)]
        tinted[inside > 0] = colour
        found, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        outlines.append((found, colour))
    drawn = cv2.addWeighted(tinted, _FILL, drawn, 1 - _FILL, 0)
    for found, colour in outlines:
        cv2.drawContours(drawn, found, -1, colour, 1, cv2.LINE_8)
    return drawn


def stretch(image: np.ndarray) -> np.ndarray:
    """Brighten a dark image for display: its 99.8th percentile becomes nearly white."""
    top = float(np.percentile(image, 99.8))
    if not 0 < top < 200:
        return image
    return np.clip(image.astype(np.float32) * (240 / top), 0, 255).astype(np.uint8)


def contact_sheet(
    tiles: Sequence[Tile], title: str, note: str = "", columns: int = 4, side: int = 340
) -> np.ndarray:
    """A grid of overlays with a heading, for people who have never seen the archive.

    Dark images are brightened. Pictures keep their proportions inside a square of `side` pixels.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: No tiles.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one tile")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    caption = 50
    heading = 76 if note else 52
    width = _PAD + columns * (side + _PAD)
    sheet = np.full((heading + rows * (side + caption + _PAD), width, 3), _PAPER, np.uint8)
    _write(sheet, title, (_PAD, 36), 0.85, _INK, width - 2 * _PAD, thickness=2)
    if note:
        _write(sheet, note, (_PAD, 62), 0.5, _FAINT, width - 2 * _PAD)
    for number, tile in enumerate(tiles):
        x = _PAD + (number % columns) * (side + _PAD)
        y = heading + (number // columns) * (side + caption + _PAD)
        height_, width_ = tile.image.shape[:2]
        picture = overlay(stretch(tile.image), tile.counts, side / max(height_, width_))
        top, left = y + (side - picture.shape[0]), x  # on the line of the captions
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        _write(sheet, tile.title, (x, y + side + 20), 0.5, _INK, side)
        _write(sheet, tile.subtitle, (x, y + side + 40), 0.45, _FAINT, side)
    return sheet


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
    at: tuple[int, int],
    size: float,
    colour: tuple[int, int, int],
    room: int,
    thickness: int = 1,
) -> None:
    """One line of text with its baseline at x, y, cut to `room` pixels from the left.

    OpenCV's fonts know ASCII only; the end of a name tells more than its beginning.
    """
    text = text.encode("ascii", "replace").decode()
    shown = text
    while cv2.getTextSize(shown, _FONT, size, thickness)[0][0] > room and len(text) > 1:
        text = text[1:]
        shown = "..." + text
    cv2.putText(sheet, shown, at, _FONT, size, colour, thickness, cv2.LINE_AA)
