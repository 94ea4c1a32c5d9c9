"""Odd manifests of text, and what readers that share no code with segcore's find in them.

Line ends of all kinds (mixed, none at the end), other encodings, blank and commented lines, quotes,
control characters, huge lines; the same file for the same number.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

KINDS = ("txt", "csv", "tsv", "jsonl")
_LINE_END = re.compile("\r\n|\r|\n")
_NAMES = (
    *(
        "{}.jpg",
        "{}.jpg",
        "{}.jpg",
        "d {}/é.png",
        "日本/{}.jpg",
        "a,{};b.jpg",
        '"{}".jpg',
        "{}'s.jpg",
    ),
    *("tab\t{}.jpg", "pipe|{}.jpg", "# {}.jpg", "x\x0c{}.jpg", "x\u2028{}.jpg", "x\x85{}.jpg"),
    *("nul\0{}.jpg", "\ufeff{}.jpg", " {}.jpg ", "{}.jpg\x0c", "{}\x1a", "=1+{}.jpg", "{}"),
)
_BLANKS = ("", "", " ", "\t", "\x0c", " \u2028", "\xa0")
_CAPTIONS = ("", "x", 'say "hi"', "two\nlines", "a;b\tc|d,", "\r", "é", '5" screen', "\0", "nan")
_COLUMNS = ("uri", "URI", "path", " file_name ", "image")


@dataclass(frozen=True)
class ManifestFile:
    """One manifest.

    Attributes:
        kind: Its extension.
        rows: The references in it, by an independent reader; None if it must be refused.
        n_skipped: Commented lines, and rows of a table whose reference is empty; blank lines
            do not count. So each physical line is a row, skipped, blank, or inside quotes.
    """

    kind: str
    data: bytes
    rows: list[str] | None
    n_skipped: int = 0


def make_manifest(number: int) -> ManifestFile:
    """The manifest with this number; its kind follows from the number."""
    kind, random = KINDS[number % len(KINDS)], Random(number)
    names = [random.choice(_NAMES).format(i) for i in range(random.randint(1, 12))]
    if random.random() < 0.1:
        names += names[:2]
    if random.random() < 0.04:
        names.insert(random.randrange(len(names)), "n" * random.choice((5_000, 140_000, 1 << 20)))
    data = _encode(_WRITERS[kind](names, random), random)
    text = _decode(data)
    if text is None:
        return ManifestFile(kind, data, None)
    if kind == "txt":
        lines = [line.strip() for line in _LINE_END.split(text) if line.strip()]
        rows = [line for line in lines if not line.startswith("#")]
        return ManifestFile(kind, data, rows, len(lines) - len(rows))
    if kind == "jsonl":
        return ManifestFile(kind, data, _values_of(text))
    return ManifestFile(kind, data, *_cells_of(text, "," if kind == "csv" else "\t"))


def _line_end(random: Random) -> Callable[[], str]:
    ends = random.choice(
        (("\n",), ("\n",), ("\r\n",), ("\r",), ("\n", "\r\n"), ("\n", "\r", "\r\n"))
    )
    return lambda: random.choice(ends)


def _joined(lines: list[str], random: Random, *, odd: bool = True) -> str:
    """The lines with ends, among others that hold nothing."""
    end = _line_end(random)
    text = ""
    for line in lines:
        text += line + end()
        if odd and random.random() < 0.15:
            text += random.choice(_BLANKS) + end()
    return text if random.random() < 0.7 else text.rstrip("\r\n")


def _write_txt(names: list[str], random: Random) -> str:
    lines = []
    for name in names:
        lines.append(name)
        if random.random() < 0.1:
            lines.append(random.choice(("# a comment", "#", "#1.jpg", "  # none.jpg")))
    return _joined(lines, random)


def _write_json_lines(names: list[str], random: Random) -> str:
    key = random.choice(_COLUMNS).strip()
    is_plain, to_ascii = random.random() < 0.3, random.random() < 0.5
    lines = []
    for number, name in enumerate(names):
        value: object = name if is_plain else {"n": number, key: name, "caption": "a\nb"}
        line = json.dumps(value, ensure_ascii=to_ascii)
        change = random.random()
        if change < 0.02:
            line = random.choice(
                ("{", "[]", "null", '{"uri": 1}', '{"other": "x"}', "{}", line + "]")
            )
        elif change < 0.04:
            line = line.replace(" ", random.choice(("\r", "\n", "\t", "\x0c", "\u2028")), 1)
        elif change < 0.05 and not is_plain:
            line = line[:-1] + f', "{key}": "again.jpg"}}'
        elif change < 0.06:
            line += line
        lines.append(line)
    return _joined(lines, random)


def _write_csv(names: list[str], random: Random) -> str:
    return _write_table(names, random, random.choice((",", ",", ";", "|", "\t")))


def _write_tsv(names: list[str], random: Random) -> str:
    return _write_table(names, random, random.choice(("\t", "\t", "\t", ",")))


def _write_table(names: list[str], random: Random, separator: str) -> str:
    """A table as a spreadsheet, a program or a person writes it."""
    column = random.choice(_COLUMNS)
    columns = ["n", "caption", column]
    if random.random() < 0.03:
        columns.append(column)
    random.shuffle(columns)
    style = random.choice(("minimal", "all", "none", "none"))
    end = _line_end(random)
    text = random.choice(("", "", "", f"sep={separator}{end()}", end(), "\ufeff"))
    for number, name in enumerate(["", *names]):
        cells = columns
        if number:
            cells = [_cell(header, column, name, number, random) for header in columns]
            if random.random() < 0.02:
                cells = [*cells, ""] if random.random() < 0.5 else cells[:-1]
        text += _row(cells, separator, style, random) + end()
        if random.random() < 0.06:
            blank = random.choice(("", "", "", "# a comment", separator * (len(columns) - 1)))
            text += blank + end()
    if random.random() < 0.1:
        at = random.randrange(len(text))
        text = text[:at] + '"' + text[at:]
    return text if random.random() < 0.7 else text.rstrip("\r\n")


def _cell(header: str, column: str, name: str, number: int, random: Random) -> str:
    if header == column:
        return name if random.random() < 0.95 else ""
    return str(number) if header == "n" else random.choice(_CAPTIONS)


def _row(cells: list[str], separator: str, style: str, random: Random) -> str:
    if style == "none":
        return separator.join(re.sub(f"[\r\n{separator}]", " ", cell) for cell in cells)
    sink = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if style == "all" else csv.QUOTE_MINIMAL
    csv.writer(sink, delimiter=separator, quoting=quoting, lineterminator="").writerow(cells)
    return sink.getvalue()


_WRITERS = {"txt": _write_txt, "csv": _write_csv, "tsv": _write_tsv, "jsonl": _write_json_lines}


def _encode(text: str, random: Random) -> bytes:
    change = random.random()
    if change < 0.85:
        return text.encode()
    if change < 0.91:
        return b"\xef\xbb\xbf" + text.encode()
    if change < 0.95:
        return text.encode(random.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32")))
    if change < 0.97:
        return text.encode("cp1252", "replace")
    data = text.encode()
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice((b"\xff", b"\xc3", b"\xe2\x80", b"\xed\xa0\x80")) + data[at:]


def _decode(data: bytes) -> str | None:
    """UTF-8 with or without a mark; None for other encodings."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    is_wide = len(data) > 2 and 0 in data[:2]  # ASCII in UTF-16 is valid UTF-8 as well
    return None if is_wide else text


