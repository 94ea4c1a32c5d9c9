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
SUBFILE_TYPE = 255  # the older form of NEW_SUBFILE_TYPE

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # type -> struct code
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
TYPE_BYTES |= {13: 4, 16: 8, 17: 8, 18: 8}
_MAX_DIRECTORIES = 100_000
_REDUCED_OR_MASK = 1 | 4  # bits of NEW_SUBFILE_TYPE
_REDUCED = 2  # SUBFILE_TYPE
_TAG_SLACK_BYTES = 1 << 16


class TiffDirectory(NamedTuple):
    """One page of a TIFF.

    Attributes:
        order: ``<`` or ``>``.
        is_big: BigTIFF.
        entries: Tag -> (type, number of values, position of the first).
        next_offset: Of the directory of the next page; 0 if there is none.
        offset, end: Where the directory begins, and where its entries end.
    """

    data: bytes
    order: str
    is_big: bool
    entries: Mapping[int, tuple[int, int, int]]
    next_offset: int
    offset: int
    end: int

    @property
    def is_page(self) -> bool:
        """Whether it is a page: no reduced copy of one, and no mask."""
        try:
            subfile_type = self.value(NEW_SUBFILE_TYPE, 0)
            return not subfile_type & _REDUCED_OR_MASK and self.value(SUBFILE_TYPE, 0) != _REDUCED
        except ImageError:
            return True

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
        if start + count * TYPE_BYTES[kind] > len(self.data):
            raise ends_early(self.data, f"its tag {tag}")
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
        raise ends_early(data, "its header")
    return read_directory_at(data, first_offset(data))


def first_offset(data: bytes) -> int:
    """Where the directory of the first page begins."""
    order, is_big = byte_order(data)
    (offset,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
    return int(offset)


def byte_order(data: bytes) -> tuple[str, bool]:
    """The byte order of a TIFF, ``<`` or ``>``, and whether it is a BigTIFF."""
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    return order, version == 43


def read_directory_at(data: bytes, offset: int) -> TiffDirectory:
    """The directory that begins at `offset`.

    Raises:
        ImageError: corrupt or truncated.
    """
    order, is_big = byte_order(data)
    count_code, entry_code, entry_bytes = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    pointer_bytes = struct.calcsize(f"={entry_code}")
    at = offset + struct.calcsize(f"={count_code}")
    if at > len(data):
        raise ends_early(data, "its directory")
    (n_entries,) = struct.unpack_from(f"{order}{count_code}", data, offset)
    end = at + n_entries * entry_bytes
    if end > len(data):
        raise ends_early(data, "its directory")
    entries: dict[int, tuple[int, int, int]] = {}
    n_value_bytes = 0
    for start in range(at, end, entry_bytes):
        tag, kind, count = struct.unpack_from(f"{order}HH{entry_code}", data, start)
        n_bytes = count * TYPE_BYTES.get(kind, 1)
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
    return TiffDirectory(data, order, is_big, entries, next_offset, offset, end)


def iter_directories(first: TiffDirectory) -> Iterator[TiffDirectory | ImageError]:
    """All directories from the first on, in linear time; the error of one that ends them early.

    A directory that occurred before ends them, too, as in other readers.
    """
    directory, seen = first, {first.offset}
    n_bytes_left = len(first.data)
    while True:
        yield directory
        n_bytes_left -= directory.end - directory.offset
        offset = directory.next_offset
        if not offset or offset in seen:
            return
        if n_bytes_left < 0 or len(seen) == _MAX_DIRECTORIES:
            message = f"tiff with more than {len(seen)} directories, which is more than it can hold"
            yield ImageError(ErrorCode.CORRUPT, message)
            return
        seen.add(offset)
        try:
            directory = read_directory_at(first.data, offset)
        except ImageError as error:
            yield error
            return


def count_more_pages(first: TiffDirectory) -> int:
    """Number of pages after the first; one that cannot be read counts, too."""
    directories = iter_directories(first)
    next(directories)
    return sum(isinstance(found, ImageError) or found.is_page for found in directories)


def ends_early(data: bytes, what: str) -> ImageError:
    """The error of a file that is too short."""
    return ImageError(ErrorCode.TRUNCATED, f"tiff of {len(data)} bytes ends before {what}")
