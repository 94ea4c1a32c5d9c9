"""What `segcore models` lists: every name that can be loaded, with licence, accuracy and file."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from segcore.errors import UsageError
from segcore.models.bundled_weights import BUNDLED, bundled_names
from segcore.models.registry import PUBLISHED, read_checkpoint


@dataclass(frozen=True)
class CatalogueEntry:
    """One known model.

    Attributes:
        name: What `--model` takes.
        licence: Of the weights.
        bytes: Size of the file on this machine; None if it has not been fetched yet.
        published_ap: Mask AP on COCO val2017 in percent, as its publisher states it.
        file: Path of the weights, also if they have not been fetched yet; None where there is no
            folder to fetch them into.
        source: ``bundled``, or the link from which the file is fetched.
    """

    name: str
    licence: str
    bytes: int | None
    published_ap: float | None
    file: str | None
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def catalogue() -> list[CatalogueEntry]:
    """All known models, bundled ones first. Reads the cache folder; fetches nothing."""
    entries = []
    for name in bundled_names():
        path = BUNDLED / f"{name}.safetensors"
        licence = read_checkpoint(path).meta.licence
        entries.append(
            CatalogueEntry(name, licence, path.stat().st_size, None, str(path), "bundled")
        )
    for name, published in PUBLISHED.items():
        file, size = None, None
        with suppress(UsageError):  # there is no home directory
            file = str(published.cached_path)
            with suppress(OSError):
                size = os.stat(file).st_size
        entries.append(
            CatalogueEntry(
                name, published.licence, size, published.published_ap, file, published.url
            )
        )
    return entries
