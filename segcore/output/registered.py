"""Files of an edition that tables outside of segcore refer to: they are never changed or deleted.

``registered/<name>.json`` names them for one table. It is written before the table is, and a file
leaves it only when no snapshot of the table has it any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress

from segcore.errors import DamagedOutput, SegcoreError, UsageError
from segcore.output.documents import read_document
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.storage import Storage


def pinned_files(storage: Storage, layout: EditionLayout) -> frozenset[str]:
    """URIs of the files that a table outside of segcore refers to: they are never deleted.

    Each document of ``registered/`` names them as ``files``, from the folder of the edition.

    Raises:
        DamagedOutput: A document is not a list of files; then nothing may be deleted.
    """
    pinned: set[str] = set()
    for info, _ in storage.list_folder(layout.registered_folder):
        if not info.uri.endswith(".json"):
            continue
        files = read_document(storage, info.uri).get("files")
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise DamagedOutput(f"{info.uri} does not list the files that a table refers to.")
        pinned.update(f"{layout.prefix}/{name}" for name in files)
    return frozenset(pinned)


def pin_files(storage: Storage, layout: EditionLayout, table: str, files: Collection[str]) -> None:
    """Say which files of an edition a table refers to, in place of what was said before.

    Args:
        table: URL of the table, which names the document.
        files: URIs, all of this edition.
    """
    prefix = f"{layout.prefix}/"
    names = sorted(uri.removeprefix(prefix) for uri in files)
    uri = layout.registered(hashlib.sha256(table.encode()).hexdigest()[:16])
    if not names:
        storage.delete(uri)
        return
    data = (json.dumps({"table": table, "files": names}, indent=1) + "\n").encode()
    if not storage.exists(uri) or storage.read(uri) != data:
        storage.write(uri, data)


def registering_tables(storage: Storage, output: OutputLayout) -> frozenset[str]:
    """URLs of the tables that refer to files of an output; damaged documents are passed over."""
    tables = set()
    for folder in storage.folders(output.uri):
        for info, _ in storage.list_folder(EditionLayout(folder).registered_folder):
            if info.uri.endswith(".json"):
                with suppress(SegcoreError):
                    tables.add(str(read_document(storage, info.uri).get("table", "")))
    return frozenset(tables - {""})


def refuse_to_overwrite(storage: Storage, layout: EditionLayout) -> None:
    """Refuse to make all parts of an edition again while a table refers to one of them.

    Raises:
        UsageError: One does.
    """
    if number := len(pinned_files(storage, layout)):
        raise UsageError(
            f"A table refers to {number:,} files of {layout.prefix}: --overwrite would change "
            "them underneath.",
            "Use --retry-failed, another output, or have the table drop these files first: see "
            "docs/tables.md.",
        )
