"""What was exported to a DEST before: the ids that were given, and how far an export has come.

DEST/segcore-export.json        of which edition, in which format, with which options; written first
DEST/segcore-state/<n>.begun    the files of chunk n may be there, and are not finished
DEST/segcore-state/<n>.parquet  the images of chunk n and their ids; written after its files
DEST/segcore-summary.json       counts; written last

Ids are given in the order of chunks, and a chunk that is recorded is never changed: so an id means
one thing for ever, and an export that was stopped goes on with the ids that it would have had.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, SegcoreError, UsageError
from segcore.storage import Storage
from segcore.storage.uris import basename, join
from segcore.text import json_text, parse_json, redact

EXPORT_VERSION = 1
_MAX_MANIFEST_BYTES = 16 << 20
_FOLDER = "segcore-state"
_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),  # id of the image, from 1
        pa.field("name", pa.string(), nullable=False),  # file name in the export
        pa.field("path", pa.string(), nullable=False),  # where it is in the archive
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),  # of the masks that were exported
        pa.field("first_annotation", pa.int64(), nullable=False),
        pa.field("n_annotations", pa.int32(), nullable=False),
        pa.field("file_digest", pa.string(), nullable=False),  # of its own file; "" if none
    ]
)


class ExportedImage(NamedTuple):
    """One row of the record: an image as it was exported."""

    image_id: str
    number: int
    name: str
    path: str
    width: int
    height: int
    etag: str
    digest: str
    first_annotation: int
    n_annotations: int
    file_digest: str


@dataclass(frozen=True)
class DestLayout:
    """The files of an export that segcore keeps for itself; formats name the others."""

    uri: str

    @property
    def manifest(self) -> str:
        """What the export is of."""
        return join(self.uri, "segcore-export.json")

    @property
    def summary(self) -> str:
        """Counts of the last export."""
        return join(self.uri, "segcore-summary.json")

    @property
    def state_folder(self) -> str:
        """Holds the record of each chunk."""
        return join(self.uri, _FOLDER)

    def chunk(self, number: int) -> str:
        """The record of a chunk, from 1."""
        return join(self.uri, _FOLDER, f"{chunk_name(number)}.parquet")

    def begun(self, number: int) -> str:
        """Says that the files of a chunk are being written."""
        return join(self.uri, _FOLDER, f"{chunk_name(number)}.begun")

    def file(self, name: str) -> str:
        """A file of the export."""
        return join(self.uri, name)

    def picture(self, name: str) -> str:
        """An image that was written for the export."""
        return join(self.uri, *("images", name))


def chunk_name(number: int) -> str:
    """The name of a chunk: ``00001``."""
    return f"{number:05d}"


class ExportState:
    """All images that were exported to a DEST, by id. Some 400 bytes of memory an image.

    Attributes:
        n_chunks: Recorded chunks; the next one has the next number.
        next_number, next_annotation: The next ids that are free.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self.n_chunks = len(tables)
        table = pa.concat_tables([_SCHEMA.empty_table(), *tables]).combine_chunks()
        self._table = table
        self._rows = {image_id: row for row, image_id in enumerate(_texts(table["image_id"]))}
        ends = table["first_annotation"].to_numpy() + table["n_annotations"].to_numpy()
        self.next_number = 1 + int(table["number"].to_numpy().max(initial=0))
        self.next_annotation = max(1, int(ends.max(initial=1)))

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, image_id: str) -> ExportedImage | None:
        """An image as it was exported last."""
        row = self._rows.get(image_id)
        return None if row is None else self._row(row)

    def images(self) -> Iterator[ExportedImage]:
        """All images as they were exported last, in the order of their rows."""
        for row in sorted(self._rows.values()):
            yield self._row(row)

    def _row(self, row: int) -> ExportedImage:
        columns = self._table.columns
        return ExportedImage(*(column[row].as_py() for column in columns))


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    for chunk in column.chunks:
        yield from chunk.to_pylist()


