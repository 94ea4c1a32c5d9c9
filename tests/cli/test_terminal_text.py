"""Text from files reaches a terminal without control characters and without markup."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.table import Table

from segcore.cli import console
from segcore.cli.console import notify, print_table, print_text, safe_cell
from segcore.cli.main import app
from tests.support.bright_images import bright_png
from tests.support.jobs import write_files

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


@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "/nowhere?sig=hunter2hunter2"],
        ["status", "/nowhere/token=hunter2hunter2"],
        ["segment", "IN", "OUT", "--metrics-file", "http://user:hunter2hunter2@host/x"],
        ["segment", "IN", "OUT", "--set", "storage.key=hunter2hunter2"],
        ["segment", "IN", "OUT", "--set", "storage.key=[hunter2hunter2"],
    ],
)
def test_an_error_shows_no_secret_in_text_or_json(
    arguments: list[str],
    json_flag: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"IN": write_files(tmp_path / "in", {"a.png": bright_png(1)}), "OUT": str(tmp_path)}
    words = [places.get(word, word) for word in (*arguments, *json_flag)]
    monkeypatch.setattr(sys, "argv", ["segcore", *words])
    with pytest.raises(SystemExit) as end:
        console.run_app(app)
    assert end.value.code == 2
    assert "hunter2" not in "".join(capsys.readouterr())


def test_the_traceback_of_a_bug_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_bug(ValueError("\x1b[31m\u202ename of token=hunter2hunter2"))
    printed = capsys.readouterr().err
    assert "?[31m?name" in printed
    assert [c for c in printed if not (c.isprintable() or c == "\n")] == []
    assert "hunter2" not in printed
