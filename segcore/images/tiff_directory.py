"""The directories of a TIFF: which tags its pages have, and how their pixels are stored."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from segcore.errors import ErrorCode, ImageError

# Tags of TIFF 6.0, and of DNG.
NEW_SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE = 254, 256, 257, 258
COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS = 259, 262, 266, 273
ORIENTATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, STRIP_BYTE_COUNTS = 274, 277, 278, 279
PLANAR_CONFIGURATION, COLOR_MAP = 284, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS = 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 338, 339, 50706

_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # type -> struct code
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TYPE_BYTES |= {13: 4, 16: 8, 17: 8, 18: 8}
_MAX_PAGES = 100_000
_REDUCED_OR_MASK = 1 | 4  # bits of NEW_SUBFILE_TYPE
_TAG_SLACK_BYTES = 1 << 16


class TiffDirectory(NamedTuple):
    """One page of a TIFF.

    Attributes:
        order: ``<`` or ``>``.
        is_big: BigTIFF.
        entries: Tag -> (type, number of values, position of the first).
        next_offset: Of the directory of the next page; 0 if there is none.
    """

    data: bytes
    order: str
    is_big: bool
    entries: Mapping[int, tuple[int, int, int]]
    next_offset: int

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The integers of a tag.

        Raises:
            ImageError: corrupt or truncated.
        """
        if tag not in self.entries:
            return default
        kind, count, start = self.entries[tag]
        code = _INTEGER_FORMATS.get(kind)
        if code is None or count == 0:
            raise ImageError(ErrorCode.CORRUPT, f"tiff tag {tag} has no whole numbers")
        if start + count * _TYPE_BYTES[kind] > len(self.data):
            raise _ends_early(self.data, f"its tag {tag}")
        return struct.unpack_from(f"{self.order}{count}{code}", self.data, start)

    def value(self, tag: int, default: int) -> int:
        """The first integer of a tag."""
        return self.values(tag, (default,))[0]


def read_directory(data: bytes) -> TiffDirectory:
    """The directory of the first page.

    Raises:
        ImageError: corrupt, truncated or unsupported_format.
    """
    if len(data) < 16:
        raise _ends_early(data, "its header")
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    is_big = version == 43
    (offset,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
    return _read_directory_at(data, order, is_big, offset)


def _read_directory_at(data: bytes, order: str, is_big: bool, offset: int) -> TiffDirectory:
    count_code, entry_code, entry_bytes = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    pointer_bytes = struct.calcsize(f"={entry_code}")
    at = offset + struct.calcsize(f"={count_code}")
    if at > len(data):
        raise _ends_early(data, "its directory")
    (n_entries,) = struct.unpack_from(f"{order}{count_code}", data, offset)
    end = at + n_entries * entry_bytes
    if end > len(data):
        raise _ends_early(data, "its directory")
    entries: dict[int, tuple[int, int, int]] = {}
    n_value_bytes = 0
    for start in range(at, end, entry_bytes):
        tag, kind, count = struct.unpack_from(f"{order}HH{entry_code}", data, start)
        n_bytes = count * _TYPE_BYTES.get(kind, 1)
        position = start + entry_bytes - pointer_bytes
        if n_bytes > pointer_bytes:
            (position,) = struct.unpack_from(f"{order}{entry_code}", data, position)
            n_value_bytes += n_bytes
        entries.setdefault(tag, (kind, count, position))
    # Values that overlap each other may add up to gigabytes.
    if n_value_bytes > len(data) + _TAG_SLACK_BYTES:
        raise ImageError(
            ErrorCode.CORRUPT,
            f"tiff of {len(data)} bytes has tags of {n_value_bytes} bytes, more than it can hold",
        )
    next_offset = 0  # as in a file that ends here
    if end + pointer_bytes <= len(data):
        (next_offset,) = struct.unpack_from(f"{order}{entry_code}", data, end)
    return TiffDirectory(data, order, is_big, entries, next_offset)


def count_more_pages(first: TiffDirectory) -> int:
    """Number of pages after the first, without reduced copies of a page and masks."""
    n_pages = 0
    for page in _pages_after(first):
        try:
            subfile_type = page.value(NEW_SUBFILE_TYPE, 0)
        except ImageError:
            subfile_type = 0
        n_pages += not subfile_type & _REDUCED_OR_MASK
    return n_pages


def _pages_after(page: TiffDirectory) -> Iterator[TiffDirectory]:
    """The pages after `page`; those that cannot be read end it without an error."""
    seen: set[int] = set()
    while page.next_offset and page.next_offset not in seen and len(seen) < _MAX_PAGES:
        seen.add(page.next_offset)
        try:
            page = _read_directory_at(page.data, page.order, page.is_big, page.next_offset)
        except ImageError:
            return
        yield page


def _ends_early(data: bytes, what: str) -> ImageError:
    return ImageError(ErrorCode.TRUNCATED, f"tiff of {len(data)} bytes ends before {what}")
