"""In which fields of ``edition.json`` a new edition differs from an older one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from segcore.errors import ObjectNotFound, UsageError
from segcore.output.documents import read_document
from segcore.output.edition import Edition, document_of
from segcore.output.editions import newest_edition
from segcore.output.layout import OutputLayout
from segcore.storage import Storage
from segcore.text import plural, printable

_MAX_FIELDS = 20
_MAX_VALUE_CHARACTERS = 40
_ABSENT = "unset"


@dataclass(frozen=True)
class EditionChanges:
    """What makes an edition another one than an older edition of the same output.

    Attributes:
        older: Name of that edition.
        fields: For each field that differs: ``model.parameters.conf: 0.25 -> 0.5``.
    """

    older: str
    fields: tuple[str, ...]


def compare_with_older(
    storage: Storage, output: OutputLayout, edition: Edition, published: str
) -> EditionChanges | None:
    """How an edition differs from the published one, or while it is new, from the newest other one.

    None if it is published itself, or if there is no other edition whose document can be read.

    Args:
        published: Name of the published edition; "" for none.

    Raises:
        StorageError: The output cannot be read.
    """
    older = published
    if not older and not storage.exists(output.edition(edition.name).edition_json):
        older = newest_edition(storage, output, without=edition.name)
    if older in ("", edition.name):
        return None
    try:
        document = document_of(read_document(storage, output.edition(older).edition_json))
    except (ObjectNotFound, UsageError):
        return None
    return EditionChanges(older, tuple(describe_differences(document, edition.document)))


def describe_differences(older: dict[str, Any], newer: dict[str, Any]) -> list[str]:
    """Each field that differs, with both values; bounded, as edition.json may hold anything."""
    before, after = dict(_fields(older, "")), dict(_fields(newer, ""))
    differences = [
        f"{printable(key)}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if len(differences) > _MAX_FIELDS:
        n_more = len(differences) - _MAX_FIELDS
        differences[_MAX_FIELDS:] = [f"and {plural(n_more, 'more field')}"]
    return differences


def _fields(value: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, child in value.items():
        if isinstance(child, dict):
            yield from _fields(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _shown(value: Any) -> str:
    """A value in few characters; of lists, such as categories, how many there are."""
    if value is None:
        return _ABSENT
    if isinstance(value, list):
        return plural(len(value), "entry", "entries")
    text = printable(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[: _MAX_VALUE_CHARACTERS - 1] + "…"
