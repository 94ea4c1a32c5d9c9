"""Small runs of `BrightModel`: images that it finds something in, and what a run wrote."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from segcore.config import Config, load_config
from segcore.output.layout import EditionLayout
from segcore.storage import Storage

BRIGHT_MODEL = "tests.support.fake_models:BrightModel"
BRIGHT_AREA = 108  # pixels of the instance in each image of `bright_png`


def bright_png(seed: int, first_pixel: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    """An image with one bright rectangle; its first pixel tells the model how to misbehave."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((40 + seed % 7, 56, 3), np.uint8)
    y, x = rng.integers(1, 20, 2)
    pixels[y : y + 9, x : x + 12, 1] = 220
    pixels[0, 0] = first_pixel
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bright_config(source: str, output: str, *sets: str, model: str = BRIGHT_MODEL) -> Config:
    """A run from `source` to `output`, with options as ``--set`` takes them."""
    flags = {
        "INPUT": ("input", source),
        "OUTPUT": ("output", output),
        "--model": ("model.name", model),
    }
    return load_config(sets=list(sets), flags=flags)


def part_files(prefix: str) -> dict[str, bytes]:
    """Bytes of all parts of an edition, by their name below it."""
    storage, layout = Storage(), EditionLayout(prefix)
    return {
        info.uri.removeprefix(prefix): storage.read(info.uri)
        for folder in (layout.parts_folder("images"), layout.parts_folder("instances"))
        for info in storage.list(folder)
    }