def read_manifest(storage: Storage, layout: DestLayout) -> dict[str, Any] | None:
    """What a DEST is an export of; None where it is none.

    Raises:
        UsageError: It is damaged, or of a newer version.
    """
    try:
        manifest = parse_json(storage.read(layout.manifest, _MAX_MANIFEST_BYTES))
        version = manifest["segcore_export"]
    except ObjectNotFound:
        return None
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{layout.manifest} is damaged.", "Restore it, or export to another DEST."
        ) from None
    if version != EXPORT_VERSION:
        raise UsageError(
            f"{layout.manifest} has the version {version}; this segcore knows {EXPORT_VERSION}.",
            "Use the segcore that wrote it, or export to another DEST.",
        )
    return dict(manifest)


def open_dest(
    storage: Storage, layout: DestLayout, manifest: dict[str, Any]
) -> tuple[ExportState, bool]:
    """The state of a DEST, which is begun if it is empty.

    Args:
        manifest: What is to be exported; must agree with what was exported before.

    Returns:
        The state, and whether files may be there that it does not know.

    Raises:
        UsageError: DEST holds files of others, or an export that this one cannot continue.
    """
    stored = read_manifest(storage, layout)
    if stored is None:
        foreign = next(iter(storage.list(layout.uri)), None)
        if foreign is not None:
            raise UsageError(
                f"{redact(layout.uri)} is not empty and no export of segcore: it holds "
                f"{redact(foreign.uri)}.",
                "Nothing was written. Name an empty or new folder as DEST.",
            )
        manifest = {"segcore_export": EXPORT_VERSION, **manifest}
        if storage.write_if_absent(layout.manifest, json_text(manifest).encode()):
            return ExportState([]), False
        stored = read_manifest(storage, layout) or {}
    _check_agreement(stored, manifest, layout)
    return read_state(storage, layout), True


def _check_agreement(stored: dict[str, Any], wanted: dict[str, Any], layout: DestLayout) -> None:
    for key, what in (("format", "format"), ("edition", "edition"), ("labels", "labels")):
        if stored.get(key) != wanted[key]:
            values = "" if key == "labels" else f": {stored.get(key)}, not {wanted[key]}"
            raise UsageError(
                f"{redact(layout.uri)} holds an export of another {what}{values}.",
                "What was handed out is not replaced. Export to another DEST.",
            )
    before, after = stored.get("options", {}), wanted["options"]
    differing = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
    if differing:
        changes = "; ".join(f"{k}: {before.get(k)!r}, now {after.get(k)!r}" for k in differing[:5])
        raise UsageError(
            f"{redact(layout.uri)} was exported with other options ({changes}).",
            "Use the same options to add images, or another DEST.",
        )


def read_state(storage: Storage, layout: DestLayout) -> ExportState:
    """The records of all chunks of a DEST.

    Raises:
        SegcoreError: One of them is missing or damaged.
    """
    names = (basename(info.uri) for info, _ in storage.list_folder(layout.state_folder))
    chunks = sorted(int(n[:-8]) for n in names if n.endswith(".parquet") and n[:-8].isdecimal())
    if chunks != list(range(1, len(chunks) + 1)):
        raise SegcoreError(
            f"{redact(layout.state_folder)} lacks records: of {chunks[-1]} it has {len(chunks)}.",
            "Without them ids would be given twice. Restore them, or export to another DEST.",
        )
    return ExportState([_read_chunk(storage, layout.chunk(number)) for number in chunks])


def _read_chunk(storage: Storage, uri: str) -> pa.Table:
    try:
        data = storage.read(uri)
        return pq.read_table(pa.BufferReader(data)).replace_schema_metadata(None).cast(_SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise SegcoreError(
            f"{redact(uri)} is damaged: {reason}.", "Restore it, or export to another DEST."
        ) from None


def record_chunk(
    storage: Storage, layout: DestLayout, number: int, images: Sequence[ExportedImage]
) -> None:
    """Record that the files of a chunk are finished.

    Raises:
        SegcoreError: Another export has recorded this chunk in the meantime.
    """
    columns = zip(*images, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), sink, compression="zstd")
    if not storage.write_if_absent(layout.chunk(number), sink.getvalue()):
        raise SegcoreError(
            f"Another export to {redact(layout.uri)} has written chunk {number} in the meantime.",
            "Let one export at a time write to a DEST; rerun this one when the other has ended.",
        )
    storage.delete(layout.begun(number))
