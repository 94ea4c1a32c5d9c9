"""The pages of a TIFF, and each of them as a TIFF of its own.

A page is cut out of its file, so that it is decoded like any other image: by the same code, within
the same limits, and whatever is wrong with the pages beside it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from segcore.errors import ErrorCode, ImageError
from segcore.images import tiff_directory as tags
from segcore.images.tiff_directory import (
    TYPE_BYTES,
    TiffDirectory,
    first_offset,
    iter_directories,
    read_directory,
    read_directory_at,
)

_UNCOMPRESSED, _OLD_JPEG = 1, 6  # COMPRESSION
_LONG, _LONG8 = 4, 16  # types
_LONG8_KINDS = (16, 17, 18)  # whole numbers of 8 bytes
_POINTERS = (330, 34665, 34853, 40965)  # tags that lead to other directories: none is of the pixels
_MAX_VALUE_BYTES = 1 << 20  # a palette has 384 KiB at most; what is larger says nothing of pixels
_CHUNK_TAGS = (
    (tags.STRIP_OFFSETS, tags.STRIP_BYTE_COUNTS),
    (tags.TILE_OFFSETS, tags.TILE_BYTE_COUNTS),
)


class TiffPage(NamedTuple):
    """One page of several.

    Attributes:
        number: From 1.
        offset: Of its directory in the file.
        error: Why neither it nor any page after it can be read; None for all others.
    """

    number: int
    offset: int
    error: ImageError | None = None


def find_pages(data: bytes, max_pages: int) -> list[TiffPage]:
    """The pages of a TIFF that has several; empty for any other image.

    Reduced copies and masks are no pages. A page whose directory cannot be found, or that is one
    too many, is the last, and has an error.
    """
    if data[:4] not in tags.SIGNATURES:
        return []
    try:
        first = read_directory(data)
    except ImageError:  # decoding it says what is wrong
        return []
    if tags.DNG_VERSION in first.entries or not first.next_offset:
        return []
    pages: list[TiffPage] = []
    for directory in iter_directories(first):
        number = len(pages) + 1
        if isinstance(directory, ImageError):
            message = f"page {number} and any after it cannot be found: {directory.message}"
            pages.append(TiffPage(number, 0, ImageError(directory.code, message)))
        elif directory.is_page and number > max_pages:
            message = (
                f"page {number} and any after it are not read; the limit is {max_pages} pages "
                "(decode.max_pages)"
            )
            pages.append(TiffPage(number, 0, ImageError(ErrorCode.TOO_MANY_PAGES, message)))
            break
        elif directory.is_page:
            pages.append(TiffPage(number, directory.offset))
    return [] if [page.offset for page in pages] in ([], [first.offset]) else pages


def cut_page(data: bytes, offset: int) -> bytes:
    """The page whose directory begins at `offset`, as a TIFF without other pages.

    The first page is the file itself.

    Raises:
        ImageError: corrupt, truncated or unsupported_format.
    """
    if offset == first_offset(data):
        return data
    page = read_directory_at(data, offset)
    return write_page(page, page.is_big)


def write_page(page: TiffDirectory, is_big: bool) -> bytes:
    """A page as a TIFF without other pages, in its byte order; a BigTIFF if `is_big`.

    Raises:
        ImageError: corrupt, truncated or unsupported_format.
    """
    if page.value(tags.COMPRESSION, _UNCOMPRESSED) == _OLD_JPEG:
        message = "tiff with the old kind of JPEG, which is decoded in the first page only"
        raise ImageError(ErrorCode.UNSUPPORTED_FORMAT, message)
    writer, data = _PageWriter(page, is_big), page.data
    for offsets_tag, counts_tag in _CHUNK_TAGS:
        if offsets_tag in page.entries:
            writer.add_chunks(offsets_tag, counts_tag, _chunk_ranges(page, offsets_tag, counts_tag))
    for tag, (kind, count, start) in page.entries.items():
        n_bytes = count * TYPE_BYTES.get(kind, 0)
        is_readable = 0 < n_bytes <= min(len(data) - start, _MAX_VALUE_BYTES)
        if is_readable and tag not in _POINTERS and tag not in writer.entries:
            writer.add_values(tag, kind, count, data[start : start + n_bytes])
    return writer.finish()


def _chunk_ranges(page: TiffDirectory, offsets_tag: int, counts_tag: int) -> list[tuple[int, int]]:
    """(offset, bytes) of the strips or tiles.

    Without compression their sizes follow from the layout, and some programs write others.

    Raises:
        ImageError: Their sizes are not known.
    """
    offsets = page.values(offsets_tag)
    counts = page.values(counts_tag)
    if page.value(tags.COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED:
        needed = _uncompressed_bytes(page)
        counts += (0,) * (len(offsets) - len(counts))
        counts = tuple(max(count, needed) for count in counts)
    elif len(offsets) == 1 and not any(counts):
        counts = (len(page.data),)
    if len(counts) < len(offsets):
        message = f"tiff with {len(offsets)} strips or tiles, but sizes of {len(counts)}"
        raise ImageError(ErrorCode.CORRUPT, message)
    n_bytes = len(page.data)
    return [
        (offset, max(0, min(count, n_bytes - offset)))
        for offset, count in zip(offsets, counts, strict=False)
    ]


def _uncompressed_bytes(page: TiffDirectory) -> int:
    """Bytes of a whole strip or tile without compression."""
    samples = page.value(tags.SAMPLES_PER_PIXEL, 1)
    if page.value(tags.PLANAR_CONFIGURATION, 1) == 2:
        samples = 1
    height = page.value(tags.IMAGE_LENGTH, 0)
    width = page.value(tags.TILE_WIDTH, page.value(tags.IMAGE_WIDTH, 0))
    rows = page.value(tags.TILE_LENGTH, min(page.value(tags.ROWS_PER_STRIP, height), height))
    return (width * samples * max(page.values(tags.BITS_PER_SAMPLE, (1,))) + 7) // 8 * rows


class _PageWriter:
    """A TIFF of one page in the byte order of its file: header, pixels, values, directory.

    Attributes:
        entries: Tag -> (type, number of values, their bytes).
    """

    def __init__(self, page: TiffDirectory, is_big: bool) -> None:
        self.entries: dict[int, tuple[int, int, bytes]] = {}
        self._page, self._is_big = page, is_big
        self._body = bytearray(16)  # the header comes last; one of a TIFF that is not big ends at 8
        self._copied: dict[tuple[int, int], int] = {}  # range of the file -> its new offset

    def add_chunks(self, offsets_tag: int, counts_tag: int, ranges: list[tuple[int, int]]) -> None:
        """Copy strips or tiles; those that share their bytes share them still.

        Raises:
            ImageError: They overlap, so that they are more than the file.
        """
        view = memoryview(self._page.data)
        for offset, n_bytes in ranges:
            if (offset, n_bytes) in self._copied:
                continue
            self._copied[offset, n_bytes] = self._append(view[offset : offset + n_bytes])
            if len(self._body) > 2 * len(self._page.data) + (1 << 16):
                message = "tiff whose strips or tiles overlap, so that they are more than the file"
                raise ImageError(ErrorCode.CORRUPT, message)
        kind, code = (_LONG8, "Q") if self._is_big else (_LONG, "I")
        places = [self._copied[place] if place[1] else 0 for place in ranges]
        packing = f"{self._page.order}{len(ranges)}{code}"
        counts = [n_bytes for _, n_bytes in ranges]
        self.entries[offsets_tag] = kind, len(ranges), struct.pack(packing, *places)
        self.entries[counts_tag] = kind, len(ranges), struct.pack(packing, *counts)

    def add_values(self, tag: int, kind: int, count: int, values: bytes) -> None:
        """Copy the values of a tag; those of 8 bytes become shorter where 8 are not allowed."""
        if kind in _LONG8_KINDS and not self._is_big:
            order = self._page.order
            wide = struct.unpack(f"{order}{count}Q", values)
            kind, values = _LONG, struct.pack(f"{order}{count}I", *(n & 0xFFFFFFFF for n in wide))
        self.entries[tag] = kind, count, values

    def _append(self, data: bytes | memoryview) -> int:
        """Add bytes; returns their offset, which is even."""
        offset = len(self._body)
        self._body += data
        self._body += b"\0" * (len(self._body) % 2)
        return offset

    def finish(self) -> bytes:
        """The file."""
        order, is_big = self._page.order, self._is_big
        pointer, count_code = ("Q", "Q") if is_big else ("I", "H")
        pointer_bytes = 8 if is_big else 4
        directory = struct.pack(f"{order}{count_code}", len(self.entries))
        for tag, (kind, count, values) in sorted(self.entries.items()):
            if len(values) > pointer_bytes:
                field = struct.pack(f"{order}{pointer}", self._append(values))
            else:
                field = values.ljust(pointer_bytes, b"\0")
            directory += struct.pack(f"{order}HH{pointer}", tag, kind, count) + field
        offset = self._append(directory + struct.pack(f"{order}{pointer}", 0))
        magic = self._page.data[:2]
        if is_big:
            self._body[:16] = magic + struct.pack(f"{order}HHHQ", 43, 8, 0, offset)
        else:
            self._body[:8] = magic + struct.pack(f"{order}HI", 42, offset)
        return bytes(self._body)
