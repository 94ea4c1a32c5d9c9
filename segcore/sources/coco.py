"""COCO data sets: a JSON file that names the images, and the folder that holds them."""

from __future__ import annotations

from typing import Any

from segcore.errors import NothingFound, SegcoreError, UsageError
from segcore.sources.base import SourceOptions
from segcore.sources.objects import ObjectsSource
from segcore.sources.references import ReferenceResolver
from segcore.storage import Storage
from segcore.storage.listing import Listing
from segcore.storage.uris import basename, normalize, parent
from segcore.text import parse_json

_PROBED_IMAGES = 5  # looked for in each candidate folder


def open_coco(uri: str, options: SourceOptions, storage: Storage) -> ObjectsSource:
    """The images of a COCO file (`images[].file_name`).

    Their folder is `options.coco_images` (relative to the working directory, like every path that a
    person gives), or the first of these folders that holds one of the first images: the folder of
    the JSON file, `images/` inside it, `images/` beside it, and folders named like the JSON file
    without `instances_`, inside it or beside it.

    Raises:
        UsageError: It is not a COCO file, it names no images, or none of these folders holds them.
        ObjectNotFound, AccessDenied, StorageError: The JSON file itself cannot be read.
    """
    names = _file_names(uri, options, storage)
    if not names:
        return ObjectsSource(input=uri, kind="coco", listing=Listing.from_rows([]))
    if options.coco_images is None:
        folder = _find_folder(uri, names, options, storage)
    else:
        folder = normalize(options.coco_images)
        if not _holds_first_images(folder, uri, names, options, storage):
            raise UsageError(
                f"None of the first images of {uri} (such as {names[0]!r}) was found in {folder}.",
                "source.coco_images must be the folder that their file names are relative to.",
            )
    resolver = ReferenceResolver(folder, uri, options, storage)
    listing = Listing.from_rows(resolver.resolve_all(names))
    return ObjectsSource(
        input=uri, kind="coco", listing=listing, storage=storage, notes=resolver.notes()
    )


def _file_names(uri: str, options: SourceOptions, storage: Storage) -> list[str]:
    try:
        document: Any = parse_json(storage.read(uri))
    except ValueError as error:
        raise UsageError(f"{uri} is not valid JSON.") from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise UsageError(f"{uri} is not a COCO file: it has no list 'images'.")
    if not images and not options.allow_empty:
        raise NothingFound(
            f"{uri} names no images: its list 'images' is empty.",
            "Set source.allow_empty=true if an input may be empty.",
        )
    names = []
    for index, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name:
            raise UsageError(f"{uri}: images[{index}] has no 'file_name'.")
        names.append(name)
    return names


def _find_folder(uri: str, names: list[str], options: SourceOptions, storage: Storage) -> str:
    folder = parent(uri)
    stem = basename(uri).rpartition(".")[0].removeprefix("instances_")
    candidates = [folder, f"{folder}/images", f"{parent(folder)}/images"]
    candidates += [f"{folder}/{stem}", f"{parent(folder)}/{stem}"] if stem else []
    for candidate in candidates:
        if _holds_first_images(candidate, uri, names, options, storage):
            return candidate
    folders = ", ".join(dict.fromkeys(candidates))
    raise UsageError(
        f"None of the first images of {uri} (such as {names[0]!r}) was found in {folders}.",
        "Set their folder with --set source.coco_images=FOLDER.",
    )


def _holds_first_images(
    folder: str, uri: str, names: list[str], options: SourceOptions, storage: Storage
) -> bool:
    """Whether at least one of the first images is in this folder."""
    resolver = ReferenceResolver(folder, uri, options, storage)
    rows = [resolver.resolve(name) for name in names[:_PROBED_IMAGES]]
    return any(not etag.startswith("!") and _exists(uri, storage) for uri, _, etag in rows)


def _exists(uri: str, storage: Storage) -> bool:
    try:
        return storage.exists(uri)
    except SegcoreError:
        return False
