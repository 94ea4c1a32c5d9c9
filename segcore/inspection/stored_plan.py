"""The plan of a run as it is stored, some units at a time: plans of 10**8 images do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import SegcoreError
from segcore.inspection.image_checks import PlannedPart
from segcore.output.layout import EditionLayout
from segcore.output.plan_columns import read_plan_columns
from segcore.planning.plan import Units, run_name
from segcore.planning.plan_files import PLAN_VERSION
from segcore.sources.unit_tables import STORED_UNIT_SCHEMA, UNIT_SCHEMA, from_stored_batch
from segcore.sources.units import Unit
from segcore.storage import Storage

_BATCH_UNITS = 512  # a row group of a plan has as many
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredPlan:
    """The plan of a run.

    Attributes:
        ids: Of all its units.
    """

    storage: Storage
    uri: str
    run: str
    ids: frozenset[str] = field(repr=False)

    def parts(self) -> Iterator[tuple[str, PlannedPart]]:
        """Each unit with what is planned for it.

        Raises:
            SegcoreError: The rest of the plan cannot be read.
        """
        for batch in self._batches():
            yield from _planned_parts(batch)

    def tar_units(self) -> Iterator[Unit]:
        """The units that are tar shards or pieces of them.

        Raises:
            SegcoreError: The rest of the plan cannot be read.
        """
        for batch in self._batches():
            tars = batch.filter(pc.equal(batch["kind"], "tar"))
            if tars.num_rows:
                yield from Units(pa.Table.from_batches([from_stored_batch(tars)], UNIT_SCHEMA))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with _reading(self.storage, self.uri) as file:
            for batch in file.iter_batches(_BATCH_UNITS, use_threads=False):
                batch.validate(full=True)
                yield batch


def open_stored_plan(storage: Storage, layout: EditionLayout, run: str) -> StoredPlan:
    """The plan of a run; its ids must be those that give its name.

    Raises:
        ObjectNotFound: It does not exist.
        SegcoreError: It is damaged, or not a plan.
    """
    uri = layout.plan(run)
    with _reading(storage, uri) as file:
        metadata = file.schema_arrow.metadata or {}
        version = metadata.get(b"segcore.plan", b"none").decode("utf-8", "replace")
        if version != str(PLAN_VERSION):
            raise SegcoreError(
                f"{uri} is not a plan of version {PLAN_VERSION} (its version: {version})."
            )
        if not file.schema_arrow.equals(STORED_UNIT_SCHEMA):
            raise SegcoreError(f"{uri} does not have the columns of a plan.")
        ids = read_plan_columns(storage, uri, ["unit"])
        ids.validate(full=True)
    stated = metadata.get(b"segcore.run", b"").decode("utf-8", "replace")
    if run_name(ids) != stated:
        raise SegcoreError(f"{uri} is damaged: its units do not match its name.")
    if stated != run:
        raise SegcoreError(f"{uri} is the plan of another run, {stated}.")
    return StoredPlan(storage, uri, run, frozenset(ids["unit"].to_pylist()))


@contextmanager
def _reading(storage: Storage, uri: str) -> Iterator[pq.ParquetFile]:
    """The file of a plan; whatever is wrong with it is a SegcoreError."""
    try:
        with storage.open(uri, _BUFFER_BYTES) as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SegcoreError(f"{uri} cannot be read: {error}") from error


def _planned_parts(batch: pa.RecordBatch) -> Iterator[tuple[str, PlannedPart]]:
    names = ("unit", "kind", "shard", "n_images")
    columns = (batch[name].to_pylist() for name in names)
    members = batch["members"]
    offsets = members.offsets.to_pylist()
    values = members.values  # an id that is equal to the URI is not stored
    image_ids = pc.coalesce(values.field("image_id"), values.field("uri"))
    etags = values.field("etag")
    for number, (unit, kind, shard, n_images) in enumerate(zip(*columns, strict=True)):
        # Copies: a slice would be sent to another process with all that it is a slice of.
        rows = pa.array(np.arange(offsets[number], offsets[number + 1]))
        ids_and_etags = (column.take(rows).cast(pa.string()) for column in (image_ids, etags))
        yield unit, PlannedPart(kind, shard, n_images, *ids_and_etags)
