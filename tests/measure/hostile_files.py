"""Families of small files that promise much: what `tests.measure.hostile` reads."""

from __future__ import annotations

import functools
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 6000, 4000


@dataclass(frozen=True)
class HostileFile:
    """One file; its bytes are made when they are needed.

    Attributes:
        reader: ``image``, ``archive`` or ``truth``.
    """

    name: str
    data: Callable[[], bytes]
    reader: str = "image"


def _flat(mode: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.new(mode, size)


def _saved(kind: str, mode: str = "RGB", *, frames: int = 1, **options: Any) -> Callable[[], bytes]:
    @functools.cache
    def data() -> bytes:
        buffer = io.BytesIO()
        image = _flat(mode)
        if frames > 1:
            more = [Image.new(mode, image.size, i) for i in range(1, frames)]
            options.update(save_all=True, append_images=more)
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return data


def _png_chunk(name: bytes, payload: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + payload))
    return struct.pack(">I", len(payload)) + name + payload + checksum


def _png(colour_type: int, bits: int, interlace: int = 0, extra: bytes = b"") -> bytes:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    row = 1 + (WIDTH * channels * bits + 7) // 8
    n_raw = row * HEIGHT + (WIDTH * HEIGHT // 8 if interlace else 0)
    packer = zlib.compressobj(9)
    raw = b"".join(
        packer.compress(bytes(min(1 << 20, n_raw - at))) for at in range(0, n_raw, 1 << 20)
    )
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour_type, 0, 0, interlace)
    palette = _png_chunk(b"PLTE", bytes(6)) if colour_type == 3 else b""
    body = _png_chunk(b"IHDR", head) + palette + extra + _png_chunk(b"IDAT", raw + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + body + _png_chunk(b"IEND", b"")


def png_files() -> Iterator[HostileFile]:
    """Flat pictures of all kinds, and texts that expand to a gigabyte."""
    for colour_type, bits in ((0, 1), (0, 16), (2, 8), (2, 16), (3, 1), (4, 8), (6, 8), (6, 16)):
        yield HostileFile(f"flat-{colour_type}-{bits}", functools.partial(_png, colour_type, bits))
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    texts = {"zTXt": b"k\0\0", "iCCP": b"k\0\0", "iTXt": b"k\0\1\0\0\0"}
    for name, start in texts.items():
        chunk = _png_chunk(name.encode(), start + bomb)
        yield HostileFile(f"{name}-bomb", functools.partial(_png, 0, 1, 0, chunk))


def webp_files() -> Iterator[HostileFile]:
    """Still and animated pictures."""
    yield HostileFile("lossless", _saved("WEBP", lossless=True, method=0))
    yield HostileFile("lossy", _saved("WEBP", method=0))
    yield HostileFile("alpha", _saved("WEBP", "RGBA", lossless=True, method=0))
    small = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)]
    frames[0].save(small, "WEBP", save_all=True, append_images=frames[1:])
    canvas = bytearray(small.getvalue())
    canvas[24:30] = (16383).to_bytes(3, "little") * 2
    yield HostileFile("anim-canvas", lambda: bytes(canvas))
    canvas2 = bytearray(canvas)
    canvas2[24:30] = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    yield HostileFile("anim-canvas-24", lambda: bytes(canvas2))


def jpeg_files() -> Iterator[HostileFile]:
    """Baseline, progressive and CMYK pictures, and many scans."""
    yield HostileFile("baseline", _saved("JPEG"))
    yield HostileFile("progressive", _saved("JPEG", progressive=True))
    yield HostileFile("grey-progressive", _saved("JPEG", "L", progressive=True))
    yield HostileFile("cmyk-progressive", _saved("JPEG", "CMYK", progressive=True))

    def scans(count: int) -> bytes:
        data = _saved("JPEG", "L", progressive=True)()
        at = data.rindex(b"\xff\xda")
        return data[:at] + data[at:-2] * count + b"\xff\xd9"

    yield HostileFile("490-scans", functools.partial(scans, 480))
    yield HostileFile("60000-scans", functools.partial(scans, 60_000))


def gif_files() -> Iterator[HostileFile]:
    """A large screen with a tiny frame, and many frames."""
    yield HostileFile("flat", _saved("GIF", "P"))
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x4c\1\0"
    head = b"GIF89a" + struct.pack("<HHBBB", WIDTH, HEIGHT, 0x80, 0, 0) + bytes(6)
    yield HostileFile("tiny-frame", lambda: head + frame + b";")
    yield HostileFile("100000-frames", lambda: head + frame * 100_000 + b";")


def other_images() -> Iterator[HostileFile]:
    """AVIF, JPEG 2000, BMP and, where its encoder is there, HEIC."""
    yield HostileFile("flat.avif", _saved("AVIF", speed=10))
    yield HostileFile("flat.jp2", _saved("JPEG2000"))
    yield HostileFile("tiles.jp2", _saved("JPEG2000", tile_size=(64, 64)))
    yield HostileFile("grey.jp2", _saved("JPEG2000", "L"))
    yield HostileFile("wide.jp2", _wide_jp2)
    yield HostileFile("runs.bmp", _run_length_bmp)
    yield HostileFile("flat.bmp", _saved("BMP", "1"))
    try:
        import pillow_heif
    except ImportError:
        return

    def heic() -> bytes:
        buffer = io.BytesIO()
        pillow_heif.from_pillow(_flat("RGB")).save(buffer, quality=30)
        return buffer.getvalue()

    yield HostileFile("flat.heic", functools.cache(heic))


