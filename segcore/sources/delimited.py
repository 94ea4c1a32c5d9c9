"""Tables of text (CSV, TSV): which separator they use, and no line swallowed by a stray quote."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from segcore.errors import UsageError
from segcore.text import plural

_SEPARATORS = (",", ";", "\t", "|")
_MAX_LINE_CHARS = 1 << 20


@dataclass(frozen=True)
class DelimitedRow:
    """One row: its cells, and the lines of the file that it takes."""

    cells: list[str]
    lines: list[str]


@dataclass
class DelimitedTable:
    """A table with a header.

    Attributes:
        uri: The file.
        separator: Between cells.
        header: Names of the columns.
        n_multiline: Rows so far that span several lines.
    """

    uri: str
    separator: str
    header: list[str]
    _lines: _LineReader = field(repr=False)
    n_multiline: int = 0

    @classmethod
    def open(
        cls,
        uri: str,
        file: io.TextIOWrapper,
        separator: str,
        find_column: Callable[[Sequence[str]], str | None],
    ) -> DelimitedTable:
        """Read the header. If `separator` gives no known column, another that does is taken.

        Args:
            find_column: The known column among some names; None if there is none.
        """
        lines = _LineReader(uri, file)
        first_line = next((line for line in lines if line.strip()), "")
        if (
            first_line[:4].lower() == "sep=" and len(first_line.rstrip("\r\n")) == 5
        ):  # as Excel writes
            separator = first_line[4]
            first_line = next((line for line in lines if line.strip()), "")
        headers = {}
        for candidate in (separator, *_SEPARATORS):
            try:
                headers[candidate] = _split(first_line, candidate)
            except csv.Error:
                continue
            if find_column(headers[candidate]) is not None:
                return cls(uri, candidate, headers[candidate], lines)
        if separator in headers:
            return cls(uri, separator, headers[separator], lines)
        # a header with a line break inside quotes
        table = cls(uri, separator, [], lines)
        rows = table._iter_rows(chain([first_line], lines))
        table.header = [name.strip() for name in next(rows).cells]
        return table

    def rows(self, index: int, is_image_name: Callable[[str], bool]) -> Iterator[DelimitedRow]:
        """The rows below the header that are not empty.

        Args:
            index: Of the column with the URIs; every row has it.
            is_image_name: Tells the name of an image from other text.

        Raises:
            UsageError: Quotes or cells of a line do not fit together; names the line.
        """
        for row in self._iter_rows(self._lines):
            if not row.cells:
                continue
            self._check_cells(row, index)
            if len(row.lines) > 1:
                self._check_lines(row, index, is_image_name)
                self.n_multiline += 1
            yield row

    def _iter_rows(self, lines: Iterator[str]) -> Iterator[DelimitedRow]:
        reader = csv.reader(lines, delimiter=self.separator, strict=True)
        while True:
            self._lines.recent.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                first = self._lines.number - max(len(self._lines.recent) - 1, 0)
                raise UsageError(
                    f"{self.uri}, line {first}: not valid CSV: {error}.",
                    'Check its quotes: inside a quoted field, write " as "".',
                ) from error
            if cells is None:
                return
            yield DelimitedRow(cells, list(self._lines.recent))

    def _check_cells(self, row: DelimitedRow, index: int) -> None:
        n_columns = len(self.header)
        if index >= len(row.cells):
            raise UsageError(
                f"{self.uri}, line {self._lines.number}: no column {self.header[index]!r}; it has "
                f"{len(row.cells)} of {plural(n_columns, 'column')}."
            )
        if any(cell.strip() for cell in row.cells[n_columns:]):
            raise UsageError(
                f"{self.uri}, line {self._lines.number}: {plural(len(row.cells), 'cell')}, but the "
                f"header has {plural(n_columns, 'column')}.",
                f"Quote the cells that contain the separator {self.separator!r}.",
            )

    def _check_lines(
        self, row: DelimitedRow, index: int, is_image_name: Callable[[str], bool]
    ) -> None:
        """Raise if a quote has swallowed lines that look like rows of their own."""
        value = row.cells[index]
        first = self._lines.number - len(row.lines) + 1
        suspects = []
        if "\n" in value.strip() or "\r" in value.strip():
            suspects.append(first)
        for number, line in enumerate(row.lines, first):
            cells = line.rstrip("\r\n").split(self.separator)
            if len(cells) != len(self.header):
                continue
            cell = cells[index].strip(' "').replace('""', '"')
            is_own = cell == value.strip(' "') or (self.separator in value and cell in value)
            if not is_own and (is_image_name(cell) or "://" in cell):
                suspects.append(number)
        if suspects:
            raise UsageError(
                f"{self.uri}, line {first}: a quote opens a field that ends in line "
                f"{self._lines.number}, but line {suspects[0]} looks like a row of its own.",
                'Close the quote where its field ends; inside a quoted field, write " as "".',
            )


class _LineReader:
    """The lines of a file, with line breaks; remembers those that the current row has taken."""

    def __init__(self, uri: str, file: io.TextIOWrapper) -> None:
        self._uri, self._file = uri, file
        self.number = 0
        self.recent: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MAX_LINE_CHARS)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == _MAX_LINE_CHARS:
            raise UsageError(
                f"{self._uri}, line {self.number}: longer than {_MAX_LINE_CHARS:,} characters."
            )
        self.recent.append(line)
        return line


def _split(line: str, separator: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=separator, strict=True), [])]
