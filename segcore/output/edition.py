"""The edition: everything that determines the result for given pixels, as a name."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from segcore.images import DECODER, DecodeOptions
from segcore.models.base import ModelInfo
from segcore.output.parts import SCHEMA_VERSION

# Limits decide whether an image is tried, not what comes out of it: raising one must not throw
# away a finished archive. They are written down in edition.json, but name nothing.
LIMITS = frozenset({"max_pixels", "max_bytes"})


@dataclass(frozen=True)
class Edition:
    """Name of the output prefix and the document behind it.

    Attributes:
        name: ``<model>-<first 12 hex of the fingerprint>``; safe as one path component.
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
        """The bytes of ``edition.json``; the same for the same edition and limits."""
        body = {
            "edition": self.name,
            "fingerprint": self.fingerprint,
            "licence": self.licence,
            **self.document,
            "limits": self.limits,
        }
        return (json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def make_edition(info: ModelInfo, decode: DecodeOptions) -> Edition:
    """The edition of results that `info`'s model gives on pixels decoded with `decode`."""
    model = asdict(info)
    licence = str(model.pop("licence"))  # a corrected licence text changes no pixel
    limits = decode.model_dump(mode="json", include=set(LIMITS))
    # what stands at its default names nothing: a new option does not rename what is there
    chosen = decode.model_dump(mode="json", exclude=set(LIMITS), exclude_defaults=True)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "decode": {"decoder": DECODER, **chosen},
    }
    document = json.loads(json.dumps(document, sort_keys=True))  # tuples become lists, as stored
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", info.name).strip("-")[:60] or "model"
    return Edition(f"{stem}-{fingerprint[:12]}", fingerprint, document, limits, licence)