def _values_of(text: str) -> list[str] | None:
    """The values of a stream of JSON documents, whatever lines they are on."""
    decoder, at, rows = json.JSONDecoder(object_pairs_hook=list), 0, []
    while True:
        at += len(text[at:]) - len(text[at:].lstrip())
        if at == len(text):
            return rows
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, list):
            found = [v for k, v in value if k in ("uri", "URI", "path", "file_name", "image")]
            value = found[0] if len(found) == 1 else None
        if not isinstance(value, str) or not value:
            return None
        rows.append(value)


def _cells_of(text: str, separator: str) -> tuple[list[str] | None, int]:
    """(references, rows without one) by Python's own reader of tables."""
    text = re.sub("^([ \t]*(\r\n|\r|\n))+", "", text)
    if match := re.match("sep=(.)(\r\n|\r|\n)", text):
        separator, text = match[1], text[match.end() :]
    separators = [separator, *",;\t|"]
    for candidate in separators:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=candidate, strict=True)
        try:
            rows = [row for row in reader if row]
        except csv.Error:
            continue
        header = [name.strip().lower() for name in rows[0]] if rows else []
        found = [name for name in ("uri", "path", "file_name", "image") if name in header]
        if not found:
            continue
        if header.count(found[0]) > 1:
            return None, 0
        index = header.index(found[0])
        if any(index >= len(row) for row in rows):
            return None, 0
        values = [row[index].strip() for row in rows[1:]]
        return [value for value in values if value], values.count("")
    return None, 0
