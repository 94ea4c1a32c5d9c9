"""Opening an archive: which kind of archive a path or URI names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import AccessDenied, NothingFound, ObjectNotFound, UsageError
from segcore.sources import manifest
from segcore.sources.arrow_types import is_text_type
from segcore.sources.base import REFUSALS, Kind, Source, SourceOptions, other_images_hint
from segcore.sources.coco import open_coco
from segcore.sources.inventory import read_inventory
from segcore.sources.manifest import open_manifest
from segcore.sources.objects import ObjectsSource
from segcore.sources.parquet import ParquetSource, probe_shard
from segcore.sources.parquet_columns import may_hold_images
from segcore.sources.tar import TarSource
from segcore.storage import ObjectInfo, Storage
from segcore.storage.listing import Listing
from segcore.storage.local_disk import LINKED_FOLDER
from segcore.storage.uris import is_remote, normalize_input
from segcore.text import plural, printable, redact

_MANIFEST_HINT = "For a manifest or a COCO file, give the file itself."
_COMPRESSED_EXTENSIONS = ("gz", "tgz", "bz2", "xz", "zst", "zip", "7z", "rar")
_SUFFIX = r"(?:^|/)[^./]*\.(?P<part>[^/]*)$"  # all behind the first dot of the file name
_NOUNS = {"tar": "tar shard", "parquet": "Parquet file", "images": "image"}


def open_source(input_uri: str, options: SourceOptions, storage: Storage) -> Source:
    """Open the archive that `input_uri` names; its kind is detected unless `options.kind` sets it.

    A folder or prefix holds tar shards, Parquet shards or images. A file is a shard, an image, a
    manifest or a COCO file, depending on its extension.

    Raises:
        UsageError: It holds nothing to segment, or its kind is ambiguous.
        ObjectNotFound, AccessDenied, StorageError: It does not exist or cannot be read.
    """
    uri = normalize_input(input_uri)
    if options.inventory is not None:
        return _open_folder(uri, read_inventory(options.inventory, uri, storage), options, storage)
    info = _stat_file(uri, storage)
    if info is not None and not _is_also_folder(uri, input_uri, options, storage):
        return _open_file(info, options, storage)
    if options.kind in ("manifest", "coco"):
        raise UsageError(f"{uri} is a folder; source.kind={options.kind} needs the file itself.")
    listing = storage.listing(uri, options.allow_outside, show_hidden=True)
    if listing.num_rows == 0 and (is_remote(uri) or not os.path.isdir(uri)):
        hint = "Wildcards are not expanded; name the folder." if set("*{[") & set(uri) else ""
        raise ObjectNotFound(f"{redact(uri)} does not exist.", hint)
    return _open_folder(uri, listing, options, storage)


def _stat_file(uri: str, storage: Storage) -> ObjectInfo | None:
    """The object of this URI; None if there is none, as for a folder.

    Raises:
        AccessDenied: It may not be read, and nothing is listed below it.
    """
    if not is_remote(uri) and os.path.isdir(uri):
        return None
    try:
        return storage.stat(uri)
    except ObjectNotFound:
        if not is_remote(uri) and os.path.exists(uri):
            raise  # it is there, but is a pipe or device
        return None
    except AccessDenied:
        # Rights for `folder/*` do not cover the name of the folder itself.
        if is_remote(uri) and next(storage.list(uri), None) is not None:
            return None
        raise


def _is_also_folder(uri: str, input_uri: str, options: SourceOptions, storage: Storage) -> bool:
    """Whether there are objects below an object, and the input means them.

    On an object store, `photos` and `photos/1.jpg` may both be objects. A slash at the end of the
    input means the folder, and so does a name that no kind of file has.
    """
    if not is_remote(uri) or options.kind in ("manifest", "coco"):
        return False
    means_file = not input_uri.endswith("/") and _has_known_extension(uri, options)
    return not means_file and next(storage.list(uri), None) is not None


def _has_known_extension(uri: str, options: SourceOptions) -> bool:
    known = {*options.extensions, *manifest.EXTENSIONS, *_COMPRESSED_EXTENSIONS, "json", "tar"}
    return uri.rpartition("/")[2].rpartition(".")[2].lower() in known


def _open_file(info: ObjectInfo, options: SourceOptions, storage: Storage) -> Source:
    kind = _detect_file_kind(info.uri, storage, options) if options.kind == "auto" else options.kind
    if kind == "manifest":
        return open_manifest(info.uri, options, storage)
    if kind == "coco":
        return open_coco(info.uri, options, storage)
    listing = Listing.from_rows([(info.uri, info.size, info.etag)])
    return _make_source(kind, info.uri, listing, options, storage)


def _make_source(
    kind: Kind, uri: str, listing: Listing, options: SourceOptions, storage: Storage
) -> Source:
    if kind == "images":
        return ObjectsSource(input=uri, kind=kind, listing=listing)
    shards = listing.to_table()
    if kind == "tar":
        return TarSource(input=uri, kind=kind, shards=shards, storage=storage, options=options)
    return ParquetSource(input=uri, kind="parquet", shards=shards, storage=storage, options=options)


def _detect_file_kind(uri: str, storage: Storage, options: SourceOptions) -> Kind:
    extension = uri.rpartition(".")[2].lower()
    if extension in options.extensions:
        return "images"
    if extension == "json":
        return "coco"
    if extension == "parquet":
        return _detect_parquet_kind(uri, storage, options)
    if extension == "tar":
        return "tar"
    if extension in manifest.EXTENSIONS:
        return "manifest"
    if extension in _COMPRESSED_EXTENSIONS:
        raise UsageError(
            f"{uri} is compressed; segcore reads uncompressed .tar shards.", "Unpack it first."
        )
    raise UsageError(
        f"{uri}: the kind of this file cannot be told from its name.",
        "Set it with --set source.kind=images|tar|parquet|manifest|coco.",
    )


def _detect_parquet_kind(uri: str, storage: Storage, options: SourceOptions) -> Kind:
    """A Parquet file is a manifest if it has text but nothing that may be images."""
    if options.image_column is None:
        try:
            with storage.open(uri, 1 << 20) as file:
                schema = pq.read_schema(file)
        except (pa.ArrowException, OSError, ValueError):
            return "parquet"  # damaged: its reader reports that
        has_images = any(may_hold_images(column) for column in schema)
        if has_images and probe_shard(uri, storage, options) is not None:
            has_images = False  # hashes or other bytes
        if not has_images and any(is_text_type(column.type) for column in schema):
            return "manifest"
    return "parquet"


def _open_folder(uri: str, listing: Listing, options: SourceOptions, storage: Storage) -> Source:
    notes = [*_notes_on_links(uri, listing), *_notes_on_hidden(uri, listing)]
    extension_counts = _count_extensions(uri, listing)
    extensions_of_kind = {"tar": ("tar",), "parquet": ("parquet",), "images": options.extensions}
    kind_counts = {
        kind: sum(extension_counts[extension] for extension in extensions)
        for kind, extensions in extensions_of_kind.items()
    }
    kind = _choose_folder_kind(uri, kind_counts, options, extension_counts, notes)
    selected = _select(uri, listing, kind, extensions_of_kind[kind], options)
    for extension in extensions_of_kind[kind]:
        extension_counts.pop(extension, None)
    notes += _notes_on_others(uri, extension_counts)
    if n_unchosen := kind_counts[kind] - selected.num_rows:
        images = plural(n_unchosen, "image without", "images without")
        notes.append(f"Skipped {images} one of source.suffixes in {redact(uri)}.")
    if selected.num_rows == 0 and not options.allow_empty:
        suffixes = ", ".join(f".{suffix}" for suffix in options.suffixes)
        raise NothingFound(
            f"None of the images in {redact(uri)} has a suffix of {suffixes}.", " ".join(notes)
        )
    if kind != "images":
        _refuse_marked_shards(selected.to_table())
    source = _make_source(kind, uri, selected, options, storage)
    source.notes.extend(notes)
    return source


def _select(
    uri: str, listing: Listing, kind: Kind, extensions: Sequence[str], options: SourceOptions
) -> Listing:
    """The visible files with these extensions and, if they are images, with the chosen suffixes."""
    wanted = pa.array(extensions, pa.large_string())
    suffixes = pa.array(options.suffixes if kind == "images" else (), pa.large_string())

    def is_selected(table: pa.Table) -> pa.ChunkedArray:
        mask = pc.and_(
            _visible(uri, table["uri"], table["etag"]),
            pc.is_in(_extensions(table["uri"]), wanted),
        )
        if len(suffixes):
            mask = pc.and_(mask, pc.is_in(_match(table["uri"], _SUFFIX), suffixes))
        return mask

    return listing.filter(is_selected)


def _notes_on_others(uri: str, counts: Counter[str]) -> list[str]:
    """What else is in a folder, by extension, and what could be done about it."""
    if not counts.total():
        return []
    notes = [
        f"Skipped {plural(counts.total(), 'other file')} in {redact(uri)}: "
        f"{_describe_extensions(counts)}."
    ]
    if any(counts[extension] for extension in _COMPRESSED_EXTENSIONS):
        notes.append("Compressed archives are not read: unpack them to .tar or to files.")
    return [*notes, *other_images_hint(counts)]


def _describe_extensions(counts: Counter[str]) -> str:
    """The most common extensions: `3 x .txt, 1 x without extension`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        f"{count:,} x " + (f".{printable(extension[:20])}" if extension else "without extension")
        for extension, count in ordered[:5]
    ]
    if n_more := sum(count for _, count in ordered[5:]):
        parts.append(f"{n_more:,} x other extensions")
    return ", ".join(parts)


