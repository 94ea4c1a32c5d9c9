"""Units: bounded pieces of an archive that are read, segmented and committed together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class UnitLimits(BaseModel):
    """How large a unit may become (configuration section `plan`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(default=256, ge=1, description="Maximum number of images in a unit.")
    bytes: int = Field(
        default=128 << 20, ge=1, description="Maximum number of compressed bytes in a unit."
    )
    shard_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="A tar shard up to this size is one unit where cutting all larger than "
        "plan.bytes would mean to read more than 16 GiB first.",
    )


@dataclass(frozen=True)
class Member:
    """One image of a unit of loose objects; in a unit of a shard, one renamed duplicate.

    Attributes:
        image_id: Identity of the image: the object's URI, or `<shard uri>#<key>`.
        uri: Where its bytes are. For a renamed duplicate: its name inside the shard.
        etag: Version at planning time; "" if unknown. An etag that starts with "!" marks an entry
            that must not be read (`segcore.sources.base.REFUSALS`).
        size: Bytes; -1 if unknown at planning time. For a renamed duplicate: its position in the
            shard (tar: offset of its header; Parquet: row number).
    """

    image_id: str
    uri: str
    etag: str
    size: int


@dataclass(frozen=True)
class Unit:
    """A piece of an archive whose id depends on its content alone.

    Attributes:
        unit: The id: 20 hex digits, a function of everything that decides which images it holds.
        kind: "objects", "tar" or "parquet".
        shard: URI of the shard; "" for loose objects.
        etag: Version of the shard; "" for loose objects.
        start: objects: 0. tar: first byte at which the header of a member may begin. parquet: first
            row group.
        stop: objects: number of members. tar, parquet: the end of the half-open range from `start`.
        n_images: Number of rows it yields, failed ones included; None if only reading can tell.
        n_bytes: Compressed bytes, as far as they are known.
        members: objects: all images. tar, parquet: only the members whose name occurs more than
            once in a shard that was cut into several units.
        reader: parquet: the columns to read, as JSON; tar: the file extensions of images.
    """

    unit: str
    kind: str
    shard: str
    etag: str
    start: int
    stop: int
    n_images: int | None
    n_bytes: int
    members: tuple[Member, ...] = ()
    reader: str = ""


def make_unit(
    kind: str,
    *,
    shard: str = "",
    etag: str = "",
    start: int = 0,
    stop: int,
    n_images: int | None,
    n_bytes: int,
    members: Iterable[Member] = (),
    reader: str = "",
) -> Unit:
    """A unit with its id: sha256 over kind, shard, range, reader and the members' ids and etags.

    The sizes of loose objects are not hashed: they follow from the etag if one is known.
    """
    members = tuple(members)
    versions = [(member.image_id, member.etag) for member in members]
    unit_id = _make_id(kind, shard, etag, start, stop, reader, versions)
    return Unit(unit_id, kind, shard, etag, start, stop, n_images, n_bytes, members, reader)


def _make_id(
    kind: str,
    shard: str,
    etag: str,
    start: int,
    stop: int,
    reader: str,
    versions: Sequence[tuple[str, str]],
) -> str:
    text = json.dumps([kind, shard, etag, start, stop, reader, versions], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def make_objects_unit(members: Sequence[Member]) -> Unit:
    """The unit of these loose images."""
    n_bytes = sum(max(member.size, 0) for member in members)
    n_images = len(members)
    return make_unit("objects", stop=n_images, n_images=n_images, n_bytes=n_bytes, members=members)


def describe_objects_unit(versions: Sequence[tuple[str, str]], n_bytes: int) -> Unit:
    """The unit of loose images with these (id, etag), but without its members."""
    n_images = len(versions)
    unit_id = _make_id("objects", "", "", 0, n_images, "", versions)
    return Unit(unit_id, "objects", "", "", 0, n_images, n_images, n_bytes)
