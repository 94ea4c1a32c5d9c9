"""Images for `tests.support.fake_models.BrightModel`, which finds what is bright in green."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.sources.units import Member, Unit, make_unit
from segcore.storage import Storage

Box = tuple[int, int, int, int]  # top, bottom, left, right; half-open, pixels


def bright_png(
    height: int,
    width: int,
    first_pixel: tuple[int, int, int] = (0, 0, 0),
    box: Box = (2, 6, 1, 5),
) -> bytes:
    """A black PNG with a bright box; its first pixel tells the model how to behave."""
    top, bottom, left, right = box
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right, 1] = 200
    pixels[0, 0] = first_pixel
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_files(folder: Path, contents: dict[str, bytes]) -> str:
    """Write files into a folder; returns its path."""
    for name, data in contents.items():
        Storage().write(str(folder / name), data)
    return str(folder)


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
