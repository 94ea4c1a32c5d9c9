"""The messages in docs/troubleshooting.md are messages of the code, word for word."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.support import markdown
from tests.support.paths import ROOT

PAGE = "docs/troubleshooting.md"
VALUE = "…"  # stands for a value
MIN_MESSAGES = 40


@cache
def _messages_of_the_code() -> str:
    """Every string of segcore, one a line, with "…" for each value that is put into it."""
    lines = []
    for path in sorted((ROOT / "segcore").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                pieces = (
                    piece.value if isinstance(piece, ast.Constant) else VALUE
                    for piece in node.values
                )
                lines.append("".join(map(str, pieces)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(_without_adjacent_values(line.replace("\n", " ")) for line in lines)


def _without_adjacent_values(text: str) -> str:
    """Two values side by side, also with a space between, read as one."""
    return re.sub(rf"{VALUE}(?:[ '`]*{VALUE})+", VALUE, text)


def _messages_on_the_page() -> list[str]:
    cells = re.findall(r"^\| (.+?) \| ", markdown.prose(PAGE), re.MULTILINE)
    return [code for cell in cells for code in re.findall(r"`(.+)`", cell)]


def _is_in_the_code(message: str) -> bool:
    wanted = _without_adjacent_values(message).removesuffix(VALUE).rstrip()
    return wanted in _messages_of_the_code()


def test_every_message_is_one_of_the_code() -> None:
    messages = _messages_on_the_page()
    assert len(messages) >= MIN_MESSAGES
    assert [message for message in messages if not _is_in_the_code(message)] == []


def test_another_message_is_noticed() -> None:
    assert not _is_in_the_code("There is no model and no file called ….")
    assert not _is_in_the_code("… does not exist here.")
