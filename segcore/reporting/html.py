"""HTML and SVG, built from elements: the only place where text becomes markup."""

from __future__ import annotations

import html
import re

from segcore.text import printable

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*")
_VOID = frozenset({"br", "input", "meta"})
# A style is text to HTML and a script runs: `segcore.reporting.page` alone writes these two, from
# constants; a link or a frame could leave the file.
_REFUSED = frozenset({"script", "style", "link", "iframe", "object", "embed", "base", "form"})
_OWN_LINKS = re.compile(r"#[a-z0-9-]+|data:image/jpeg;base64,[A-Za-z0-9+/=]*")


class Markup(str):
    """Text that is HTML already. Nothing but `element`, `join` and constants make it."""

    __slots__ = ()


Content = str | int
"""What an element may contain: markup as it is, any other text escaped."""


def escape(text: object) -> Markup:
    """Any value as text of a page: markup and control characters mean nothing in it."""
    return Markup(html.escape(printable(str(text)), quote=True))


def join(*contents: Content) -> Markup:
    """Contents one after another."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in contents))


def element(
    name: str, /, *contents: Content, **attributes: str | int | float | bool | None
) -> Markup:
    """An element; ``class_`` stands for the attribute class, and ``aria_label`` for aria-label.

    Args:
        attributes: False and None leave one out; True gives one without a value.

    Raises:
        ValueError: The element could run code or leave the file, or a name is not one.
    """
    if not _NAME.fullmatch(name) or name in _REFUSED:
        raise ValueError(f"no element {name!r} in a report")
    words = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if not _NAME.fullmatch(attribute) or attribute.startswith("on") or attribute == "style":
            raise ValueError(f"no attribute {attribute!r} in a report")
        if attribute in ("href", "src") and not _OWN_LINKS.fullmatch(str(value)):
            raise ValueError(f"{attribute} of a report stays in the file, not {value!r}")
        if value is True:
            words.append(attribute)
        elif value is not None and value is not False:
            words.append(f'{attribute}="{escape(value)}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in _VOID else f"{start}{join(*contents)}</{name}>")
