"""Plans as Parquet files."""

from __future__ import annotations

import io
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import SegcoreError
from segcore.planning.plan import Plan, Units, run_name
from segcore.sources.parallel import map_in_order
from segcore.sources.unit_tables import (
    BATCH_UNITS,
    STORED_UNIT_SCHEMA,
    UnitTableBuilder,
    from_stored_batch,
    to_stored_table,
    unit_batches,
)
from segcore.text import redact

PLAN_VERSION = 1


def encode_plan(plan: Plan) -> bytes:
    """The plan as a Parquet file; equal plans give equal bytes."""
    sink = io.BytesIO()
    write_plan(plan, sink)
    return sink.getvalue()


def write_plan(plan: Plan, sink: BinaryIO) -> None:
    """Write what `encode_plan` gives, some units at a time."""
    metadata = {
        "segcore.plan": str(PLAN_VERSION),
        "segcore.run": plan.run,
        "segcore.input": redact(plan.input),
        "segcore.fingerprint": plan.fingerprint,
    }
    with pq.ParquetWriter(
        sink,
        STORED_UNIT_SCHEMA.with_metadata(metadata),
        compression="zstd",
        compression_level=3,
        use_dictionary=["kind", "shard", "etag", "reader"],
        column_encoding={"members.list.element.uri": "DELTA_BYTE_ARRAY"},
    ) as writer:
        for table in map_in_order(to_stored_table, unit_batches(plan.units.table)):
            writer.write_table(table.replace_schema_metadata(metadata))


def decode_plan(data: bytes | BinaryIO, name: str = "the plan") -> Plan:
    """Inverse of `encode_plan`.

    Args:
        data: The content of the file, or the open file.
        name: Where it came from, for error messages.

    Raises:
        SegcoreError: It is not a plan, is damaged, or has another version.
    """
    builder = UnitTableBuilder()
    try:
        file = pq.ParquetFile(io.BytesIO(data) if isinstance(data, bytes) else data)
        metadata = {
            key.decode(): value.decode()
            for key, value in (file.schema_arrow.metadata or {}).items()
        }
        version = metadata.get("segcore.plan", "none")
        if version != str(PLAN_VERSION):
            raise SegcoreError(
                f"{name} is not a plan of version {PLAN_VERSION} (its version: {version})."
            )
        if not file.schema_arrow.equals(STORED_UNIT_SCHEMA):
            raise SegcoreError(f"{name} does not have the columns of a plan.")
        stored_batches = file.iter_batches(BATCH_UNITS, use_threads=False)
        for batch in map_in_order(from_stored_batch, stored_batches):
            builder.add_batch(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SegcoreError(
            f"{name} cannot be read: {error}",
            "Restore it from a copy. If that cannot be done, delete it and run the same command "
            "again: the archive is planned anew.",
        ) from error
    units = builder.finish()
    if run_name(units) != metadata["segcore.run"]:
        raise SegcoreError(f"{name} is damaged: its units do not match its name.")
    return Plan(
        run=metadata["segcore.run"],
        input=metadata["segcore.input"],
        units=Units(units),
        fingerprint=metadata["segcore.fingerprint"],
    )
