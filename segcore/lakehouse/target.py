"""What the URL of tables means.

``iceberg://CATALOG/NAMESPACE.NAME`` names the tables ``NAMESPACE.NAME_instances`` and
``NAMESPACE.NAME_images`` of a catalog that pyiceberg's own configuration defines. ``delta`` names
the folders ``delta/instances`` and ``delta/images`` of the output.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from segcore.errors import SegcoreError, UsageError
from segcore.exit_codes import ExitCode
from segcore.output.layout import Table
from segcore.text import printable, redact

DELTA = "delta"
FORM = (
    "Write iceberg://CATALOG/NAMESPACE.NAME, with a catalog of pyiceberg's configuration, or delta."
)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # deltalake paints its errors
_ICEBERG = re.compile(r"iceberg://([A-Za-z0-9_-]{1,64})/([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)+)")


class TableError(SegcoreError):
    """A table or its catalog cannot be used now; the next call goes on."""

    exit_code = ExitCode.INCOMPLETE


@contextmanager
def translate_errors(describe: Callable[[str, str], SegcoreError]) -> Iterator[None]:
    """What goes wrong in a library of tables or its storage, as one sentence.

    Args:
        describe: Gives the error, of the name of the library's own and of what that says.
    """
    try:
        yield
    except SegcoreError:
        raise
    except Exception as error:
        kind = type(error).__name__
        text = " ".join(_COLOUR.sub("", str(error)).split())
        raise describe(kind, printable(redact(text))[:300] or kind) from None


@dataclass(frozen=True)
class TableTarget:
    """Where the two tables are.

    Attributes:
        url: As it was given.
        catalog: Name of the Iceberg catalog.
        place: Identifier of the Iceberg tables without ``_images``.
    """

    url: str
    catalog: str = ""
    place: str = ""

    @property
    def is_delta(self) -> bool:
        """Whether they are the Delta tables of the output."""
        return self.url == DELTA

    def name(self, table: Table) -> str:
        """Identifier of one of the two Iceberg tables."""
        return f"{self.place}_{table}"


def parse_target(url: str) -> TableTarget:
    """The tables that a URL names.

    Raises:
        UsageError: It names none.
    """
    if url == DELTA:
        return TableTarget(url)
    match = _ICEBERG.fullmatch(url)
    if match is None:
        raise UsageError(f"{redact(url)[:200]!r} names no table.", FORM)
    return TableTarget(url, match[1], match[2])


def import_library(name: str) -> Any:
    """A module of the extra ``lakehouse``.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"Publishing to tables needs {name.partition('.')[0]}: {error}.",
            "pip install 'segcore[lakehouse]'",
        ) from None