@functools.cache
def _wide_jp2() -> bytes:
    samples = np.zeros((HEIGHT, WIDTH, 3), np.uint16)
    return cv2.imencode(".jp2", samples)[1].tobytes()


def _run_length_bmp() -> bytes:
    line = b"\xff\0" * (WIDTH // 255) + bytes([WIDTH % 255, 0]) + b"\0\0"
    body = line * HEIGHT + b"\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(body), 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 62 + len(body), 0, 0, 62) + info + bytes(8) + body


def tiff_files() -> Iterator[HostileFile]:
    """One strip, many strips, tiles, compressions; chains of directories; tags that overlap."""
    for compression in ("tiff_adobe_deflate", "tiff_lzw", "packbits", "group4", "jpeg"):
        mode = "1" if compression == "group4" else "RGB"
        yield HostileFile(compression, _saved("TIFF", mode, compression=compression))
    one_strip = {278: HEIGHT}
    yield HostileFile("one-strip", _saved("TIFF", compression="tiff_lzw", tiffinfo=one_strip))
    yield HostileFile(
        "deep-one-strip", _saved("TIFF", "I;16", compression="tiff_lzw", tiffinfo=one_strip)
    )
    yield HostileFile("chain", lambda: _directories(100_000))
    yield HostileFile("many-tags", _overlapping_tags)


def _directories(count: int) -> bytes:
    """Empty directories, each with a pointer to the next."""
    entry = struct.pack("<HHII", 256, 3, 1, 1)
    body = bytearray(b"II*\0" + struct.pack("<I", 8))
    for i in range(count):
        at = 8 + i * 18
        body += struct.pack("<H", 1) + entry + struct.pack("<I", at + 18 if i + 1 < count else 0)
    return bytes(body)


def _overlapping_tags() -> bytes:
    entries = b"".join(struct.pack("<HHII", 256 + i, 4, 1 << 16, 8) for i in range(4000))
    return (
        b"II*\0"
        + struct.pack("<I", 1 << 18)
        + bytes((1 << 18) - 8)
        + struct.pack("<H", 4000)
        + entries
        + bytes(4)
    )


def tar_files() -> Iterator[HostileFile]:
    """Headers that promise much: pax records, long names, sizes, and very many members."""

    def header(name: str, size: int, kind: bytes) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT)

    def archive(body: bytes) -> Callable[[], bytes]:
        return lambda: body + bytes(1024)

    record = b"99 comment=" + b"x" * 87 + b"\n"
    pax = record * 300_000
    pad = bytes(-len(pax) % 512)
    yield HostileFile("pax-30MB.tar", archive(header("x", len(pax), b"x") + pax + pad), "archive")
    yield HostileFile("pax-1TB.tar", archive(header("x", 1 << 40, b"x") + record), "archive")
    yield HostileFile("name-1TB.tar", archive(header("x", 1 << 40, b"L") + record), "archive")
    yield HostileFile(
        "name-30MB.tar", archive(header("x", 30 << 20, b"L") + b"n" * (30 << 20)), "archive"
    )
    yield HostileFile("member-1TB.tar", archive(header("a.png", 1 << 40, b"0")), "archive")
    sparse = b"".join(b"%d\n%d\n" % (i * 1024, 1) for i in range(200_000))
    yield HostileFile(
        "sparse.tar",
        archive(header("a.png", len(sparse), b"S") + sparse + bytes(-len(sparse) % 512)),
        "archive",
    )
    many = b"".join(header(f"{i}.png", 0, b"0") for i in range(60_000))
    yield HostileFile("60000-members.tar", archive(many), "archive")
    nothing = bytes(64 << 20)
    yield HostileFile("zeros.tar", archive(header("a.png", 0, b"0") + nothing), "archive")


def json_files() -> Iterator[HostileFile]:
    """Depth, length and numbers, as manifests and as ground truth."""
    deep = b'{"uri": ' + b"[" * 500_000 + b"]" * 500_000 + b"}\n"
    yield HostileFile("deep.jsonl", lambda: deep, "archive")
    yield HostileFile(
        "deep-objects.jsonl", lambda: b'{"uri":' * 200_000 + b"1" + b"}" * 200_000, "archive"
    )
    yield HostileFile(
        "long-number.jsonl", lambda: b'{"uri": ' + b"9" * 5_000_000 + b"}\n", "archive"
    )
    yield HostileFile("long-line.csv", lambda: b"uri\n" + b"a" * (20 << 20), "archive")
    yield HostileFile("many-columns.csv", lambda: b"a," * 2_000_000 + b"uri\n", "archive")
    for name, document in {
        "deep": b'{"images": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
        "number": b'{"images": [{"id": ' + b"9" * 5_000_000 + b"}]}",
        "keys": json.dumps({"images": [{str(i): i for i in range(200_000)}]}).encode(),
    }.items():
        yield HostileFile(f"truth-{name}.json", lambda document=document: document, "truth")


FAMILIES: dict[str, Callable[[], Iterator[HostileFile]]] = {
    "png": png_files, "webp": webp_files, "jpeg": jpeg_files, "gif": gif_files,
    "other": other_images, "tiff": tiff_files, "tar": tar_files, "json": json_files,
}  # fmt: skip
