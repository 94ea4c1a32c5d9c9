"""Plans as Parquet files."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import SegcoreError
from segcore.planning.plan import Plan, Units, run_name
from segcore.sources.unit_tables import (
    STORED_UNIT_SCHEMA,
    UNIT_SCHEMA,
    from_stored_batch,
    to_stored_tables,
)
from segcore.text import redact

PLAN_VERSION = 1
_BATCH_UNITS = 512


def encode_plan(plan: Plan) -> bytes:
    """The plan as a Parquet file; equal plans give equal bytes."""
    metadata = {
        "segcore.plan": str(PLAN_VERSION),
        "segcore.run": plan.run,
        "segcore.input": redact(plan.input),
        "segcore.fingerprint": plan.fingerprint,
    }
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        STORED_UNIT_SCHEMA.with_metadata(metadata),
        compression="zstd",
        compression_level=3,
        use_dictionary=["kind", "shard", "etag", "reader"],
        column_encoding={"members.list.element.uri": "DELTA_BYTE_ARRAY"},
    ) as writer:
        for table in to_stored_tables(plan.units.table):
            writer.write_table(table.replace_schema_metadata(metadata))
    return sink.getvalue()


def decode_plan(data: bytes, name: str = "the plan") -> Plan:
    """Inverse of `encode_plan`.

    Args:
        data: The content of the file.
        name: Where it came from, for error messages.

    Raises:
        SegcoreError: It is not a plan, is damaged, or has another version.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
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
        batches = [
            from_stored_batch(batch) for batch in file.iter_batches(_BATCH_UNITS, use_threads=False)
        ]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SegcoreError(f"{name} cannot be read: {error}") from error
    units = pa.Table.from_batches(batches, UNIT_SCHEMA)
    if run_name(units) != metadata["segcore.run"]:
        raise SegcoreError(f"{name} is damaged: its units do not match its name.")
    return Plan(
        run=metadata["segcore.run"],
        input=metadata["segcore.input"],
        units=Units(units),
        fingerprint=metadata["segcore.fingerprint"],
    )
