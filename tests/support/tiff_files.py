"""TIFFs of several pages, written by hand: no library's reader or writer decides what is right."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

_LONG_TAGS = (254, 256, 257, 273, 278, 279, 322, 323, 324, 325)


@dataclass(frozen=True)
class Page:
    """One page: its samples, and how they are stored.

    Attributes:
        samples: (H, W, C) uint8 or uint16; nothing is compressed.
        tile: (height, width); None for strips.
        subfile: NEW_SUBFILE_TYPE; 1 is a reduced copy, 4 a mask.
        tags: More tags, or others, as whole numbers.
    """

    samples: np.ndarray
    planar: bool = False
    tile: tuple[int, int] | None = None
    rows_per_strip: int | None = None
    subfile: int | None = None
    tags: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def chunks(self, order: str) -> list[bytes]:
        """Bytes of its strips or tiles."""
        n_channels = self.samples.shape[2]
        planes = [self.samples[..., [i]] for i in range(n_channels)]
        found = []
        height, width = self.samples.shape[:2]
        rows, columns = self.tile or (self.rows_per_strip or height, width)
        for plane in planes if self.planar else [self.samples]:
            for top in range(0, height, rows):
                for left in range(0, width, columns):
                    part = plane[top : top + rows, left : left + columns]
                    if self.tile:
                        missing = [(0, rows - part.shape[0]), (0, columns - part.shape[1]), (0, 0)]
                        part = np.pad(part, missing)
                    found.append(part.astype(part.dtype.newbyteorder(order)).tobytes())
        return found

    def values(self) -> dict[int, tuple[int, ...]]:
        """Its tags, but those of its chunks."""
        height, width, n_channels = self.samples.shape
        bits = 8 * self.samples.dtype.itemsize
        values = {256: (width,), 257: (height,), 258: (bits,) * n_channels, 259: (1,)}
        values |= {262: (2 if n_channels == 3 else 1,), 277: (n_channels,)}
        values[284] = (2 if self.planar else 1,)
        if self.tile:
            values |= {323: (self.tile[0],), 322: (self.tile[1],)}
        else:
            values[278] = (self.rows_per_strip or height,)
        if self.subfile is not None:
            values[254] = (self.subfile,)
        return values


def tiff_file(
    pages: Sequence[Page], order: str = "<", *, big: bool = False, last_next: int = 0
) -> bytes:
    """A TIFF of these pages.

    Args:
        order: ``<`` or ``>``.
        big: BigTIFF.
        last_next: What the last directory gives as the offset of the next.
    """
    pointer, count_code = ("Q", "Q") if big else ("I", "H")
    pointer_bytes = struct.calcsize(f"={pointer}")
    magic = b"II" if order == "<" else b"MM"
    head = magic + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if big else b""
    body = bytearray(head + bytes(pointer_bytes))
    link = len(head)  # where the offset of the next directory is written
    for page in pages:
        values = page.values()
        offsets, chunks = [], page.chunks(order)
        for chunk in chunks:
            offsets.append(len(body))
            body += chunk + bytes(len(chunk) % 2)
        offset_tag, count_tag = (324, 325) if page.tile else (273, 279)
        values |= {offset_tag: tuple(offsets), count_tag: tuple(map(len, chunks))}
        values |= page.tags
        directory = struct.pack(f"{order}{count_code}", len(values))
        for tag, numbers in sorted(values.items()):
            kind, code = (4, "I") if tag in _LONG_TAGS else (3, "H")
            packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
            if len(packed) > pointer_bytes:
                place = struct.pack(f"{order}{pointer}", len(body))
                body += packed + bytes(len(packed) % 2)
                packed = place
            field_bytes = packed.ljust(pointer_bytes, b"\0")
            directory += struct.pack(f"{order}HH{pointer}", tag, kind, len(numbers)) + field_bytes
        struct.pack_into(f"{order}{pointer}", body, link, len(body))
        link = len(body) + len(directory)
        body += directory + struct.pack(f"{order}{pointer}", 0)
    struct.pack_into(f"{order}{pointer}", body, link, last_next)
    return bytes(body)


def noise(seed: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, channels) samples; the size depends on the seed."""
    shape = 13 + seed % 5, 17 + seed % 3, channels
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)
