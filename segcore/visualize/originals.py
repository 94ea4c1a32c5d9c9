"""The images behind results, read back from the archive by their ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from segcore.errors import UsageError
from segcore.images import DecodeOptions, decode_image
from segcore.output.results import Results
from segcore.planning.plan_files import decode_plan
from segcore.sources import SourceOptions, read_unit
from segcore.sources.units import Unit
from segcore.storage import Storage, join


def read_originals(
    results: Results,
    image_ids: Iterable[str],
    source: SourceOptions = SourceOptions(),
    decoding: DecodeOptions = DecodeOptions(),
) -> dict[str, np.ndarray]:
    """Decode images of a run as the run did.

    The archive is read from where it lay then; only units that hold wanted images are read.

    Args:
        image_ids: Of the `images` table; failed ones cannot be read.

    Returns:
        image_id -> (H, W, 3) uint8 RGB.

    Raises:
        UsageError: An id is not in these results, or the archive changed or is gone.
        ImageError: An image cannot be read or decoded (any more).
    """
    wanted = set(image_ids)
    by_unit: dict[str, set[str]] = defaultdict(set)
    for table in results.images(["image_id", "unit"]):
        for row in table.to_pylist():
            if row["image_id"] in wanted:
                by_unit[row["unit"]].add(row["image_id"])
    absent = wanted.difference(*by_unit.values())
    if absent:
        raise UsageError(f"{results.prefix} has no image {min(absent)}.")
    units = _units(results.storage, results.prefix)
    found: dict[str, np.ndarray] = {}
    for name, ids in by_unit.items():
        if name not in units:
            raise UsageError(f"No plan of {results.prefix} holds unit {name}.")
        found |= _read(units[name], ids, results.storage, source, decoding)
    return found


def _units(storage: Storage, prefix: str) -> dict[str, Unit]:
    """Units of all plans of an edition, by id."""
    plans = [info.uri for info in storage.list(join(prefix, "plans"))]
    return {
        unit.unit: unit
        for uri in plans
        if uri.endswith(".parquet")
        for unit in decode_plan(storage.read(uri), uri).units
    }


def _read(
    unit: Unit, ids: set[str], storage: Storage, source: SourceOptions, decoding: DecodeOptions
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for sample in read_unit(unit, storage, source):
        if sample.image_id in ids:
            if sample.error is not None:
                raise sample.error
            found[sample.image_id] = decode_image(sample.data or b"", decoding)
        if len(found) == len(ids):
            return found
    raise UsageError(
        f"{min(ids - set(found))} is no longer in the archive.",
        "It changed after the run; run again.",
    )
