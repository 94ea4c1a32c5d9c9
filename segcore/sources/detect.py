"""Which kind of archive a path or URI names."""

from __future__ import annotations

import os
from collections import Counter
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, UsageError
from segcore.sources import manifest
from segcore.sources.base import Kind, Source, SourceOptions
from segcore.sources.coco import open_coco
from segcore.sources.manifest import open_manifest
from segcore.sources.objects import ObjectsSource
from segcore.sources.parquet import ParquetSource
from segcore.sources.tar import TarSource
from segcore.storage import ObjectInfo, Storage
from segcore.storage.listing import Listing
from segcore.storage.uris import is_remote, normalize, redact

_PACKED = ("gz", "tgz", "bz2", "xz", "zst", "zip", "7z", "rar")


def open_source(input_uri: str, options: SourceOptions, storage: Storage) -> Source:
    """Find the archive that `input_uri` names, and its kind unless `options.kind` says it.

    A folder or prefix holds either tar shards, Parquet shards or images; a file is a shard, an
    image, a manifest or a COCO file, by its extension.

    Raises:
        UsageError: Nothing to segment there, or the kind is not clear.
        ObjectNotFound, AccessDenied, StorageError: It does not exist or cannot be read.
    """
    uri = normalize(input_uri)
    info = _as_file(uri, storage)
    if info is not None:
        return _open_file(info, options, storage)
    if options.kind in ("manifest", "coco"):
        raise UsageError(f"{uri} is a folder; source.kind={options.kind} needs the file itself.")
    listing = storage.listing(uri, options.allow_outside)
    if listing.num_rows == 0 and (is_remote(uri) or not os.path.isdir(uri)):
        hint = "Wildcards are not expanded; name the folder." if set("*{[") & set(uri) else ""
        raise ObjectNotFound(f"{redact(uri)} does not exist.", hint)
    return _open_folder(uri, listing, options, storage)


def _as_file(uri: str, storage: Storage) -> ObjectInfo | None:
    if not is_remote(uri) and os.path.isdir(uri):
        return None
    try:
        return storage.stat(uri)
    except ObjectNotFound:
        return None


def _open_file(info: ObjectInfo, options: SourceOptions, storage: Storage) -> Source:
    kind = _file_kind(info.uri, storage, options) if options.kind == "auto" else options.kind
    if kind == "manifest":
        return open_manifest(info.uri, options, storage)
    if kind == "coco":
        return open_coco(info.uri, options, storage)
    listing = Listing.from_rows([(info.uri, info.size, info.etag)])
    return _source(kind, info.uri, listing, options, storage)


def _source(
    kind: Kind, uri: str, listing: Listing, options: SourceOptions, storage: Storage
) -> Source:
    if kind == "images":
        return ObjectsSource(input=uri, kind=kind, table=listing)
    shards = listing.to_table()
    if kind == "tar":
        return TarSource(input=uri, kind=kind, listing=shards, storage=storage, options=options)
    return ParquetSource(input=uri, kind="parquet", listing=shards, storage=storage,
                         options=options)  # fmt: skip


def _file_kind(uri: str, storage: Storage, options: SourceOptions) -> Kind:
    extension = uri.rpartition(".")[2].lower()
    if extension in options.extensions:
        return "images"
    if extension == "json":
        return "coco"
    if extension == "parquet":
        return _parquet_kind(uri, storage, options)
    if extension == "tar":
        return "tar"
    if extension in manifest.EXTENSIONS:
        return "manifest"
    if extension in _PACKED:
        raise UsageError(
            f"{uri} is compressed; segcore reads plain .tar shards.", "Unpack it first."
        )
    raise UsageError(
        f"{uri}: what it is does not follow from its name.",
        "Use --set source.kind=images|tar|parquet|manifest|coco.",
    )


def _parquet_kind(uri: str, storage: Storage, options: SourceOptions) -> Kind:
    """A Parquet file is a manifest when it holds no bytes."""
    if options.image_column is None:
        try:
            with storage.open(uri, 1 << 20) as file:
                schema = pq.read_schema(file)
        except (pa.ArrowException, OSError, ValueError):
            return "parquet"  # damaged: its reader reports it
        kinds = [str(column.type) for column in schema]
        holds_bytes = any("binary" in kind for kind in kinds)
        if not holds_bytes and any("string" in kind for kind in kinds):
            return "manifest"
    return "parquet"


