"""Shards to read again, because a mended reader finds more images in them than their parts hold.

`segcore verify --input` leaves a small object for each such unit in ``reread/``; the next run does
these shards again and deletes the objects. So a run looks for nothing in shards that are read well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from segcore.output.documents import read_document
from segcore.output.layout import EditionLayout
from segcore.storage import Storage
from segcore.storage.uris import basename


def mark_for_reread(storage: Storage, layout: EditionLayout, unit: str, shard: str) -> None:
    """Have the next run read the shard of a committed unit again."""
    document = {"unit": unit, "shard": shard}
    storage.write(layout.reread_mark(unit), (json.dumps(document) + "\n").encode())


def read_reread_marks(storage: Storage, layout: EditionLayout) -> dict[str, str]:
    """The units that are marked, and their shards.

    Raises:
        UsageError: A mark is not one of segcore's; names it.
    """
    names = [basename(info.uri) for info in storage.list(layout.reread_folder)]
    units = sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
    documents = (read_document(storage, layout.reread_mark(unit)) for unit in units)
    return {
        unit: str(document.get("shard", ""))
        for unit, document in zip(units, documents, strict=True)
    }


def delete_reread_marks(storage: Storage, layout: EditionLayout, units: Iterable[str]) -> None:
    """Forget these units: they have been done again, or are of no plan any more."""
    storage.delete_all(layout.reread_mark(unit) for unit in units)
