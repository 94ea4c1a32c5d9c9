"""The independent readers: each gives 8-bit RGB by the rules of docs/formats.md, or None."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageOps

from tests.grid.files import GridFile, as_rgb, eight_bits, inks_to_rgb, turned

pillow_heif.register_heif_opener()
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def opencv(file: GridFile) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    image = cv2.imdecode(np.frombuffer(file.data, np.uint8), flags)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        return None
    if image.dtype == np.uint16:  # of AVIF and JPEG 2000 the samples as they are
        bits = file.row.get("bits", 16) if file.format in ("avif", "jp2") else 16
        image = eight_bits(image, bits)
    return as_rgb(image if image.ndim == 2 else image[..., ::-1])


def pillow(file: GridFile) -> np.ndarray | None:
    with Image.open(io.BytesIO(file.data)) as image:
        image.load()
        if image.mode in ("I", "F"):
            return None
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return as_rgb(eight_bits(np.asarray(upright), 16))
        if upright.mode in ("RGBA", "LA"):
            return as_rgb(np.asarray(upright))
        return np.asarray(upright.convert("RGB"))


def tifffile_pages(file: GridFile) -> np.ndarray | None:
    """The first page, its numbers made colours here."""
    with tifffile.TiffFile(io.BytesIO(file.data)) as tiff:
        page = tiff.pages[0]
        samples = np.asarray(page.asarray())
        if samples.dtype.kind not in "ub" or page.bitspersample > 16:
            return None
        if samples.ndim == 3 and page.planarconfig == 2 and page.samplesperpixel > 1:
            samples = np.moveaxis(samples, 0, -1)
        samples = samples.reshape(page.imagelength, page.imagewidth, -1)
        colours = _colours(page, samples)
        tag = page.tags.get("Orientation")
    return None if colours is None else turned(colours, int(tag.value) if tag else 1)


def _colours(page: Any, samples: np.ndarray) -> np.ndarray | None:
    kind, bits = int(page.photometric), page.bitspersample
    if kind == 3:
        high = (np.asarray(page.colormap) >> 8).astype(np.uint8)
        return high[:, samples[..., 0]].transpose(1, 2, 0)
    values = eight_bits(samples, bits)
    n_colours = {2: 3, 5: 4, 6: 3}.get(kind, 1)
    colours = values[..., :n_colours]
    if [int(extra) for extra in page.extrasamples[:1]] == [1]:
        alpha = values[..., n_colours : n_colours + 1]
        divided = colours.astype(int) * 255 // np.maximum(alpha, 1)
        colours = np.where(alpha == 0, 0, np.minimum(divided, 255)).astype(np.uint8)
    if kind == 0:
        colours = 255 - colours
    if kind in (0, 1, 2):
        return as_rgb(colours)
    if kind == 5:
        return inks_to_rgb(colours)
    return as_rgb(colours) if kind == 6 and int(page.compression) == 7 else None


CODECS: dict[str, Callable[[bytes], np.ndarray]] = {
    "jpeg": imagecodecs.jpeg8_decode,
    "png": imagecodecs.png_decode,
    "webp": imagecodecs.webp_decode,
    "avif": imagecodecs.avif_decode,
    "jp2": imagecodecs.jpeg2k_decode,
    "gif": imagecodecs.gif_decode,
    "bmp": imagecodecs.bmp_decode,
}


def codecs(file: GridFile) -> np.ndarray | None:
    """imagecodecs: no EXIF, so the orientation that was written is applied here."""
    if file.format not in CODECS:
        return None
    samples = CODECS[file.format](file.data)
    if samples.ndim == 4 or (file.format == "gif" and samples.ndim == 3 and samples.shape[2] > 4):
        samples = samples[0]
    if samples.dtype == np.uint16:
        bits = file.row.get("bits", 16)
        samples = eight_bits(samples, bits)
    elif file.format == "jp2":
        samples = eight_bits(samples, file.row["bits"])
    if samples.dtype != np.uint8:
        return None
    if file.format == "jpeg" and samples.shape[-1] == 4:  # light, not ink
        samples = inks_to_rgb(255 - samples)
    choice = file.row.get("exif", 0)
    orientation = choice if isinstance(choice, int) else int(choice.split()[1])
    if file.format == "avif":
        orientation = 0
        if file.row["exif"]:
            return None
    return turned(as_rgb(samples), orientation)


READERS: dict[str, Callable[[GridFile], np.ndarray | None]] = {
    "OpenCV": opencv,
    "Pillow": pillow,
    "tifffile": tifffile_pages,
    "imagecodecs": codecs,
}


def read_by_all(file: GridFile) -> dict[str, np.ndarray]:
    """Pixels by reader; what a reader refuses is left out."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, read in READERS.items():
            if (name == "tifffile") != (file.format == "tiff") and name in (
                "tifffile",
                "imagecodecs",
            ):
                continue
            try:
                image = read(file)
            except Exception:  # whatever they raise: they do not read it
                continue
            if image is not None:
                found[name] = np.ascontiguousarray(image)
    if file.drawn is not None:
        found["drawn"] = np.ascontiguousarray(file.drawn)
    return found
