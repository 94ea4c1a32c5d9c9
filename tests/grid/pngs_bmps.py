"""PNG and BMP, written by hand: no library writes all their kinds."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from tests.grid.files import (
    ORIENTATIONS,
    SIZES,
    GridFile,
    as_rgb,
    eight_bits,
    exif,
    picture,
    turned,
)
from tests.grid.pairwise import Row, pairwise

PNG_KINDS = [
    *((0, bits) for bits in (1, 2, 4, 8, 16)), *((3, bits) for bits in (1, 2, 4, 8)),
    *((kind, bits) for kind in (2, 4, 6) for bits in (8, 16)),
]  # fmt: skip
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_FACTORS: dict[str, list[Any]] = {
    "kind": PNG_KINDS,
    "interlace": [0, 1],
    "filter": [0, 1, 2, 3, 4, "mixed"],
    "transparency": [False, True],
    "idat": ["one", "many", "with empty ones"],
    "colour": ["none", "gAMA", "sRGB", "iCCP", "cHRM", "sBIT", "bKGD"],
    "exif": [*ORIENTATIONS, "MM 6"],
    "text": ["none", "tEXt", "zTXt", "behind the pixels", "private"],
    "size": SIZES,
}
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # fmt: skip # noqa: E501


def png_files() -> list[GridFile]:
    def is_possible(row: Row) -> bool:
        return not (row["transparency"] and row["kind"][0] in (4, 6))

    return [_png(row) for row in pairwise(PNG_FACTORS, is_possible)]


def _chunk(name: bytes, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))
        + name
        + payload
        + struct.pack(">I", zlib.crc32(name + payload))
    )


def _png(row: Row) -> GridFile:
    colour_type, bits = row["kind"]
    height, width = row["size"]
    samples = picture(row["size"], PNG_CHANNELS[colour_type], bits)
    palette = np.random.default_rng(2).integers(0, 256, (1 << min(bits, 8), 3)).astype(np.uint8)
    drawn = palette[samples[..., 0]] if colour_type == 3 else as_rgb(eight_bits(samples, bits))
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, row["interlace"])
    chunks = [_chunk(b"IHDR", head), *_colour_chunks(row["colour"], colour_type, bits)]
    if colour_type == 3:
        chunks.append(_chunk(b"PLTE", palette.tobytes()))
    if row["transparency"]:
        values = samples[0, 0].astype(">u2").tobytes()
        chunks.append(_chunk(b"tRNS", bytes([0, 128]) if colour_type == 3 else values))
    orientation = row["exif"]
    if orientation:
        order, value = ("MM", 6) if orientation == "MM 6" else ("II", orientation)
        chunks.append(_chunk(b"eXIf", exif(value, order)))
        drawn = turned(drawn, value)
    text = {
        "tEXt": _chunk(b"tEXt", b"k\0v"),
        "zTXt": _chunk(b"zTXt", b"k\0\0" + zlib.compress(b"v")),
        "private": _chunk(b"prVt", b"x"),
    }
    chunks.append(text.get(row["text"], b""))
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in _PASSES] if row["interlace"] else [samples]
    raw = b"".join(_filtered(part, bits, row["filter"]) for part in parts if part.size)
    packed = zlib.compress(raw)
    pieces = [packed]
    if row["idat"] != "one":
        pieces = [packed[i : i + 7] for i in range(0, len(packed), 7)]
    if row["idat"] == "with empty ones":
        pieces = [b"", *pieces, b""]
    chunks += [_chunk(b"IDAT", piece) for piece in pieces]
    if row["text"] == "behind the pixels":
        chunks.append(_chunk(b"tEXt", b"k\0v"))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")
    return GridFile("png", row, data, drawn)


def _colour_chunks(name: str, colour_type: int, bits: int) -> list[bytes]:
    n_channels = PNG_CHANNELS[colour_type]
    background = {0: b"\0\1", 4: b"\0\1", 3: b"\1"}.get(colour_type, b"\0\1" * 3)
    chunks = {
        "gAMA": struct.pack(">I", 100_000),
        "sRGB": b"\0",
        "iCCP": b"x\0\0" + zlib.compress(b"not a profile"),
        "cHRM": struct.pack(">8I", *range(10_000, 90_000, 10_000)),
        "sBIT": bytes([min(bits, 5)]) * (3 if colour_type == 3 else n_channels),
        "bKGD": background if colour_type != 3 else b"",
    }
    return [_chunk(name.encode(), chunks[name])] if chunks.get(name) else []


def _filtered(samples: np.ndarray, bits: int, kind: int | str) -> bytes:
    if bits == 16:
        lines = [line.astype(">u2").tobytes() for line in samples]
    elif bits == 8:
        lines = [line.tobytes() for line in samples]
    else:
        shifts = np.arange(bits - 1, -1, -1)
        lines = [np.packbits(line.reshape(-1, 1) >> shifts & 1).tobytes() for line in samples]
    step = max(1, samples.shape[2] * bits // 8)
    previous, result = bytes(len(lines[0])), b""
    for number, line in enumerate(lines):
        method = number % 5 if kind == "mixed" else int(kind)
        result += bytes([method]) + _filter_line(line, previous, step, method)
        previous = line
    return result


def _filter_line(line: bytes, above: bytes, step: int, method: int) -> bytes:
    filtered = bytearray()
    for at, value in enumerate(line):
        left = line[at - step] if at >= step else 0
        corner = above[at - step] if at >= step else 0
        up = above[at]
        if method == 4:
            guess = left + up - corner
            choices = [(abs(guess - left), 0, left), (abs(guess - up), 1, up)]
            predicted = min([*choices, (abs(guess - corner), 2, corner)])[2]
        else:
            predicted = (0, left, up, (left + up) // 2)[method]
        filtered.append((value - predicted) & 255)
    return bytes(filtered)


BMP_FACTORS: dict[str, list[Any]] = {
    "header": [12, 40, 52, 56, 64, 108, 124],
    "pixels": [1, 4, 8, "8 runs", "4 runs", 16, "565", "555 masks", 24, 32, "32 masks", "32 alpha"],
    "direction": ["up", "down"],
    "colours": ["all", "few"],
    "gap": [0, 6],
    "size": SIZES,
}


def bmp_files() -> list[GridFile]:
    def is_possible(row: Row) -> bool:
        header, pixels = row["header"], row["pixels"]
        is_plain = pixels in (1, 4, 8, 24)
        has_masks = pixels in ("565", "555 masks", "32 masks", "32 alpha")
        return (
            (header not in (12, 64) or is_plain)
            and (header > 12 or (row["direction"] == "up" and row["colours"] == "all"))
            and (pixels != "32 alpha" or header >= 56)
            and ("runs" not in str(pixels) or row["direction"] == "up")
            and (not has_masks or header in (40, 52, 56, 108, 124))
        )

    return [_bmp(row) for row in pairwise(BMP_FACTORS, is_possible)]


def _bmp(row: Row) -> GridFile:
    kind, (height, width) = row["pixels"], row["size"]
    bits = {"8 runs": 8, "4 runs": 4, "565": 16, "555 masks": 16}.get(kind, 0) or (
        32 if isinstance(kind, str) else kind
    )
    body, palette, drawn = _bmp_pixels(row, bits)
    masks = {
        "565": (0xF800, 0x7E0, 0x1F, 0), "555 masks": (0x7C00, 0x3E0, 0x1F, 0),
        "32 masks": (0xFF, 0xFF00, 0xFF0000, 0), "32 alpha": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    }.get(kind)  # fmt: skip
    compression = {"8 runs": 1, "4 runs": 2}.get(kind, 3 if masks else 0)
    if row["header"] == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
        colours = b"".join(bytes(colour[::-1].tolist()) for colour in palette)
    else:
        signed_height = -height if row["direction"] == "down" else height
        info = struct.pack(
            "<IiiHHIIiiII", row["header"], width, signed_height, 1, bits, compression, len(body),
            2835, 2835, len(palette) if row["colours"] == "few" else 0, 0,
        )  # fmt: skip
        if row["header"] >= 52 and row["header"] != 64:
            info += struct.pack("<4I", *(masks or (0, 0, 0, 0)))
        info = info.ljust(row["header"], b"\0")[: row["header"]]
        if masks and row["header"] == 40:
            info += struct.pack("<3I", *masks[:3])
        colours = b"".join(bytes([*colour[::-1].tolist(), 0]) for colour in palette)
    offset = 14 + len(info) + len(colours) + row["gap"]
    head = b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    return GridFile("bmp", row, head + info + colours + bytes(row["gap"]) + body, drawn)


def _bmp_pixels(row: Row, bits: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Bytes, palette and picture."""
    kind, rng = row["pixels"], np.random.default_rng(3)
    palette = np.zeros((0, 3), np.uint8)
    if bits <= 8:
        n_colours = (1 << bits) if row["colours"] == "all" else max(2, (1 << bits) * 3 // 4)
        palette = rng.integers(0, 256, (n_colours, 3)).astype(np.uint8)
        samples = (picture(row["size"], 1, bits)[..., 0].astype(int) % n_colours).astype(np.uint8)
        drawn = palette[samples]
        if "runs" in str(kind):
            return _runs(samples[::-1], bits), palette, drawn
        shifts = np.arange(bits - 1, -1, -1)
        lines = [np.packbits(line.reshape(-1, 1) >> shifts & 1).tobytes() for line in samples]
    elif bits == 16:
        depth = (5, 6, 5) if kind == "565" else (5, 5, 5)
        parts = [picture(row["size"], 3)[..., i] >> (8 - d) for i, d in enumerate(depth)]
        drawn = np.stack([p.astype(int) * 255 // ((1 << d) - 1) for p, d in zip(parts, depth, strict=True)], -1)  # fmt: skip # noqa: E501
        drawn = drawn.astype(np.uint8)
        red, green, blue = (part.astype(np.uint16) for part in parts)
        words = red << (depth[1] + 5) | green << 5 | blue
        lines = [line.astype("<u2").tobytes() for line in words]
    else:
        drawn = picture(row["size"], 3)
        stored = drawn if kind == "32 masks" else drawn[..., ::-1]
        if bits == 32:
            alpha = (
                picture(row["size"], 4)[..., 3:]
                if kind == "32 alpha"
                else np.zeros_like(drawn[..., :1])
            )
            stored = np.concatenate([stored, alpha], axis=2)
        lines = [line.tobytes() for line in stored]
    lines = [line + bytes(-len(line) % 4) for line in lines]
    ordered = lines if row["direction"] == "down" else lines[::-1]
    return b"".join(ordered), palette, drawn


def _runs(samples: np.ndarray, bits: int) -> bytes:
    """Run lengths; every second row in absolute mode where it is long enough."""
    body = b""
    for number, line in enumerate(samples.tolist()):
        if number % 2 and 3 <= len(line) < 256:
            packed = bytes(line)
            if bits == 4:
                pairs = [*line, 0][: len(line) + len(line) % 2]
                packed = bytes(a << 4 | b for a, b in zip(pairs[::2], pairs[1::2], strict=True))
            body += bytes([0, len(line)]) + packed + bytes(len(packed) % 2)
        else:
            for value in line:
                body += bytes([1, value << 4 if bits == 4 else value])
        body += b"\0\0"
    return body + b"\0\1"
