"""TIFFs, written by hand; the codecs of their strips and tiles are those of imagecodecs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np

from tests.grid.files import (
    ORIENTATIONS,
    SIZES,
    GridFile,
    as_rgb,
    eight_bits,
    inks_to_rgb,
    picture,
    turned,
)
from tests.grid.pairwise import Row, pairwise

COLOURS = {  # photometric number, number of colour channels
    "white": (0, 1),
    "black": (1, 1),
    "rgb": (2, 3),
    "palette": (3, 1),
    "inks": (5, 4),
    "ycc": (6, 3),
    "lab": (8, 3),
}
FACTORS: dict[str, list[Any]] = {
    "colours": list(COLOURS),
    "samples": [1, 2, 4, 6, 8, 10, 12, 14, 16, 32, "int8", "int16", "float32"],
    "compression": [
        *("none", "lzw", "deflate", "old-deflate", "packbits", "jpeg", "zstd", "lzma"),
        *("webp", "jp2", "jxl", "png", "lerc"),
    ],
    "predictor": [1, 2],
    "chunks": ["one strip", "strips", "tiles"],
    "planes": ["together", "apart"],
    "order": ["<", ">"],
    "big": [False, True],
    "extra": ["none", "unspecified", "associated", "unassociated", "two"],
    "orientation": ORIENTATIONS,
    "fill": [1, 2],
    "size": SIZES,
}
COMPRESSION = {
    "none": 1, "lzw": 5, "deflate": 8, "old-deflate": 32946, "packbits": 32773, "jpeg": 7,
    "zstd": 50000, "lzma": 34925, "webp": 50001, "jp2": 34712, "jxl": 50002, "png": 34933,
    "lerc": 34887,
}  # fmt: skip
BYTE_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "lzw": imagecodecs.lzw_encode,
    "deflate": zlib.compress,
    "old-deflate": zlib.compress,
    "zstd": imagecodecs.zstd_encode,
    "lzma": imagecodecs.lzma_encode,
}
REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def bits_of(samples: int | str) -> int:
    return samples if isinstance(samples, int) else int(samples.strip("intfloa"))


def is_possible(row: Row) -> bool:
    """Whether TIFF and its extensions allow such a file, and there is an encoder for it."""
    colours, samples, packing = row["colours"], row["samples"], row["compression"]
    bits, is_pixel_codec = bits_of(samples), packing in ("jpeg", "webp", "jp2", "jxl", "png")
    n_extra = {"none": 0, "two": 2}.get(row["extra"], 1)
    n_channels = COLOURS[colours][1] + n_extra
    per_chunk = 1 if row["planes"] == "apart" else n_channels
    checks = [
        colours != "palette" or (samples in (1, 2, 4, 8, 16) and n_extra == 0),
        colours not in ("ycc", "lab") or (samples == 8 and n_extra == 0),
        colours != "ycc" or (packing == "jpeg" and row["planes"] == "together"),
        colours != "lab" or not is_pixel_codec,
        colours != "inks" or bits in (8, 16),
        row["extra"] == "none" or samples in (8, 16),
        row["predictor"] == 1
        or (samples in (8, 16, 32) and packing in ("lzw", "deflate", "old-deflate", "zstd")),
        not is_pixel_codec or (samples in (8, 16) and per_chunk in (1, 3, 4) and bits <= 16),
        packing not in ("jpeg", "webp") or samples == 8,
        packing != "webp" or per_chunk in (3, 4),
        packing != "jpeg" or (n_extra == 0 and colours in ("white", "black", "rgb", "ycc", "inks")),
        packing != "lerc" or (samples == 8 and per_chunk == 1),
        row["fill"] == 1 or (isinstance(samples, int) and packing == "none"),
        row["planes"] == "together" or n_channels > 1,
        not is_pixel_codec or (row["size"] > (7, 3) and row["size"] != (33, 1)),
    ]
    return all(checks)


# What most archives hold, once more by itself: among all kinds most rows have one that is refused.
COMMON: dict[str, list[Any]] = FACTORS | {
    "colours": ["white", "black", "rgb", "palette", "inks", "ycc"],
    "samples": [1, 2, 4, 8, 16],
    "compression": ["none", "lzw", "deflate", "packbits", "jpeg", "zstd", "lzma"],
    "extra": ["none", "unassociated"],
    "fill": [1],
}
UNCOMPRESSED: dict[str, list[Any]] = FACTORS | {
    "colours": ["white", "black", "rgb", "palette", "inks"],
    "samples": [1, 2, 4, 8, 10, 12, 14, 16],
    "compression": ["none"],
    "predictor": [1],
}


def tiff_files() -> list[GridFile]:
    rows = [
        row for factors in (FACTORS, COMMON, UNCOMPRESSED) for row in pairwise(factors, is_possible)
    ]
    return [_file(row) for row in rows]


def _file(row: Row) -> GridFile:
    samples = row["samples"]
    bits = bits_of(samples)
    number, n_colours = COLOURS[row["colours"]]
    n_channels = n_colours + {"none": 0, "two": 2}.get(row["extra"], 1)
    pixels = picture(row["size"], n_channels, bits)
    if row["extra"] == "associated":  # a colour is never more than its alpha
        pixels[..., :n_colours] = np.minimum(pixels[..., :n_colours], pixels[..., n_colours:])
    stored = pixels if isinstance(samples, int) else pixels.astype(samples)
    palette = np.random.default_rng(1).integers(0, 65536, (3, 1 << min(bits, 16)))
    is_lossy = row["compression"] in ("jpeg", "webp") or row["colours"] in ("ycc", "lab")
    drawn = None
    if isinstance(samples, int) and samples <= 16 and not is_lossy:
        drawn = turned(_as_drawn(pixels, row, bits, palette), row["orientation"])
    tags: dict[int, tuple[int, ...]] = {
        256: (row["size"][1],), 257: (row["size"][0],), 258: (bits,) * n_channels,
        259: (COMPRESSION[row["compression"]],), 262: (number,), 277: (n_channels,),
        284: (2 if row["planes"] == "apart" else 1,),
    }  # fmt: skip
    if row["orientation"]:
        tags[274] = (row["orientation"],)
    if row["fill"] == 2:
        tags[266] = (2,)
    if row["predictor"] == 2:
        tags[317] = (2,)
    kind = {"i": 2, "f": 3}.get(str(stored.dtype.kind), 1)
    tags[339] = (kind,) * n_channels
    if row["extra"] != "none":
        code = {"unspecified": 0, "associated": 1, "unassociated": 2, "two": 2}[row["extra"]]
        tags[338] = (code, 0) if row["extra"] == "two" else (code,)
    if row["colours"] == "palette":
        tags[320] = tuple(palette.ravel().tolist())
    if row["colours"] == "ycc":
        tags[530] = (1, 1)
    if row["compression"] == "lerc":
        tags[50674] = (4, 0)
    data = _write(stored, row, bits, tags)
    tolerance = 1 if row["colours"] == "inks" or row["extra"] == "associated" else 0
    return GridFile("tiff", row, data, drawn, 3 if is_lossy else tolerance)


def _as_drawn(pixels: np.ndarray, row: Row, bits: int, palette: np.ndarray) -> np.ndarray:
    n_colours = COLOURS[row["colours"]][1]
    if row["colours"] == "palette":
        return (palette[:, pixels[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
    values = eight_bits(pixels, bits)
    colours, alpha = values[..., :n_colours], values[..., n_colours : n_colours + 1]
    if row["extra"] == "associated":
        divided = colours.astype(int) * 255 // np.maximum(alpha, 1)
        colours = np.where(alpha == 0, 0, np.minimum(divided, 255)).astype(np.uint8)
    if row["colours"] == "white":
        colours = 255 - colours
    return inks_to_rgb(colours) if row["colours"] == "inks" else as_rgb(colours)


def _write(pixels: np.ndarray, row: Row, bits: int, tags: dict[int, tuple[int, ...]]) -> bytes:
    height, width, n_channels = pixels.shape
    rows, columns = {
        "one strip": (height, width), "strips": (min(5, height), width), "tiles": (16, 16)
    }[row["chunks"]]  # fmt: skip
    if row["compression"] == "jpeg" and row["chunks"] == "strips":
        rows = min(8, height)
    planes = [pixels]
    if row["planes"] == "apart":
        planes = [pixels[..., [i]] for i in range(n_channels)]
    chunks = []
    for plane in planes:
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                part = plane[top : top + rows, left : left + columns]
                if row["chunks"] == "tiles":
                    missing = [(0, rows - part.shape[0]), (0, columns - part.shape[1]), (0, 0)]
                    part = np.pad(part, missing, "edge")
                chunks.append(_encode(part, row, bits))
    if row["chunks"] == "tiles":
        tags |= {322: (columns,), 323: (rows,)}
        return assemble(tags, chunks, 324, row["order"], row["big"])
    tags |= {278: (rows,)}
    return assemble(tags, chunks, 273, row["order"], row["big"])


def _encode(part: np.ndarray, row: Row, bits: int) -> bytes:
    packing = row["compression"]
    part = np.ascontiguousarray(part)
    image = part[..., 0] if part.shape[2] == 1 else part
    if packing == "jpeg":
        space = {1: "gray", 3: "ycbcr" if row["colours"] == "ycc" else "rgb", 4: "cmyk"}
        name = space[part.shape[2]]
        options = {"colorspace": "rgb" if name == "ycbcr" else name, "outcolorspace": name}
        return imagecodecs.jpeg8_encode(image, 95, subsampling="444", **options)
    if packing == "webp":
        return imagecodecs.webp_encode(image, lossless=True)
    if packing == "jp2":
        return imagecodecs.jpeg2k_encode(image, reversible=True, codecformat="j2k", mct=False)
    if packing == "jxl":
        return imagecodecs.jpegxl_encode(image, lossless=True)
    if packing == "png":
        return imagecodecs.png_encode(image)
    if packing == "lerc":
        return imagecodecs.lerc_encode(image)
    if row["predictor"] == 2:
        part = np.concatenate([part[:, :1], np.diff(part, axis=1)], axis=1)
    lines = [_pack(line, bits, row["order"]) for line in part]
    if row["fill"] == 2:
        lines = [line.translate(REVERSED) for line in lines]
    if packing == "packbits":
        return b"".join(imagecodecs.packbits_encode(line) for line in lines)
    return BYTE_CODECS[packing](b"".join(lines))


def _pack(line: np.ndarray, bits: int, order: str) -> bytes:
    """A row of samples as bytes: the highest bit first, whole numbers in the file's order."""
    if bits in (8, 16, 32):
        return line.astype(line.dtype.newbyteorder(order)).tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(line.reshape(-1, 1) >> shifts & 1).tobytes()


