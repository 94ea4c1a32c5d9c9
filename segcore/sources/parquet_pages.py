"""What a Parquet file claims about its pages, checked before any of them is decompressed.

A page header of a few bytes can ask for gigabytes, and one dictionary value can be meant by every
row. pyarrow believes both. So the bytes of a column are looked at when pyarrow reads them: page
headers lie among them, and what they claim must be backed by compressed bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

_MAGIC_BYTES = 8  # length of the footer and "PAR1"
_MAX_FOOTER_BYTES = 256 << 20
_MAX_DEPTH = 16
# A page may have so many bytes, whatever its compressed size; pyarrow takes up to 7 times as many.
_FREE_PAGE_BYTES = 64 << 20
_MAX_RATIO = 16  # of a larger page to its compressed size
_MAX_REPEATED_BYTES = 128 << 20  # of values built together, if all were the largest one
_MAX_LIST_BYTES = 1 << 30  # the same for all lists of a row group
_MAX_LIST_VALUES = 1 << 20  # in the lists of a row group
_INTEGER_TYPES = (4, 5, 6)
_LEAF: dict[int, Any] = {}
_CHUNK = {3: {3: _LEAF, 7: _LEAF, 9: _LEAF, 11: _LEAF}}  # ColumnChunk.meta_data
_GROUP = {1: _CHUNK}  # RowGroup.columns
# PageHeader: type, sizes, DataPageHeader (values, encoding), DataPageHeaderV2 (the same)
_PAGE = {1: _LEAF, 2: _LEAF, 3: _LEAF, 5: {1: _LEAF, 2: _LEAF}, 8: {1: _LEAF, 4: _LEAF}}
_DICTIONARY_PAGE = 2
_DICTIONARY_ENCODINGS = (2, 8)


class PagesTooLarge(Exception):
    """The pages of a column claim more than their bytes back."""


class LargeDictionary(Exception):
    """Rows read together would repeat too large a value; `max_rows` of them would not."""

    def __init__(self, max_rows: int) -> None:
        super().__init__(f"read {max_rows} rows at once")
        self.max_rows = max_rows


@dataclass
class _Claims:
    """What the pages of a column chunk claim to hold."""

    n_bytes: int = 0
    n_values: int = 0
    n_dictionary_values: int = 0  # that mean a value of the dictionary
    dictionary_bytes: int = 0


@dataclass(frozen=True)
class ColumnChunk:
    """Where the pages of one column of one row group lie."""

    path: tuple[str, ...]
    start: int
    n_bytes: int


class ParquetGuard:
    """A Parquet file as pyarrow reads it; looks at the pages of columns on their way.

    Attributes:
        batch_rows: How many rows are built together.
        repeats_values: Whether a value of a dictionary is copied for each row that means it.
        chunk_bytes: Uncompressed bytes of the column chunks that were read since it was set to 0.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.closed = False
        self.batch_rows = 1
        self.repeats_values = True
        self.chunk_bytes = 0
        self._chunks: dict[int, ColumnChunk] = {}  # by start
        self.seek, self.tell = file.seek, file.tell

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def read(self, length: int = -1) -> bytes:
        """Bytes of the file.

        Raises:
            PagesTooLarge, LargeDictionary: See there; pyarrow passes them on.
        """
        start = self._file.tell()
        data = self._file.read(length)
        if (chunk := self._chunks.get(start)) is not None:
            self._check(chunk, data)
        return data

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""

    def watch_columns(self) -> None:
        """Look at the pages of all columns from now on."""
        self._chunks = {chunk.start: chunk for chunk in read_column_chunks(self._file)}

    def _check(self, chunk: ColumnChunk, data: bytes) -> None:
        claims = _read_claims(chunk, data)
        self.chunk_bytes += claims.n_bytes
        name = ".".join(chunk.path)
        value_bytes = claims.dictionary_bytes if self.repeats_values else 0
        if "list" in chunk.path[1:2]:
            if (
                claims.n_values > _MAX_LIST_VALUES
                or claims.n_dictionary_values * value_bytes > _MAX_LIST_BYTES
            ):
                raise PagesTooLarge(
                    f"column {name!r} claims {claims.n_values:,} values in the lists of a row group"
                )
        elif min(self.batch_rows, claims.n_dictionary_values) * value_bytes > _MAX_REPEATED_BYTES:
            max_rows = max(1, _MAX_REPEATED_BYTES // value_bytes)
            if max_rows < self.batch_rows:
                raise LargeDictionary(max_rows)


def _read_claims(chunk: ColumnChunk, data: bytes) -> _Claims:
    """What the page headers among the bytes of a column chunk claim.

    Raises:
        PagesTooLarge: A page claims more bytes than its compressed ones can mean.
    """
    claims = _Claims()
    position, end = 0, min(len(data), chunk.n_bytes)
    while position < end:
        reader = _CompactReader(data, position, end)
        try:
            page = reader.read_struct(_PAGE)
        except ValueError:
            break  # damaged: pyarrow says so
        n_bytes, compressed = page.get(2), page.get(3)
        if not (isinstance(n_bytes, int) and isinstance(compressed, int) and compressed >= 0):
            break
        backed = min(compressed, end - reader.position)
        if n_bytes > max(_FREE_PAGE_BYTES, _MAX_RATIO * backed):
            raise PagesTooLarge(
                f"column {'.'.join(chunk.path)!r} has a page that claims {n_bytes:,} bytes but is "
                f"stored in {backed:,}; the limit is {_FREE_PAGE_BYTES >> 20} MiB, or "
                f"{_MAX_RATIO} times what is stored"
            )
        if page.get(1) == _DICTIONARY_PAGE:
            claims.dictionary_bytes = n_bytes
        header = page.get(5) or page.get(8) or {}
        n_values = header.get(1, 0) if isinstance(header, dict) else None
        if not (isinstance(n_values, int) and n_values >= 0 and n_bytes >= 0):
            break
        claims.n_bytes += n_bytes
        claims.n_values += n_values
        if header.get(2, header.get(4)) in _DICTIONARY_ENCODINGS:
            claims.n_dictionary_values += n_values
        position = reader.position + compressed
    return claims


def read_column_chunks(file: BinaryIO) -> list[ColumnChunk]:
    """The column chunks of all row groups, from the footer; none if it cannot be read."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _MAGIC_BYTES))
    tail = file.read(_MAGIC_BYTES)
    n_bytes = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or n_bytes > min(size - _MAGIC_BYTES, _MAX_FOOTER_BYTES):
        return []
    file.seek(size - _MAGIC_BYTES - n_bytes)
    footer = file.read(n_bytes)
    try:
        groups = _CompactReader(footer, 0, len(footer)).read_struct({4: _GROUP}).get(4, [])
        return [_to_chunk(column.get(3, {})) for group in groups for column in group.get(1, [])]
    except (ValueError, TypeError, AttributeError):
        return []


def _to_chunk(metadata: dict[int, Any]) -> ColumnChunk:
    path = tuple(part.decode("utf-8", "replace") for part in metadata.get(3, []))
    start, dictionary_start, n_bytes = (metadata.get(field, 0) for field in (9, 11, 7))
    if 0 < dictionary_start < start:
        start = dictionary_start
    if not (isinstance(start, int) and isinstance(n_bytes, int)):
        raise TypeError("not a number")
    return ColumnChunk(path, start, n_bytes)


class _CompactReader:
    """The compact protocol of Thrift, in which headers and footers of Parquet are written.

    Only wanted fields are kept: a specification maps field numbers to that of their struct, or to
    `_LEAF` for other values. Damage raises ValueError.
    """

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self._data, self.position, self._end = data, position, end

    def read_struct(self, wanted: dict[int, Any], depth: int = 0) -> dict[int, Any]:
        """The wanted fields of the struct at the current position."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deep")
        values: dict[int, Any] = {}
        field_id = 0
        while (header := self._byte()) & 0x0F:
            field_id = field_id + (header >> 4) if header >> 4 else _unzigzag(self._varint())
            value = self._value(header & 0x0F, wanted.get(field_id), depth)
            if field_id in wanted:
                if wanted[field_id] and not isinstance(value, dict | list):
                    raise ValueError("another type than that of the field")
                values[field_id] = value
        return values

    def _value(self, kind: int, wanted: dict[int, Any] | None, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in _INTEGER_TYPES:
            return _unzigzag(self._varint())
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            start = self._skip(self._varint())
            return None if wanted is None else self._data[start : self.position]
        if kind in (9, 10):
            return self._list(wanted, depth)
        if kind == 12:
            return self.read_struct(wanted or {}, depth + 1)
        raise ValueError(f"unknown type {kind}")

    def _list(self, wanted: dict[int, Any] | None, depth: int) -> list[Any]:
        header = self._byte()
        kind = header & 0x0F
        length = header >> 4 if header >> 4 != 15 else self._varint()
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deep")
        if length > self._end - self.position:  # each element takes a byte at least
            raise ValueError("a list longer than its bytes")
        values = []
        for _ in range(length):
            value = self._byte() if kind in (1, 2) else self._value(kind, wanted, depth + 1)
            if wanted is not None:
                values.append(value)
        return values

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.position - 1]

    def _skip(self, length: int) -> int:
        """Move on and return the position before."""
        start = self.position
        if length > self._end - start:
            raise ValueError("ends early")
        self.position += length
        return start

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number longer than 64 bits")


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
