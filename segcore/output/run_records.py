"""What an edition's folder says about its runs: records and plans, without a model or Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from segcore.errors import SegcoreError, UsageError
from segcore.planning.plan import Plan
from segcore.planning.plan_files import decode_plan
from segcore.storage import Storage, join

_MAX_JSON = 16 << 20
_READERS = 16


@dataclass(frozen=True)
class RunRecord:
    """One file of ``runs/``.

    Attributes:
        uri: The file.
        changed: When it was last written, seconds since 1970 by the clock of the storage. While
            the run goes on, that is when it began.
        values: What it says; see `segcore.output.report.RunReport`.
    """

    uri: str
    changed: float
    values: dict[str, Any]

    @property
    def run(self) -> str:
        """Name of its plan."""
        return str(self.values["run"])

    @property
    def sequence(self) -> int:
        """Orders the runs of an edition."""
        return int(self.values["sequence"])

    @property
    def status(self) -> str:
        """``running``, or how it ended."""
        return str(self.values["status"])


def read_run_records(storage: Storage, prefix: str) -> list[RunRecord]:
    """All runs of an edition, oldest first.

    Raises:
        UsageError: A file in ``runs/`` is no record; names it.
    """
    found = [
        (info.uri, changed)
        for info, changed in storage.list_dated(join(prefix, "runs"))
        if info.uri.endswith(".json")
    ]

    def read(item: tuple[str, float]) -> RunRecord:
        uri, changed = item
        try:
            values = json.loads(storage.read(uri, _MAX_JSON))
            record = RunRecord(uri, changed, values)
            needed = (record.sequence, record.run, record.status, values["input"], values["failed"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{uri} is not a run record of segcore.", hint="Delete it, and run again."
            ) from None
        assert needed
        return record

    with ThreadPoolExecutor(_READERS) as pool:
        return sorted(pool.map(read, found), key=lambda record: record.sequence)


def read_plan(storage: Storage, prefix: str, run: str) -> Plan:
    """The stored plan of a run.

    Raises:
        ObjectNotFound: It is not there.
        SegcoreError: It is damaged.
    """
    uri = join(prefix, "plans", f"{run}.parquet")
    plan = decode_plan(storage.read(uri), uri)
    if plan.run != run:
        raise SegcoreError(f"{uri} is the plan of another run, {plan.run}.")
    return plan


def planned_units(plan: Plan) -> Iterator[tuple[str, int | None, int]]:
    """(unit, its images where known, its bytes) of a plan, from its columns."""
    table = plan.units.table
    columns = (table[name].to_pylist() for name in ("unit", "n_images", "n_bytes"))
    yield from zip(*columns, strict=True)
