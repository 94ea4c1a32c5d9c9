"""Archives of images: which kinds there are, how they are cut into units, how units are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from segcore.errors import SegcoreError, StorageError
from segcore.sources.base import (
    IMAGE_EXTENSIONS,
    Sample,
    Source,
    SourceOptions,
    file_image_id,
    lone_page,
    other_images_hint,
    page_image_id,
)
from segcore.sources.detect import open_source
from segcore.sources.objects import read_objects
from segcore.sources.parquet_rows import read_parquet
from segcore.sources.tar import read_tar, tar_options
from segcore.sources.units import Unit
from segcore.storage import Storage

__all__ = [
    "IMAGE_EXTENSIONS",
    "Sample",
    "Source",
    "SourceOptions",
    "file_image_id",
    "lone_page",
    "open_source",
    "other_images_hint",
    "page_image_id",
    "read_unit",
    "reading_options",
]


def reading_options(unit: Unit, max_image_bytes: int) -> SourceOptions:
    """The options to read the images of a planned unit again, whatever the job's were called.

    Args:
        max_image_bytes: Larger images become samples with an error.
    """
    options = tar_options(unit.reader) if unit.kind == "tar" else SourceOptions()
    return options.model_copy(update={"max_image_bytes": max_image_bytes})


def read_unit(
    unit: Unit,
    storage: Storage,
    options: SourceOptions,
    notes: Counter[str] | None = None,
    exclude: Collection[str] = (),
) -> Iterator[Sample]:
    """The images of a unit, one at a time in a fixed order.

    A bad image never raises: it becomes a sample with an error. `notes`, if given, counts what
    was left out or renamed (see `read_tar` and `read_parquet`). Loose images whose id is in
    `exclude` are skipped without being read; shards are always read in full.

    Raises:
        StorageError: The unit as a whole cannot be read now (storage down, shard gone or changed,
            no permission) and must not be committed.
    """
    notes = Counter() if notes is None else notes
    try:
        if unit.kind == "objects":
            yield from read_objects(unit, storage, options, exclude)
        elif unit.kind == "tar":
            yield from read_tar(unit, storage, options, notes)
        elif unit.kind == "parquet":
            yield from read_parquet(unit, storage, options, notes)
        else:
            raise SegcoreError(f"Unit {unit.unit} has the unknown kind {unit.kind!r}.")
    except OSError as error:
        where = unit.shard or "a loose image"
        raise StorageError(f"{where}: {error.strerror or error}.") from error
