"""COCO data sets: a JSON file that names the images, and the folder they are in."""

from __future__ import annotations

import json
from typing import Any

from segcore.errors import SegcoreError, UsageError
from segcore.sources.base import SourceOptions
from segcore.sources.objects import ObjectsSource
from segcore.sources.references import Resolver
from segcore.storage import Storage, listing_table
from segcore.uris import basename, normalize, parent

_PROBES = 5  # images looked for in each folder that may be the right one


def open_coco(uri: str, options: SourceOptions, storage: Storage) -> ObjectsSource:
    """The images of a COCO file (`images[].file_name`).

    Their folder is `options.coco_images` (a relative one starts at the JSON's folder), or the
    first of these in which one of the first images lies: the JSON's folder, `images/` in it,
    `images/` beside it, and folders named like the JSON without `instances_`, in it or beside it.

    Raises:
        UsageError: Not a COCO file, no images in it, or none of these folders holds them.
        ObjectNotFound, AccessDenied, StorageError: The JSON itself cannot be read.
    """
    names = _file_names(uri, storage)
    folder = _given_folder(uri, options) or _find_folder(uri, names, options, storage)
    resolver = Resolver.of(folder, options)
    table = listing_table(resolver.row(name) for name in names)
    return ObjectsSource(input=uri, kind="coco", table=table)


def _file_names(uri: str, storage: Storage) -> list[str]:
    try:
        document: Any = json.loads(storage.read(uri))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{uri} is not valid JSON.") from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise UsageError(f"{uri} is no COCO file: it has no list 'images'.")
    if not images:
        raise UsageError(f"{uri} names no images: its list 'images' is empty.")
    names = []
    for index, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name:
            raise UsageError(f"{uri}: images[{index}] has no 'file_name'.")
        names.append(name)
    return names


def _given_folder(uri: str, options: SourceOptions) -> str | None:
    given = options.coco_images
    if given is None:
        return None
    absolute = "://" in given or given.startswith(("/", "~"))
    return normalize(given if absolute else f"{parent(uri)}/{given}")


def _find_folder(uri: str, names: list[str], options: SourceOptions, storage: Storage) -> str:
    folder = parent(uri)
    stem = basename(uri).rpartition(".")[0].removeprefix("instances_")
    candidates = [folder, f"{folder}/images", f"{parent(folder)}/images"]
    candidates += [f"{folder}/{stem}", f"{parent(folder)}/{stem}"] if stem else []
    for candidate in candidates:
        resolver = Resolver.of(candidate, options)
        for name in names[:_PROBES]:
            found, _, etag = resolver.row(name)
            if not etag.startswith("!") and _exists(found, storage):
                return candidate
    shown = ", ".join(dict.fromkeys(candidates))
    raise UsageError(
        f"None of the first images of {uri} (such as {names[0]!r}) was found in {shown}.",
        "Name their folder with --set source.coco_images=FOLDER.",
    )


def _exists(uri: str, storage: Storage) -> bool:
    try:
        return storage.exists(uri)
    except SegcoreError:
        return False
