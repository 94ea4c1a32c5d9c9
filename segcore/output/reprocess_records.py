"""What calls of `segcore reprocess` leave in an output for the next ones, and for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from segcore.errors import ObjectNotFound, UsageError
from segcore.output.documents import read_document
from segcore.output.layout import OutputLayout
from segcore.storage import Storage
from segcore.storage.uris import basename
from segcore.text import json_text


def decision_key(facts: Mapping[str, Any]) -> str:
    """The name of the decision that follows from these facts, JSON values."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]


def write_decision(
    storage: Storage, output: OutputLayout, key: str, decision: Mapping[str, Any]
) -> None:
    """Remember a decision, so that a call that comes after a death does not decide anew."""
    storage.write(output.reprocess_decision(key), json_text(dict(decision)).encode())


def read_decision(storage: Storage, output: OutputLayout, key: str) -> dict[str, Any] | None:
    """The decision of this key; None if there is none that can be read."""
    return _read(storage, output.reprocess_decision(key))


def write_model_options(
    storage: Storage, output: OutputLayout, edition: str, options: Mapping[str, Any]
) -> None:
    """Remember with which options an edition was made; ``edition.json`` has no path of the model.

    The newest options win: the same model may lie somewhere else by now.
    """
    data = json_text(dict(options)).encode()
    uri = output.reprocess_model(edition)
    if _read(storage, uri) != dict(options):
        storage.write(uri, data)


def read_model_options(
    storage: Storage, output: OutputLayout, edition: str
) -> dict[str, Any] | None:
    """With which options an edition was made; None if that is not known."""
    return _read(storage, output.reprocess_model(edition))


def write_call(
    storage: Storage, output: OutputLayout, call: str, record: Mapping[str, Any]
) -> None:
    """Write what a call came to; never overwritten."""
    storage.write_if_absent(output.reprocess_call(call), json_text(dict(record)).encode())


def read_calls(storage: Storage, output: OutputLayout, count: int) -> list[dict[str, Any]]:
    """The newest calls of `segcore reprocess`, newest first, each with its id as ``call``.

    Records that cannot be read are left out.
    """
    uris = sorted(info.uri for info, _ in storage.list_folder(output.reprocess_calls))
    calls = []
    for uri in reversed([uri for uri in uris if uri.endswith(".json")][-count:]):
        if (record := _read(storage, uri)) is not None:
            calls.append({"call": basename(uri).removesuffix(".json"), **record})
    return calls


def _read(storage: Storage, uri: str) -> dict[str, Any] | None:
    try:
        return read_document(storage, uri)
    except (ObjectNotFound, UsageError):
        return None
