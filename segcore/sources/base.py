"""What all kinds of archives share: options, entries, samples, image ids."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from segcore.errors import (
    AccessDenied,
    ErrorCode,
    ImageError,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
)
from segcore.sources.unit_tables import units_to_table
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import ObjectInfo, ObjectTooLarge, Storage
from segcore.storage.listing import Listing
from segcore.storage.local_disk import BAD_NAME, OUTSIDE_LINK, SPECIAL_FILE, SpecialFile
from segcore.storage.uris import REMOTE_SCHEMES

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
# Of images that can be decoded, but are read only where `source.extensions` has them.
_OTHER_IMAGE_EXTENSIONS = ("avif", "gif", "heic", "heif", "j2k", "jfif", "jp2", "jpe")
Kind = Literal["images", "tar", "parquet", "manifest", "coco"]

# Etags that mark an entry that is part of the archive but must not be read. Such an entry becomes a
# failed row with the code `unsafe_uri` and one of these reasons.
BAD_PARENT, BAD_SCHEME, BAD_URI, BAD_PLACE = "!parent", "!scheme", "!uri", "!place"
BAD_BACKSLASH = "!backslash"  # becomes `not_found`
_PAGE_SUFFIX = re.compile(r"#page=[0-9]+\Z")
REFUSALS = {
    OUTSIDE_LINK: "a link that leads outside the input folder "
    "(allow with source.allow_outside=true)",
    BAD_NAME: "its file name is not valid UTF-8; rename the file",
    SPECIAL_FILE: "a pipe, a socket or a device, not a regular file",
    BAD_PARENT: "leads outside the folder it is relative to (allow with source.allow_outside=true)",
    BAD_PLACE: "outside the folder or bucket of the list that names it (allow its place with "
    "source.allow, or all places with source.allow_outside=true)",
    BAD_BACKSLASH: "no such file, neither with its backslashes as they are nor as '/'; write paths "
    "with '/', relative to the folder of the list",
    BAD_SCHEME: "its scheme is not one of source.allowed_schemes",
    BAD_URI: "not a URI that can be read (signed query, credentials, or empty and '..' parts)",
}


class SourceOptions(BaseModel):
    """How an archive is listed and read (configuration section `source`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto"] | Kind = Field(
        default="auto", description="Kind of the archive; auto: found out."
    )
    image_column: str | None = Field(
        default=None, description="Parquet: column with the image bytes; detected by default."
    )
    key_column: str | None = Field(
        default=None, description="Parquet: column that names each image; detected by default."
    )
    uri_column: str | None = Field(
        default=None, description="Manifest: column or key with the URI; detected by default."
    )
    coco_images: str | None = Field(
        default=None, description="COCO: folder of the images; detected by default."
    )
    inventory: str | None = Field(
        default=None,
        description="S3: the manifest.json of an S3 Inventory of the input's bucket, read in place "
        "of listing it (Parquet or CSV, with Size and ETag).",
    )
    max_image_bytes: int = Field(
        default=256 << 20, ge=1, description="Larger images are not read and become failed rows."
    )
    allowed_schemes: tuple[Literal["file", "s3", "gs", "az"], ...] | None = Field(
        default=None,
        description="Schemes that the entries of a manifest may have; by default s3, gs, az, and "
        "file if the manifest itself is a local file. Where they may lie is a matter of `allow`.",
    )
    allow: tuple[str, ...] = Field(
        default=(),
        description="Folders, buckets or prefixes outside its own that the entries of a manifest "
        "or COCO file may name, such as /data/images or s3://bucket; 's3://' is every bucket. By "
        "default an entry must lie in the folder or bucket of the file that names it.",
    )
    allow_outside: bool = Field(
        default=False,
        description="Follow links that lead outside the input folder, and read whatever a manifest "
        "or COCO file names.",
    )
    extensions: tuple[str, ...] = Field(
        default=IMAGE_EXTENSIONS, min_length=1, description="File extensions of images."
    )
    suffixes: tuple[str, ...] = Field(
        default=(),
        description="Whole suffixes (from the first dot of the file name on) of the images to "
        "segment, such as jpg or image.png, where masks or depth maps lie beside them; by default "
        "every file with one of `extensions`. For tar shards and folders.",
    )
    allow_empty: bool = Field(
        default=False,
        description="An input without a single image is a result, not an error (exit code 1).",
    )
    allow_shrunk_listing: bool = Field(
        default=False,
        description="Go on where more than a tenth of the images or shards of the last run's "
        "listing are gone; otherwise that is an error (exit code 1), because a folder that is not "
        "mounted looks the same. Results of images that are gone are kept in any case.",
    )
    read_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Concurrent reads of loose remote images per worker; by default 64 if the "
        "worker has a GPU, otherwise 16.",
    )

    @field_validator("extensions")
    @classmethod
    def _normalize_extensions(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        normalized = tuple(extension.lower().lstrip(".") for extension in extensions)
        if any(not extension.isalnum() for extension in normalized):
            raise ValueError("extensions must consist of letters and digits, such as 'jpg'")
        return normalized

    @field_validator("suffixes")
    @classmethod
    def _normalize_suffixes(cls, suffixes: tuple[str, ...]) -> tuple[str, ...]:
        normalized = tuple(suffix.lower().lstrip(".") for suffix in suffixes)
        if any(re.search(r"^$|[/,;\s]", suffix) for suffix in normalized):
            raise ValueError("suffixes must be such as 'jpg' or 'image.png'")
        return normalized

    def is_image_name(self, name: str) -> bool:
        """Whether the name is not hidden and has the extension or suffix of an image."""
        base = name.rpartition("/")[2]
        if base.startswith("."):
            return False
        if self.suffixes:
            return base.partition(".")[2].lower() in self.suffixes
        return base.rpartition(".")[2].lower() in self.extensions

    def schemes_for(self, manifest_is_remote: bool) -> tuple[str, ...]:
        """The schemes that entries of a manifest may have."""
        if self.allowed_schemes is not None:
            return self.allowed_schemes
        return REMOTE_SCHEMES if manifest_is_remote else ("file", *REMOTE_SCHEMES)


@dataclass(frozen=True)
class Sample:
    """One image as read from an archive: its bytes, or the reason why there are none.

    Attributes:
        image_id: The object's URI, or `<shard uri>#<key>`.
        uri: Object or shard that holds the bytes.
        etag: Version of that object; "" if unknown.
        data: Encoded image; None if and only if `error` is set.
        error: Why it cannot be read; becomes a failed row.
        warning: "" or "duplicate_name" (the key got a suffix `~2`, `~3`, ...).
        page: From 1, if this is one page of a file of several; None otherwise.
        page_offset: Where `data`, which is the whole file, has that page; None for all of it.
        pages_after: Pages of the same file that are samples after this one.
    """

    image_id: str
    uri: str
    etag: str
    data: bytes | None = field(repr=False)
    error: ImageError | None = None
    warning: str = ""
    page: int | None = None
    page_offset: int | None = None
    pages_after: int = 0


def other_images_hint(left_out: Mapping[str, int]) -> list[str]:
    """How to read the images that are left out by default: a sentence, or none.

    Args:
        left_out: Files that were left out, by extension.
    """
    found = [extension for extension in _OTHER_IMAGE_EXTENSIONS if left_out.get(extension)]
    if not found:
        return []
    chosen = ",".join((*IMAGE_EXTENSIONS, *found))
    is_heic = any(extension.startswith("hei") for extension in found)
    needs = " and pip install 'segcore[heic]'" if is_heic else ""
    return [f"To read .{', .'.join(found)} too: --set 'source.extensions=[{chosen}]'{needs}."]


def page_image_id(image_id: str, page: int | None) -> str:
    """The id of a page of an image file; the first page has the id of the file.

    Unless that reads like the id of a page itself: then `#page=1` is added, so that no two images
    have one id.

    Args:
        image_id: Of the file.
        page: From 1; None where pages are not told apart.
    """
    if page is None or (page == 1 and lone_page(image_id) is None):
        return image_id
    return f"{image_id}#page={page}"


def file_image_id(image_id: str, page: int | None) -> str:
    """Inverse of `page_image_id`."""
    return image_id if page is None else image_id.removesuffix(f"#page={page}")


def lone_page(image_id: str) -> int | None:
    """The `page` of a file of one image, where pages are told apart.

    Returns:
        None, or 1 where the id of the file reads like that of a page.
    """
    return 1 if _PAGE_SUFFIX.search(image_id) else None


Entries: TypeAlias = pa.Table | Listing  # shards, or loose images, of which there may be millions


@dataclass
class Source(ABC):
    """An archive that was found and can be cut into units.

    Attributes:
        input: Canonical URI of the input.
        kind: Kind of the archive.
        notes: Sentences for people about entries that were skipped; complete after `entries`.
    """

    input: str
    kind: Kind
    notes: list[str] = field(default_factory=list)

    @property
    def unit_kind(self) -> str:
        """Kind of its units: "objects", "tar" or "parquet"."""
        return self.kind if self.kind in ("tar", "parquet") else "objects"

    @property
    def fingerprint(self) -> str:
        """The options that decide how shards are cut and read; "" if there are none."""
        return ""

    @abstractmethod
    def entries(self) -> Entries:
        """Loose images or shards: columns uri, size, etag; sorted by uri, without duplicates."""

    @abstractmethod
    def cut(self, entries: Entries, limits: UnitLimits) -> Iterator[Unit]:
        """Units that hold each of `entries` (rows of `self.entries()`) exactly once."""

    def cut_table(self, entries: Entries, limits: UnitLimits) -> pa.Table:
        """The units that `cut` gives, as a table of `UNIT_SCHEMA`."""
        return units_to_table(self.cut(entries, limits))

    def units(self, limits: UnitLimits) -> Iterator[Unit]:
        """The units of the whole archive."""
        return self.cut(self.entries(), limits)


def stat_unchanged_shard(unit: Unit, storage: Storage) -> ObjectInfo:
    """Size and version of the shard of a unit.

    Raises:
        StorageError: It is gone or must not be read.
        ObjectChanged: It has changed since planning.
    """
    info = storage.stat(unit.shard)
    if info.etag != unit.etag:
        raise ObjectChanged(f"{unit.shard} changed while the run was in progress.")
    return info


def as_image_error(error: StorageError) -> ImageError:
    """The error of the failed row that a storage error becomes."""
    if isinstance(error, ObjectTooLarge):
        code = ErrorCode.TOO_MANY_BYTES
    elif isinstance(error, ObjectNotFound):
        code = ErrorCode.NOT_FOUND
    elif isinstance(error, SpecialFile):
        code = ErrorCode.UNSAFE_URI
    elif isinstance(error, AccessDenied):
        code = ErrorCode.ACCESS_DENIED
    else:
        code = ErrorCode.READ_ERROR
    return ImageError(code, error.message)


class UniqueImageIds:
    """Assigns image ids to the keys of a shard; a repeated key gets `~2`, `~3`, ... in order."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._uses: Counter[str] = Counter()

    def assign(self, key: str) -> tuple[str, bool]:
        """(image id, whether it is a renamed duplicate) of the next member with this key."""
        self._uses[key] += 1
        if (count := self._uses[key]) == 1:
            return f"{self._shard}#{key}", False
        # skip a suffixed name that another member already has as its own key
        while self._uses[candidate := f"{key}~{count}"]:
            count += 1
        self._uses[candidate] += 1
        return f"{self._shard}#{candidate}", True
