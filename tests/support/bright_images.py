"""Images for `tests.support.fake_models`: black, with one bright rectangle.

The first pixel is theirs: some colours make the fake models misbehave.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.sources.units import Member, Unit, make_unit
from segcore.storage import Storage
from tests.support.jobs import write_files

Color = tuple[int, int, int]  # RGB
Box = tuple[int, int, int, int]  # top, bottom, left, right; half-open, pixels
BRIGHT_AREA = 108  # pixels of the rectangle that `bright_png` draws, 9 x 12
BLACK: Color = (0, 0, 0)


def bright_png(
    seed: int = 0,
    first_pixel: Color = BLACK,
    *,
    size: tuple[int, int] | None = None,
    bright: bool = True,
) -> bytes:
    """A PNG that is a function of its arguments.

    Args:
        seed: Draws the place of the rectangle, 9 x 12 pixels where the image has room for it.
        first_pixel: Colour at (0, 0).
        size: (height, width); a height that varies with the seed, and 56, by default.
        bright: Whether there is a rectangle at all. `BrightModel` finds one instance if so.
    """
    height, width = size or (40 + seed % 7, 56)
    pixels = np.zeros((height, width, 3), np.uint8)
    if bright:
        rng = np.random.default_rng(seed)
        rows, columns = min(9, height // 2), min(12, width // 2)
        top, left = rng.integers(1, (height - rows, width - columns))
        pixels[top : top + rows, left : left + columns, 1] = 220
    return _png(pixels, first_pixel)


def bright_pngs(n: int) -> dict[str, bytes]:
    """`n` images with names in order, such as `007.png`."""
    return {f"{i:03d}.png": bright_png(i) for i in range(n)}


def boxed_png(
    height: int, width: int, first_pixel: Color = BLACK, box: Box = (2, 6, 1, 5)
) -> bytes:
    """A PNG of this size with one bright box at a chosen place."""
    top, bottom, left, right = box
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right, 1] = 200
    return _png(pixels, first_pixel)


def unit_of_files(folder: Path, contents: dict[str, bytes]) -> Unit:
    """Write files into a folder, and make one unit of them."""
    write_files(folder, contents)
    members = []
    for name in contents:
        info = Storage().stat(str(folder / name))
        members.append(Member(info.uri, info.uri, info.etag, info.size))
    return make_unit(
        "objects", stop=len(members), n_images=len(members), n_bytes=1, members=members
    )


def _png(pixels: np.ndarray, first_pixel: Color) -> bytes:
    pixels[0, 0] = first_pixel
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
