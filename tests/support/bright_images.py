"""Images for `tests.support.fake_models`: black, with one bright rectangle.

The first pixel is theirs: some colours make the fake models misbehave.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

Color = tuple[int, int, int]  # RGB
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
    pixels[0, 0] = first_pixel
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bright_pngs(n: int) -> dict[str, bytes]:
    """`n` images with names in order, such as `007.png`."""
    return {f"{i:03d}.png": bright_png(i) for i in range(n)}
