"""What every kind of archive has in common: options, entries, samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from segcore.errors import AccessDenied, ErrorCode, ImageError, ObjectNotFound, StorageError
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import ObjectTooLarge
from segcore.storage.listing import Listing
from segcore.storage.uris import REMOTE_SCHEMES

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
Kind = Literal["images", "tar", "parquet", "manifest", "coco"]

# Etags that mark an entry which is part of the archive but may not be read: each becomes a
# failed row with the code `unsafe_uri`.
BAD_PARENT, BAD_SCHEME, BAD_URI = "!parent", "!scheme", "!uri"
REFUSALS = {
    "!link": "a link that leads outside the input folder (allow with source.allow_outside=true)",
    "!name": "its file name is not valid UTF-8; rename the file",
    BAD_PARENT: "leads outside the folder it is relative to (allow with source.allow_outside=true)",
    BAD_SCHEME: "its scheme is not one of source.allowed_schemes",
    BAD_URI: "not a URI that can be read (signed query, credentials, or empty and '..' parts)",
}


class SourceOptions(BaseModel):
    """How an archive is listed and read (configuration section `source`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto"] | Kind = Field(default="auto", description="Kind of the archive.")
    image_column: str | None = Field(
        default=None, description="Parquet: column with the image bytes (found when not given)."
    )
    key_column: str | None = Field(
        default=None, description="Parquet: column that names each image (found when not given)."
    )
    uri_column: str | None = Field(
        default=None, description="Manifest: column or key with the URI (found when not given)."
    )
    coco_images: str | None = Field(
        default=None, description="COCO: folder of the images (found when not given)."
    )
    max_image_bytes: int = Field(
        default=256 << 20, ge=1, description="Larger images become failed rows, unread."
    )
    allowed_schemes: tuple[Literal["file", "s3", "gs", "az"], ...] | None = Field(
        default=None,
        description="Schemes a manifest may name; default s3, gs, az, and file when the manifest "
        "itself is a local file.",
    )
    allow_outside: bool = Field(
        default=False,
        description="Follow links, and '..' in manifests, that lead outside the input folder.",
    )
    extensions: tuple[str, ...] = Field(
        default=IMAGE_EXTENSIONS, min_length=1, description="File extensions of images."
    )
    read_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Concurrent reads of loose remote images, per worker; default 64 where the "
        "worker has a GPU, else 16.",
    )

    @field_validator("extensions")
    @classmethod
    def _plain_extensions(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(value.lower().lstrip(".") for value in values)
        if any(not value.isalnum() for value in plain):
            raise ValueError("extensions are letters and digits, such as 'jpg'")
        return plain

    def is_image_name(self, name: str) -> bool:
        """Whether the extension of this name is one of an image, and the name not hidden."""
        last = name.rpartition("/")[2]
        return not last.startswith(".") and last.rpartition(".")[2].lower() in self.extensions

    def schemes_for(self, manifest_is_remote: bool) -> tuple[str, ...]:
        """Schemes that entries of a manifest may have."""
        if self.allowed_schemes is not None:
            return self.allowed_schemes
        return REMOTE_SCHEMES if manifest_is_remote else ("file", *REMOTE_SCHEMES)


@dataclass(frozen=True)
class Sample:
    """One image as it comes out of an archive: bytes, or the reason why there are none.

    Attributes:
        image_id: The object's URI, or `<shard uri>#<key>`.
        uri: Object or shard that holds the bytes.
        etag: Version of that object, "" when not known.
        data: Encoded image; None exactly when `error` is set.
        error: Why it cannot be read; becomes a failed row.
        warning: "" or "duplicate_name" (the key got a suffix `~2`, `~3`, ...).
    """

    image_id: str
    uri: str
    etag: str
    data: bytes | None = field(repr=False)
    error: ImageError | None = None
    warning: str = ""


Entries: TypeAlias = pa.Table | Listing  # shards; loose images, of which there may be millions


@dataclass
class Source(ABC):
    """An archive that was found and is ready to be cut into units.

    Attributes:
        input: Canonical URI of the input.
        kind: Kind of archive.
        notes: Sentences for people about what was left out; complete after `entries`.
    """

    input: str
    kind: Kind
    notes: list[str] = field(default_factory=list)

    @property
    def unit_kind(self) -> str:
        """Kind of the units: "objects", "tar" or "parquet"."""
        return self.kind if self.kind in ("tar", "parquet") else "objects"

    @property
    def fingerprint(self) -> str:
        """Options that decide how a shard is cut and read; "" where entries say it all."""
        return ""

    @abstractmethod
    def entries(self) -> Entries:
        """Loose images, or shards: columns uri, size, etag; sorted by uri, without duplicates."""

    @abstractmethod
    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """Units that hold all of `entries` (rows of `self.entries()`) exactly once."""

    def units(self, limits: UnitLimits) -> Iterator[Unit]:
        """The whole archive, cut."""
        return self.cut(self.entries(), limits)


def as_image_error(error: StorageError) -> ImageError:
    """The failed-row form of a storage error."""
    if isinstance(error, ObjectTooLarge):
        code = ErrorCode.TOO_MANY_BYTES
    elif isinstance(error, ObjectNotFound):
        code = ErrorCode.NOT_FOUND
    elif isinstance(error, AccessDenied):
        code = ErrorCode.ACCESS_DENIED
    else:
        code = ErrorCode.READ_ERROR
    return ImageError(code, error.message)


class KeyNames:
    """Gives each key of a shard an image id; a repeated key gets `~2`, `~3`, ... in order."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._seen: Counter[str] = Counter()

    def name(self, key: str) -> tuple[str, bool]:
        """(image id, whether it is a renamed duplicate) of the next member with this key."""
        self._seen[key] += 1
        if (count := self._seen[key]) == 1:
            return f"{self._shard}#{key}", False
        # a later member may carry the very name that a suffix makes: step over it
        while self._seen[candidate := f"{key}~{count}"]:
            count += 1
        self._seen[candidate] += 1
        return f"{self._shard}#{candidate}", True
