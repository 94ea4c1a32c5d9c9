"""``latest.json``: the pointer to the edition and run that were published last."""

from __future__ import annotations

import json
from typing import Any

from segcore.errors import ObjectNotFound, UsageError
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


def published_edition(storage: Storage, output: OutputLayout) -> str:
    """The edition that ``latest.json`` names, if it exists; "" otherwise.

    Raises:
        StorageError: That cannot be found out.
    """
    try:
        name = read_latest(storage, output).get("edition")
        layout = output.edition(name) if isinstance(name, str) else None
    except (ObjectNotFound, UsageError):
        return ""
    return layout.name if layout and storage.exists(layout.edition_json) else ""


def should_publish(storage: Storage, layout: EditionLayout, publish: bool | None) -> bool:
    """Whether a complete run publishes its edition.

    By default it does if nothing is published, or if this edition is: a trial of other thresholds
    takes nothing away from readers.

    Args:
        publish: ``run.publish``.

    Raises:
        StorageError: It cannot be found out what is published.
    """
    if publish is not None:
        return publish
    return published_edition(storage, layout.output) in ("", layout.name)
