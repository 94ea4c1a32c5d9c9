"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.paths import ROOT

PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in sorted(
        (
            *ROOT.glob("*.md"),
            *ROOT.glob("docs/*.md"),
            *ROOT.glob("segcore/**/*.md"),
            *ROOT.glob("cluster/**/*.md"),
        )
    )
)
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        info: What is behind the opening fence, such as ``python`` or ``yaml train``.
        not_run: Why its commands are not run by a test; "" if they are.
    """

    page: str
    line: int
    info: str
    text: str
    not_run: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    def commands(self) -> Iterator[str]:
        """The lines of a shell block that a reader types, without prompts and comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        for line in lines:
            typed = line.strip().removeprefix("$ ") if self.language == "console" else line.strip()
            is_output = self.language == "console" and not line.strip().startswith("$ ")
            if typed and not is_output and not typed.startswith("#"):
                yield typed


def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[Block]:
    text = read(page)
    found = []
    for match in _FENCE.finditer(text):
        indent, before = match["indent"], text[: match.start()]
        reason = _NOT_RUN.search(before)
        lines = [line.removeprefix(indent) for line in match["text"].splitlines()]
        found.append(
            Block(
                page=page,
                line=before.count("\n") + 1,
                info=match["info"].strip(),
                text="".join(f"{line}\n" for line in lines),
                not_run=reason[1] if reason else "",
            )
        )
    return found


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def inline_code(page: str) -> list[str]:
    """What is set as code within the sentences and tables of a page."""
    spans = re.findall(r"(`+)(.+?)\1", prose(page), re.DOTALL)
    return [" ".join(code.split()).replace("\\|", "|") for _, code in spans]
