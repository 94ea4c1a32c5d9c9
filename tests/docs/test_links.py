"""Links between pages lead somewhere, every page is in the index, paths that are named exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.support import markdown
from tests.support.paths import ROOT

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
MAX_PICTURE_BYTES = 300_000


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", markdown.prose(str(page.relative_to(ROOT))), re.MULTILINE)
    anchors: set[str] = set()
    for heading in headings:
        base = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        anchor, number = base, 0
        while anchor in anchors:
            number += 1
            anchor = f"{base}-{number}"
        anchors.add(anchor)
    return anchors


def _links(page: str) -> list[str]:
    return [link for link in LINK.findall(markdown.prose(page)) if "://" not in link]


@pytest.mark.parametrize("page", markdown.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in _anchors(target.resolve())):
            broken.append(link)
    assert broken == []


def test_broken_links_are_noticed() -> None:
    assert "data-and-its-licence" in _anchors_of_text("## Data, and its `licence`\n")
    assert LINK.findall("[a [b] c](d.md#e) and ![p](q.png)") == ["d.md#e", "q.png"]


def _anchors_of_text(text: str) -> set[str]:
    heading = text.strip().removeprefix("## ")
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")}


def test_the_index_names_every_page() -> None:
    named = {link.partition("#")[0] for link in _links("docs/README.md")}
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= named


@pytest.mark.parametrize("page", markdown.PAGES)
def test_paths_that_are_named_exist(page: str) -> None:
    missing = []
    for code in markdown.inline_code(page):
        for word in code.split():
            path = word.partition("::")[0]
            is_path = re.fullmatch(r"(?:segcore|tests|docs|configs|jobs|cluster)/[\w./*-]*", path)
            if is_path and not list(ROOT.glob(path)):
                missing.append(word)
        module = re.search(r"python -m (tests[\w.]+)", code)
        if module and find_spec(module[1]) is None:
            missing.append(code)
    assert missing == []


def test_the_picture_of_the_readme_is_small_and_whole() -> None:
    name = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown.read("README.md"))[0]
    picture = ROOT / name
    assert picture.stat().st_size < MAX_PICTURE_BYTES
    with Image.open(picture) as image:
        image.load()
        assert min(image.size) >= 600
