"""The images behind results, read back from the archive as the job read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from segcore.errors import ImageError, ObjectChanged, StorageError, UsageError
from segcore.images import DecodeOptions, decode_image
from segcore.output.image_rows import RECORD_COLUMNS, ImageRecord, to_records
from segcore.output.layout import EditionLayout
from segcore.output.results import Results
from segcore.planning.plan_files import decode_plan
from segcore.sources import Sample, file_image_id, read_unit, reading_options
from segcore.sources.unit_tables import units_from_table
from segcore.sources.units import Unit
from segcore.storage import Storage
from segcore.worker.pages import image_bytes, split_pages


@dataclass(frozen=True)
class Original:
    """An image of the archive, or the reason why it cannot be read any more.

    Attributes:
        pixels: (H, W, 3) uint8 RGB at full size, as the job decoded them; None if there are none.
        problem: One sentence for people; "" where there are pixels.
    """

    record: ImageRecord
    pixels: np.ndarray | None
    problem: str = ""


def recorded_decoding(results: Results) -> DecodeOptions:
    """How the images of an edition were decoded, and the limits of its last run.

    Raises:
        UsageError: ``edition.json`` says something that this version of segcore does not know.
    """
    recorded: Any = {**_mapping(results, "decode"), **_mapping(results, "limits")}
    known = {name: recorded[name] for name in DecodeOptions.model_fields if name in recorded}
    try:
        return DecodeOptions(**known)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{results.layout.edition_json} has decode options that cannot be used: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}.",
            "Use the version of segcore that wrote it.",
        ) from None


def _mapping(results: Results, key: str) -> Mapping[str, Any]:
    value = results.edition.get(key)
    return value if isinstance(value, Mapping) else {}


def iter_originals(
    results: Results, records: Iterable[ImageRecord], limits: DecodeOptions | None = None
) -> Iterator[Original]:
    """Decode images of a run at full size, one at a time, in the order of the archive.

    The archive is read from where it was during the run; of shards only the units that hold these
    images, and of loose images only these. An image that is gone, has changed or cannot be decoded
    comes with the reason, and the others go on.

    Args:
        limits: What one image may cost; None: as in the run.

    Raises:
        SegcoreError: The plans of the edition cannot be read.
    """
    by_unit: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_unit[record.unit].append(record)
    units = _planned_units(results.storage, results.layout, by_unit.keys())
    options = limits or recorded_decoding(results)
    for unit_id, of_unit in by_unit.items():
        if unit_id not in units:
            problem = f"No plan of the edition tells where unit {unit_id} was read."
            yield from (Original(record, None, problem) for record in of_unit)
            continue
        for unit, together in _read_together(units[unit_id], of_unit):
            yield from _read_unit(unit, together, results.storage, options)


def read_originals(results: Results, image_ids: Iterable[str]) -> dict[str, np.ndarray]:
    """Images of a run at full size, all in memory.

    Returns:
        image_id -> (H, W, 3) uint8 RGB.

    Raises:
        UsageError: An id is not in these results, or an image cannot be read any more.
    """
    requested = set(image_ids)
    records = find_records(results, requested)
    if unknown := requested.difference(record.image_id for record in records):
        raise UsageError(f"{results.prefix} has no image {min(unknown)}.")
    images: dict[str, np.ndarray] = {}
    for original in iter_originals(results, records):
        if original.pixels is None:
            raise UsageError(f"{original.record.image_id}: {original.problem}")
        images[original.record.image_id] = original.pixels
    return images


def find_records(results: Results, image_ids: Iterable[str]) -> list[ImageRecord]:
    """The rows of these images, in the order of the tables; ids that are not there are left out."""
    requested = set(image_ids)
    records = []
    for table in results.images(list(RECORD_COLUMNS)):
        mask = [image_id in requested for image_id in table["image_id"].to_pylist()]
        if any(mask):
            records += to_records(table.filter(mask))
    return records


def _planned_units(
    storage: Storage, layout: EditionLayout, unit_ids: Iterable[str]
) -> dict[str, Unit]:
    """These units as the plans of an edition have them, as far as they have them."""
    missing = set(unit_ids)
    units: dict[str, Unit] = {}
    for info in storage.list(layout.plans_folder):
        if not missing:
            break
        if not info.uri.endswith(".parquet"):
            continue
        with storage.open(info.uri) as file:
            table = decode_plan(file, info.uri).units.table
        wanted = [unit_id in missing for unit_id in table["unit"].to_pylist()]
        for unit in units_from_table(table.filter(wanted)):
            units[unit.unit] = unit
        missing -= units.keys()
    return units


def _read_together(
    unit: Unit, records: Sequence[ImageRecord]
) -> Iterator[tuple[Unit, list[ImageRecord]]]:
    """The unit in pieces, each with what is wanted of it: loose images file by file."""
    if unit.kind != "objects":
        yield unit, list(records)
        return
    by_file: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_file[file_image_id(record.image_id, record.page)].append(record)
    for member in unit.members:
        if member.image_id in by_file:
            yield replace(unit, members=(member,)), by_file.pop(member.image_id)
    for left in by_file.values():  # as if the shard lacked them
        yield replace(unit, members=()), left


def _read_unit(
    unit: Unit, records: Sequence[ImageRecord], storage: Storage, options: DecodeOptions
) -> Iterator[Original]:
    """The images of one unit, or of a part of it."""
    missing = {record.image_id: record for record in records}
    source = reading_options(unit, max_image_bytes=options.max_bytes)
    try:
        samples = split_pages(read_unit(unit, storage, source), options)
        while missing and (sample := next(samples, None)) is not None:
            record = missing.pop(sample.image_id, None)
            if record is not None:
                yield _decode(record, sample, options)
        problem = "It is no longer in the archive."
    except ObjectChanged:
        what = "The shard" if unit.shard else "The file"
        problem = f"{what} has changed since the run, or was copied: it is another version."
    except StorageError as error:
        problem = error.message
    yield from (Original(record, None, problem) for record in missing.values())


def _decode(record: ImageRecord, sample: Sample, options: DecodeOptions) -> Original:
    try:
        pixels = decode_image(image_bytes(sample), options)
    except ImageError as error:
        return Original(record, None, f"{error.message} ({error.code})")
    height, width = pixels.shape[:2]
    if (record.width, record.height) not in ((None, None), (width, height)):
        problem = (
            f"It is {width} x {height} pixels today, but {record.width} x {record.height} in the "
            "results."
        )
        return Original(record, None, problem)
    return Original(record, pixels)
