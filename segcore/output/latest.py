"""``latest.json``: the pointer to the edition and run that were published last."""

from __future__ import annotations

import json
from typing import Any

from segcore.output.documents import read_document
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.schema import SCHEMA_VERSION
from segcore.storage import Storage


def publish(storage: Storage, layout: EditionLayout, run: str, status: str) -> None:
    """Let ``latest.json`` point to a run of an edition."""
    pointer = {
        "schema_version": SCHEMA_VERSION,
        "edition": layout.name,
        "run": run,
        "status": status,
    }
    data = (json.dumps(pointer, indent=2) + "\n").encode()
    storage.write(layout.output.latest_json, data)


def read_latest(storage: Storage, output: OutputLayout) -> dict[str, Any]:
    """The pointer, with ``edition`` and ``run`` unless somebody has edited it.

    Raises:
        ObjectNotFound: Nothing is published.
        UsageError: It is not a JSON object.
    """
    return read_document(storage, output.latest_json)
