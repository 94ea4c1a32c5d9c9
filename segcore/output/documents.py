"""The JSON documents of an output, as they are read back."""

from __future__ import annotations

from typing import Any

from segcore.errors import DamagedOutput
from segcore.storage import Storage
from segcore.text import parse_json

MAX_DOCUMENT_BYTES = 16 << 20


def read_document(storage: Storage, uri: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedOutput: It is not a JSON object.
        ObjectNotFound: It does not exist.
        StorageError: It cannot be read, or is too large for a document of segcore.
    """
    try:
        document = parse_json(storage.read(uri, MAX_DOCUMENT_BYTES))
    except ValueError as error:
        raise DamagedOutput(f"{uri} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise DamagedOutput(f"{uri} is not a JSON object.")
    return document