def _open_folder(uri: str, listing: Listing, options: SourceOptions, storage: Storage) -> Source:
    notes = _notes_on_links(uri, listing)
    there: Counter[str] = Counter()
    for uris, etags in zip(
        listing.column_batches("uri"), listing.column_batches("etag"), strict=True
    ):
        shown = uris.filter(_visible(uri, uris, etags))
        for row in pc.value_counts(_extensions(shown)).to_pylist():
            there[row["values"]] += row["counts"]
    of_kind = {"tar": ("tar",), "parquet": ("parquet",), "images": options.extensions}
    counts = {kind: sum(there[name] for name in names) for kind, names in of_kind.items()}
    kind = _folder_kind(uri, counts, options, there)
    names = pa.array(of_kind[kind], pa.large_string())
    chosen = listing.filter(
        lambda table: pc.and_(
            _visible(uri, table["uri"], table["etag"]), pc.is_in(_extensions(table["uri"]), names)
        )
    )
    others = there.total() - chosen.num_rows
    if others:
        notes.append(f"{others:,} other files under {redact(uri)} are left out.")
    if kind != "images":
        _refuse_marked_shards(chosen.to_table())
    source = _source(kind, uri, chosen, options, storage)
    source.notes.extend(notes)
    return source


def _visible(uri: str, uris: pa.ChunkedArray, etags: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which rows are neither hidden nor links to folders that were not entered."""
    below = pc.utf8_slice_codeunits(uris, len(uri))
    hidden = pc.match_substring_regex(below, r"/\.")
    return pc.invert(pc.or_(hidden, pc.equal(etags, "!folder")))


def _notes_on_links(uri: str, listing: Listing) -> list[str]:
    linked = sum(
        int(pc.sum(pc.equal(etags, "!folder")).as_py() or 0)
        for etags in listing.column_batches("etag")
    )
    if not linked:
        return []
    return [
        f"{linked:,} links to folders under {redact(uri)} were not followed "
        "(set source.allow_outside=true to follow them)."
    ]


def _extensions(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    found = pc.extract_regex(uris, r"\.(?P<ext>[^./]*)$")
    return pc.utf8_lower(pc.fill_null(pc.struct_field(found, "ext"), ""))


def _folder_kind(
    uri: str, counts: dict[str, int], options: SourceOptions, there: Counter[str]
) -> Kind:
    held = [kind for kind, count in counts.items() if count]
    if options.kind != "auto":
        held = [kind for kind in held if kind == options.kind]
    if len(held) == 1:
        return cast(Kind, held[0])
    shown = redact(uri)
    if held:
        mixture = ", ".join(f"{counts[kind]:,} {_NAMES[kind]}" for kind in held)
        choices = " or ".join(f"--set source.kind={kind}" for kind in held)
        raise UsageError(f"{shown} holds a mixture: {mixture}.", f"Choose with {choices}.")
    looked = {
        "auto": ", ".join(f".{e}" for e in (*options.extensions, "tar", "parquet")),
        "images": ", ".join(f".{e}" for e in options.extensions),
    }.get(options.kind, f".{options.kind}")
    most = sorted(there.items(), key=lambda item: (-item[1], item[0]))[:5]
    found = ", ".join(f"{count:,} x .{name}" for name, count in most) or "nothing at all"
    raise UsageError(
        f"No images found under {shown}; looked for the extensions {looked}; there is {found}.",
        "For a manifest or a COCO file, give the file itself.",
    )


_NAMES = {"tar": "tar shards", "parquet": "Parquet files", "images": "images"}


def _refuse_marked_shards(shards: pa.Table) -> None:
    for row in shards.filter(pc.starts_with(shards["etag"], "!")).slice(0, 1).to_pylist():
        raise UsageError(
            f"{row['uri']} is a link that leads outside the input folder, or has no valid name.",
            "To follow links, set source.allow_outside=true.",
        )
