"""EXIF orientation: read from metadata, applied to pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # EXIF tag


def exif_orientation(exif: bytes) -> int:
    """EXIF orientation 1..8; 1 where none can be read."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # broken metadata does not make the pixels wrong
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def oriented_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored -> as displayed, and the other way round."""
    return (size[1], size[0]) if orientation >= 5 else size


def reversed_sides(orientation: int) -> tuple[bool, bool]:
    """Whether the stored rows, and the stored columns, are displayed in reverse."""
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return (columns, rows) if orientation >= 5 else (rows, columns)


def apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are to be displayed, C-contiguous."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