def assemble(
    tags: dict[int, tuple[int, ...]], chunks: list[bytes], offsets: int, order: str, big: bool
) -> bytes:
    """A TIFF of one page; `offsets` is the tag of the places of its chunks."""
    pointer = "Q" if big else "I"
    size = struct.calcsize(f"={pointer}")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if big else b""
    body = bytearray(head + bytes(size))
    places = []
    for chunk in chunks:
        places.append(len(body))
        body += chunk + bytes(len(chunk) % 2)
    counts = 279 if offsets == 273 else 325
    tags |= {offsets: tuple(places), counts: tuple(map(len, chunks))}
    directory = struct.pack(f"{order}{'Q' if big else 'H'}", len(tags))
    for tag, numbers in sorted(tags.items()):
        kind, code = (
            (4, "I") if tag in (256, 257, 273, 278, 279, 322, 323, 324, 325, 50674) else (3, "H")
        )
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > size:
            place = struct.pack(f"{order}{pointer}", len(body))
            body += packed + bytes(len(packed) % 2)
            packed = place
        directory += struct.pack(f"{order}HH{pointer}", tag, kind, len(numbers))
        directory += packed.ljust(size, b"\0")
    struct.pack_into(f"{order}{pointer}", body, len(head), len(body))
    return bytes(body + directory + bytes(size))
