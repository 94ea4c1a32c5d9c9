"""What leaves the process as a log is cleaned here, and nowhere else."""

from __future__ import annotations

import os
import re

from segcore.text import printable, redact

_MAX_CHARACTERS = 24_000  # of a message or a traceback
_URI = re.compile(r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{0,30}+://[^\s'\"<>]+")
# Both with bounds and from the beginning of a word, so that no text takes more than linear time.
_SECRET = (
    r"secret|token|passw(?:or)?d|signature|sig(?![a-z])|credential|(?:api|access|account)[-_]?key"
)
_ASSIGNMENT = re.compile(
    rf"""((?<![\w-])(?:[\w-]{{0,64}}?(?:{_SECRET})[\w-]{{0,64}}+|authorization)["']?"""
    r"""\s{0,8}+[=:]\s{0,8}+)"""
    r"""(?:(?:bearer|basic)\s{1,8}+)?["']?[^\s"',;&)]+""",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
_MIN_SECRET_CHARACTERS = 8  # shorter values of the environment are words like any other


def clean(text: str) -> str:
    """The text without secrets and without control characters; line breaks stay.

    Gone are users, passwords and signatures in links, values behind names such as ``token=``, and
    the values of environment variables with such names. What is very long loses its middle.
    """
    if len(text) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        text = f"{text[:half]} … {text[-half:]}"
    for value in _secret_values():
        text = text.replace(value, "…")
    text = _URI.sub(lambda match: redact(match[0]), text)
    text = _ASSIGNMENT.sub(r"\1…", text)
    return "\n".join(map(printable, text.split("\n")))


def clean_line(text: str) -> str:
    """The same as one line: a line break becomes a space."""
    return clean(" ".join(text.splitlines()))


def _secret_values() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_CHARACTERS
    ]
