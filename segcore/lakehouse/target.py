"""What the URL of tables means.

``iceberg://CATALOG/NAMESPACE.NAME`` names the tables ``NAMESPACE.NAME_instances`` and
``NAMESPACE.NAME_images`` of a catalog that pyiceberg's own configuration defines. ``delta://FOLDER``
and ``delta+s3://BUCKET/FOLDER`` name the Delta tables in the folders ``instances`` and ``images``.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal

from segcore.errors import SegcoreError, UsageError
from segcore.exit_codes import ExitCode
from segcore.output.layout import Table
from segcore.storage import normalize
from segcore.storage.uris import is_remote, join
from segcore.text import redact

FORMS = (
    "Write iceberg://CATALOG/NAMESPACE.NAME, with a catalog of pyiceberg's configuration, or "
    "delta:///FOLDER, or delta+s3://BUCKET/FOLDER."
)
_ICEBERG = re.compile(r"iceberg://([A-Za-z0-9_-]{1,64})/([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)+)")


class TableError(SegcoreError):
    """A table or its catalog cannot be used now; the next call goes on."""

    exit_code = ExitCode.INCOMPLETE


@dataclass(frozen=True)
class TableTarget:
    """Where the two tables are.

    Attributes:
        url: As it was given, without a slash at its end.
        catalog: Name of the catalog; "" for Delta.
        place: Identifier of the tables without ``_images``, or the folder that holds both.
    """

    url: str
    kind: Literal["iceberg", "delta"]
    place: str
    catalog: str = ""

    def name(self, table: Table) -> str:
        """Identifier or folder of one of the two."""
        return f"{self.place}_{table}" if self.kind == "iceberg" else join(self.place, table)


def parse_target(url: str) -> TableTarget:
    """The tables that a URL names.

    Raises:
        UsageError: It names none.
    """
    if match := _ICEBERG.fullmatch(url):
        return TableTarget(url, "iceberg", match[2], match[1])
    if url.startswith("delta:///"):
        folder = normalize(url.removeprefix("delta://"))
    elif url.startswith("delta+s3://"):
        folder = normalize(url.removeprefix("delta+"))
    else:
        raise UsageError(f"{redact(url)[:200]} names no table.", FORMS)
    scheme = "delta+" if is_remote(folder) else "delta://"
    return TableTarget(f"{scheme}{folder}", "delta", folder)


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
