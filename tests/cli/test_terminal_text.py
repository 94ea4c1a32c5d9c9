"""Text from files reaches a terminal without control characters and without markup."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from segcore.cli.console import notify, print_table, print_text, safe_cell

HOSTILE = [
    "[/x]",
    "[bold]b",
    "\x1b[31mred",
    "a\rb",
    "\x9b1m",
    "\u202eevil",
    "\ud800",
    ":smile:",
    "{x}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_as_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    table = Table(title=safe_cell(name))
    table.add_column("plain")
    table.add_column("safe")
    table.add_row("[/x] :smile:", safe_cell(name))
    print_table(table)
    print_text(f"name {name}")
    notify(f"name {name}", "", "second line\nforged")
    captured = capsys.readouterr()
    assert captured.out.count(shown) >= 3
    assert "[/x] :smile:" in captured.out
    assert captured.err == f"name {shown}\nsecond line?forged\n"
    for text in (captured.out, captured.err):
        assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_a_terminal_of_ascii_alone_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_text("Zürich")
    table = Table()
    table.add_row(safe_cell("Zürich"))
    print_table(table)
    stream.flush()
    assert stream.buffer.getvalue().count(b"Z\\xfcrich") == 2  # type: ignore[attr-defined]
