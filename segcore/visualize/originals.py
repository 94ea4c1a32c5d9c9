"""The images behind results, read back from the archive by their ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from segcore.errors import UsageError
from segcore.images import DecodeOptions, decode_image
from segcore.output.layout import EditionLayout
from segcore.output.results import Results
from segcore.planning.plan_files import decode_plan
from segcore.sources import SourceOptions, file_image_id, read_unit
from segcore.sources.units import Unit
from segcore.storage import Storage
from segcore.worker.pages import image_bytes, split_pages

_Place = tuple[str, int]


def read_originals(
    results: Results,
    image_ids: Iterable[str],
    source: SourceOptions = SourceOptions(),
    decoding: DecodeOptions = DecodeOptions(),
) -> dict[str, np.ndarray]:
    """Decode images of a run at full size.

    The archive is read from where it was during the run; only units that hold these images are
    read.

    Args:
        image_ids: Of the `images` table; failed ones cannot be read.
        source: As in the run.
        decoding: Limits, as in the run.

    Returns:
        image_id -> (H, W, 3) uint8 RGB.

    Raises:
        UsageError: An id is not in these results, or the archive has changed or is gone.
        ImageError: An image cannot be read or decoded (any more).
    """
    requested = set(image_ids)
    ids_by_unit: dict[str, dict[_Place, str]] = defaultdict(dict)
    for table in results.images(["image_id", "unit", "page"]):
        for row in table.to_pylist():
            if row["image_id"] in requested:
                place = _place(row["image_id"], row["page"])
                ids_by_unit[row["unit"]][place] = row["image_id"]
    unknown = requested.difference(*(ids.values() for ids in ids_by_unit.values()))
    if unknown:
        raise UsageError(f"{results.prefix} has no image {min(unknown)}.")
    units = _planned_units(results.storage, results.prefix)
    images: dict[str, np.ndarray] = {}
    for unit_id, unit_image_ids in ids_by_unit.items():
        if unit_id not in units:
            raise UsageError(f"No plan of {results.prefix} contains unit {unit_id}.")
        images |= _read_images(units[unit_id], unit_image_ids, results.storage, source, decoding)
    return images


def _place(image_id: str, page: int | None) -> _Place:
    """Where an image is, whether or not pages were told apart: in which file, on which page."""
    return file_image_id(image_id, page), page or 1


def _planned_units(storage: Storage, prefix: str) -> dict[str, Unit]:
    """Units of all plans of an edition, by id."""
    plan_uris = [info.uri for info in storage.list(EditionLayout(prefix).plans_folder)]
    return {
        unit.unit: unit
        for uri in plan_uris
        if uri.endswith(".parquet")
        for unit in decode_plan(storage.read(uri), uri).units
    }


def _read_images(
    unit: Unit,
    image_ids: Mapping[_Place, str],
    storage: Storage,
    source: SourceOptions,
    decoding: DecodeOptions,
) -> dict[str, np.ndarray]:
    images: dict[str, np.ndarray] = {}
    options = decoding.model_copy(update={"pages": "all"})
    for sample in split_pages(read_unit(unit, storage, source), options):
        image_id = image_ids.get(_place(sample.image_id, sample.page))
        if image_id is not None:
            images[image_id] = decode_image(image_bytes(sample), options)
        if len(images) == len(image_ids):
            return images
    raise UsageError(
        f"{min(set(image_ids.values()) - set(images))} is no longer in the archive.",
        "The archive has changed since the run; run segcore segment again.",
    )
