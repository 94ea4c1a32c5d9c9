"""Reading the output of runs back: which edition, and its committed tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, UsageError
from segcore.output.parts import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.storage import Storage, join, normalize
from segcore.storage.uris import basename, parent

_MAX_JSON = 16 << 20


@dataclass(frozen=True)
class Results:
    """One edition of an output. Only units whose `images` part exists are seen.

    Attributes:
        prefix: URI of the edition.
        edition: Contents of its ``edition.json``.
        units: Ids of the committed units, sorted.
    """

    storage: Storage
    prefix: str
    edition: dict[str, Any]
    units: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the edition."""
        return basename(self.prefix)

    def images(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The `images` table, one unit at a time.

        Raises:
            UsageError: A part is no table of this schema.
        """
        for unit in self.units:
            yield self._read("images", unit, columns or IMAGES_SCHEMA.names)

    def instances(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The `instances` table, one unit at a time, in the order of `images`."""
        for unit in self.units:
            yield self._read("instances", unit, columns or INSTANCES_SCHEMA.names)

    def _read(self, table: str, unit: str, columns: Sequence[str]) -> pa.Table:
        uri = join(self.prefix, table, f"{unit}.parquet")
        with self.storage.open(uri) as file:
            try:
                return pq.read_table(file, columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                raise UsageError(f"{uri} is not a part of a segcore output: {error}") from None


def open_results(storage: Storage, output: str, edition: str | None = None) -> Results:
    """Find the edition to read.

    Args:
        output: What a run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one that ``latest.json`` points to, else the
            only one.

    Raises:
        UsageError: No output there, no such edition, or several and none chosen.
    """
    prefix = _find(storage, normalize(output), edition)
    document = _json(storage, join(prefix, "edition.json"))
    listed = (basename(info.uri) for info in storage.list(join(prefix, "images")))
    units = sorted(n.removesuffix(".parquet") for n in listed if n.endswith(".parquet"))
    return Results(storage, prefix, document, tuple(units))


def find_edition(
    storage: Storage, output: str, edition: str | None = None, *, newest: bool = False
) -> str:
    """URI of the edition to look at; arguments and errors are those of `open_results`.

    Args:
        newest: Of several, take the one whose run record was written last, published or not.
    """
    output = normalize(output)
    if newest and edition is None and not storage.exists(join(output, "edition.json")):
        dated = [
            (changed, parent(parent(info.uri)))
            for info, changed in storage.list_dated(output)
            if basename(parent(info.uri)) == "runs" and parent(parent(parent(info.uri))) == output
        ]
        if dated:
            return max(dated)[1]
    return _find(storage, output, edition)


def _find(storage: Storage, output: str, edition: str | None) -> str:
    if edition is not None:
        prefix = join(output, edition)
        if storage.exists(join(prefix, "edition.json")):
            return prefix
        raise UsageError(f"{output} has no edition {edition}.", _known(_editions(storage, output)))
    if storage.exists(join(output, "edition.json")):
        return output
    try:
        latest = _json(storage, join(output, "latest.json"))
    except ObjectNotFound:
        found = _editions(storage, output)
        if len(found) == 1:
            return join(output, found[0])
        if found:
            raise UsageError(
                f"{output} holds {len(found)} editions and no latest.json.",
                f"Choose one with --edition. {_known(found)}",
            ) from None
        raise UsageError(
            f"{output} is not the output of a run: it holds no edition.",
            "Give the folder or URI that was the OUTPUT of `segcore segment`.",
        ) from None
    if not isinstance(latest.get("edition"), str):
        raise UsageError(f"{join(output, 'latest.json')} names no edition.", "Use --edition.")
    return join(output, latest["edition"])


def _editions(storage: Storage, output: str) -> list[str]:
    """Names of the editions of an output, by listing."""
    return [
        basename(parent(info.uri))
        for info in storage.list(output)
        if info.uri == join(output, basename(parent(info.uri)), "edition.json")
    ]


def _known(editions: list[str]) -> str:
    return f"Editions there: {', '.join(editions)}." if editions else "There is none."


def _json(storage: Storage, uri: str) -> dict[str, Any]:
    try:
        document = json.loads(storage.read(uri, max_bytes=_MAX_JSON))
    except ValueError as error:
        raise UsageError(f"{uri} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{uri} is not a JSON object.")
    return document
