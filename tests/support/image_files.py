"""Real encoded images for tests, made in memory; the same bytes on every run."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 45, 61


def pixels() -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: gradients and a patch of noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)
    rgb[10:25, 15:35] = np.random.default_rng(0).integers(0, 256, (15, 20, 3))
    return rgb


def save(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """Encode an image with Pillow, in a format that it knows by this name."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rle_bmp(grey: np.ndarray) -> bytes:
    """A BMP with 8 bits and run lengths, which Pillow reads but does not write."""
    body = b""
    for row in grey[::-1].tolist():
        start = 0
        while start < len(row):
            end = start
            while end < len(row) and row[end] == row[start] and end - start < 255:
                end += 1
            body += bytes([end - start, row[start]])
            start = end
        body += b"\0\0"
    body += b"\0\1"
    palette = b"".join(bytes([v, v, v, 0]) for v in range(256))
    offset = 54 + len(palette)
    height, width = grey.shape
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body


def tiny_tiff(data: bytes, bits: int, photometric: int = 1, order: str = "<", **tags: int) -> bytes:
    """An uncompressed one-channel TIFF of 8 x 2 pixels; tags by number, such as `t339=2`."""
    values = {256: 8, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 2}
    values |= {279: len(data), 339: 1} | {int(name[1:]): v for name, v in tags.items()}
    entries = b""
    for tag, value in sorted(values.items()):
        if tag in (258, 259, 262, 277, 339):
            entries += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
        else:
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(order + "H", len(values))
    return magic + struct.pack(order + "I", 8 + len(data)) + data + count + entries + b"\0" * 4


def corpus() -> dict[str, bytes]:
    """One valid file of HEIGHT x WIDTH pixels for each kind that is decoded."""
    rgb = Image.fromarray(pixels())
    grey = rgb.convert("L")
    deep = (np.asarray(grey).astype(np.uint16) << 8) + 99
    turned = rgb.rotate(180)
    files = {
        "jpeg": save(rgb, "JPEG"),
        "jpeg_progressive": save(rgb, "JPEG", progressive=True),
        "jpeg_grey": save(grey, "JPEG"),
        "jpeg_cmyk": save(rgb.convert("CMYK"), "JPEG"),
        "jpeg_restarts": save(rgb, "JPEG", restart_marker_blocks=4),
        "png": save(rgb, "PNG"),
        "png_grey": save(grey, "PNG"),
        "png_palette": save(rgb.quantize(50), "PNG"),
        "png_1bit": save(rgb.convert("1"), "PNG"),
        "png_16bit": save(deep, "PNG"),
        "png_grey_alpha": save(rgb.convert("LA"), "PNG"),
        "png_alpha": save(rgb.convert("RGBA"), "PNG"),
        "webp": save(rgb, "WEBP"),
        "webp_lossless": save(rgb, "WEBP", lossless=True),
        "webp_alpha": save(rgb.convert("RGBA"), "WEBP", lossless=True),
        "webp_animated": save(rgb, "WEBP", save_all=True, append_images=[turned], lossless=True),
        "tiff": save(rgb, "TIFF"),
        "tiff_16bit": save(deep, "TIFF"),
        "tiff_1bit": save(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff_palette": save(rgb.quantize(50), "TIFF"),
        "tiff_cmyk": save(rgb.convert("CMYK"), "TIFF"),
        "tiff_pages": save(rgb, "TIFF", save_all=True, append_images=[turned]),
        "bmp": save(rgb, "BMP"),
        "bmp_grey": save(grey, "BMP"),
        "bmp_palette": save(rgb.quantize(50), "BMP"),
        "bmp_1bit": save(rgb.convert("1"), "BMP"),
        "bmp_alpha": save(rgb.convert("RGBA"), "BMP"),
        "bmp_runs": rle_bmp(np.asarray(grey) // 32 * 32),
        "gif": save(rgb.quantize(50), "GIF"),
        "gif_animated": save(
            rgb.quantize(50), "GIF", save_all=True, append_images=[turned.quantize(50)]
        ),
        "avif": save(rgb, "AVIF", speed=10),
        "jp2": save(rgb, "JPEG2000"),
        "jp2_codestream": save(rgb, "JPEG2000", no_jp2=True),
        "jp2_16bit": save(deep, "JPEG2000"),
    }
    for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        files["tiff_" + name.removeprefix("tiff_")] = save(rgb, "TIFF", compression=name)
    return files


def mutations(files: dict[str, bytes], per_file: int) -> list[tuple[str, bytes]]:
    """Damaged copies: a byte changed (anywhere, or in the header), bytes cut out or put in."""
    rng = np.random.default_rng(1)
    damaged = []
    for name, data in sorted(files.items()):
        for kind in range(per_file):
            copy = bytearray(data)
            start = int(rng.integers(0, len(copy)))
            noise = rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8).tobytes()
            if kind % 4 == 0:
                copy[start] ^= noise[0] or 1
            elif kind % 4 == 1:
                copy[start % 120] ^= noise[0] or 1
            elif kind % 4 == 2:
                del copy[start : start + len(noise)]
            else:
                copy[start:start] = noise
            damaged.append((f"{name}-{kind}", bytes(copy)))
    return damaged
