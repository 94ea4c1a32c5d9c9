"""Markup is made of elements alone: no text becomes any, and nothing leaves the file."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.reporting.html import Markup, element, join
from segcore.text import printable

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</title></svg><svg onload=alert(1)>",
    "&lt;b&gt; &amp; ]]> --> \x1b[31m\u202e",
)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    _check_text(text)


@given(st.text())
def test_any_text_stays_text(text: str) -> None:
    _check_text(text)


def _check_text(text: str) -> None:
    reader = _Reader()
    reader.feed(element("p", text, title=text, class_=None, hidden=True))
    reader.close()
    assert reader.tags == [("p", {"title": printable(text), "hidden": None})]
    assert reader.text == printable(text)


def test_markup_is_taken_as_it_is() -> None:
    assert join("a<", Markup("<b>"), 3) == "a&lt;<b>3"
    assert element("input", type="radio", checked=False) == '<input type="radio">'
    assert element("th", "x", aria_label="y") == '<th aria-label="y">x</th>'


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("script", {}),
        ("style", {}),
        ("iframe", {}),
        ("form", {}),
        ("a b", {}),
        ("p", {"onclick": "x"}),
        ("p", {"style": "x"}),
        ("p", {"x y": "1"}),
        ("a", {"href": "javascript:alert(1)"}),
        ("a", {"href": "//host/x"}),
        ("image", {"href": "data:image/svg+xml;base64,AA"}),
        ("img", {"src": "x.png"}),
    ],
)
def test_what_could_run_or_leave_the_file_is_refused(name: str, attributes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="report"):
        element(name, **attributes)