def _count_extensions(uri: str, listing: Listing) -> Counter[str]:
    """How many visible files have each extension."""
    counts: Counter[str] = Counter()
    for uris, etags in zip(
        listing.column_batches("uri"), listing.column_batches("etag"), strict=True
    ):
        visible_uris = uris.filter(_visible(uri, uris, etags))
        for row in pc.value_counts(_extensions(visible_uris)).to_pylist():
            counts[row["values"]] += row["counts"]
    return counts


def _visible(uri: str, uris: pa.ChunkedArray, etags: pa.ChunkedArray) -> pa.ChunkedArray:
    """Mask of the rows that are neither hidden nor links to folders that were not entered."""
    return pc.invert(pc.or_(_hidden(uri, uris), pc.equal(etags, LINKED_FOLDER)))


def _hidden(uri: str, uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Mask of the rows with a segment below the folder that starts with a dot."""
    below = pc.utf8_slice_codeunits(uris, len(uri))
    # "." and ".." are no hidden names: S3 allows such segments in keys.
    return pc.match_substring_regex(below, r"/\.(?:[^./]|\.[^/])")


def _notes_on_hidden(uri: str, listing: Listing) -> list[str]:
    n_hidden = sum(
        int(pc.sum(_hidden(uri, uris)).as_py() or 0) for uris in listing.column_batches("uri")
    )
    if not n_hidden:
        return []
    names = plural(n_hidden, "hidden file or folder", "hidden files or folders")
    return [f"Skipped {names} in {redact(uri)}: names that start with a dot."]


def _notes_on_links(uri: str, listing: Listing) -> list[str]:
    n_links = sum(
        int(pc.sum(pc.equal(etags, LINKED_FOLDER)).as_py() or 0)
        for etags in listing.column_batches("etag")
    )
    if not n_links:
        return []
    links = plural(n_links, "link to a folder", "links to folders")
    return [
        f"Skipped {links} in {redact(uri)} (set source.allow_outside=true to follow such links)."
    ]


def _extensions(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """The extension of each URI in lower case; "" for none."""
    return _match(uris, r"\.(?P<part>[^./]*)/*$")


def _match(uris: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """What the group `part` of a pattern matches in each URI, in lower case; "" for nothing."""
    matches = pc.extract_regex(uris, pattern)
    return pc.utf8_lower(pc.fill_null(pc.struct_field(matches, "part"), ""))


def _choose_folder_kind(
    uri: str,
    kind_counts: dict[str, int],
    options: SourceOptions,
    extension_counts: Counter[str],
    notes: Sequence[str],
) -> Kind:
    kinds = [kind for kind, count in kind_counts.items() if count]
    if options.kind != "auto":
        kinds = [kind for kind in kinds if kind == options.kind]
    if len(kinds) == 1:
        return cast(Kind, kinds[0])
    folder = redact(uri)
    if kinds:
        mixture = ", ".join(plural(kind_counts[kind], _NOUNS[kind]) for kind in kinds)
        choices = " or ".join(f"--set source.kind={kind}" for kind in kinds)
        raise UsageError(f"{folder} holds a mixture: {mixture}.", f"Choose with {choices}.")
    expected = {
        "auto": (*options.extensions, "tar", "parquet"),
        "images": options.extensions,
    }.get(options.kind, (options.kind,))
    expected_names = ", ".join(f".{extension}" for extension in expected)
    if options.allow_empty:
        return options.kind if options.kind in ("tar", "parquet") else "images"
    present = _describe_extensions(extension_counts)
    raise NothingFound(
        f"No images found in {folder}. Expected files with the extensions {expected_names}; found "
        f"{present or 'no files'}.",
        " ".join((*notes, *other_images_hint(extension_counts), _MANIFEST_HINT)),
    )


def _refuse_marked_shards(shards: pa.Table) -> None:
    """Shards that must not be read end the run: as failed rows they would hide many images."""
    for row in shards.filter(pc.starts_with(shards["etag"], "!")).slice(0, 1).to_pylist():
        raise UsageError(f"{row['uri']}: {REFUSALS[row['etag']]}.")
