"""The edition: everything that determines the result for given pixels, as a name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from segcore.images import DECODER, DecodeOptions
from segcore.models.base import ModelInfo
from segcore.output.schema import SCHEMA_VERSION
from segcore.text import json_text

# Limits decide whether an image is tried, not what comes out of it: raising one must not throw
# away a finished archive. They are recorded in edition.json, but are not part of the name.
LIMITS = frozenset({"max_pixels", "max_bytes", "max_memory_bytes", "max_pages"})

# Recorded, too, but no part of the name: their pixels are compared in the tests, and DECODER rises
# when they change.
DECODER_LIBRARIES = ("simplejpeg", "pillow", "opencv-python-headless", "numpy")


@dataclass(frozen=True)
class Edition:
    """Name of the output prefix and the document behind it.

    Attributes:
        name: ``<model>-<first 12 hex digits of the fingerprint>``; safe as one path component.
        fingerprint: sha256 (hex) over `document`, keys sorted.
        document: What was hashed.
        limits: Recorded beside it, not hashed.
        licence: Of the weights; repeated in every part.
    """

    name: str
    fingerprint: str
    document: dict[str, Any]
    limits: dict[str, Any]
    licence: str

    def to_json(self) -> bytes:
        """The bytes of ``edition.json``; the same for the same edition, limits and libraries."""
        body = {
            "edition": self.name,
            "fingerprint": self.fingerprint,
            "licence": self.licence,
            **self.document,
            "limits": self.limits,
            "decoder_libraries": _library_versions(),
        }
        return json_text(body, sort_keys=True).encode()


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in DECODER_LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):  # OpenCV has several packages
            versions[name] = version(name)
    return versions


def fingerprint_of(document: dict[str, Any]) -> str:
    """The fingerprint of an edition's document."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def document_of(edition_json: dict[str, Any]) -> dict[str, Any]:
    """The hashed part of what ``edition.json`` says: inverse of `Edition.to_json`."""
    not_hashed = ("edition", "fingerprint", "licence", "limits", "decoder_libraries")
    return {key: value for key, value in edition_json.items() if key not in not_hashed}


def make_edition(info: ModelInfo, decode: DecodeOptions) -> Edition:
    """The edition of the results of `info`'s model on pixels decoded with `decode`."""
    model = asdict(info)
    licence = str(model.pop("licence"))  # a corrected licence text changes no pixel
    limits = decode.model_dump(mode="json", include=set(LIMITS))
    # Options at their defaults are left out, so that a new option does not rename old editions.
    chosen_options = decode.model_dump(mode="json", exclude=set(LIMITS), exclude_defaults=True)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "decode": {"decoder": DECODER, **chosen_options},
    }
    document = json.loads(json.dumps(document, sort_keys=True))  # tuples become lists, as stored
    fingerprint = fingerprint_of(document)
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", info.name).strip("-")[:60] or "model"
    return Edition(f"{stem}-{fingerprint[:12]}", fingerprint, document, limits, licence)
