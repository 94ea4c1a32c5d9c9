"""``latest.json``: the pointer to the edition and run that were published last."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

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
        DamagedOutput: It is not a JSON object.
    """
    return read_document(storage, output.latest_json)


class Published(NamedTuple):
    """What is published; both are "" where nothing is, or where it does not exist."""

    edition: str = ""
    run: str = ""


def read_published(storage: Storage, output: OutputLayout) -> Published:
    """The edition that ``latest.json`` names, if it exists, and its run.

    Raises:
        StorageError: That cannot be found out.
    """
    try:
        latest = read_latest(storage, output)
        name = latest.get("edition")
        layout = output.edition(name) if isinstance(name, str) else None
    except (ObjectNotFound, UsageError):
        return Published()
    if layout is None or not storage.exists(layout.edition_json):
        return Published()
    return Published(layout.name, str(latest.get("run", "")))


def should_publish(published: Published, edition: str, publish: bool | None) -> bool:
    """Whether a complete run publishes its edition.

    By default it does if nothing is published, or if this edition is: a trial of other thresholds
    takes nothing away from readers.

    Args:
        published: What is published now.
        edition: Of the run.
        publish: ``run.publish``.
    """
    if publish is not None:
        return publish
    return published.edition in ("", edition)
