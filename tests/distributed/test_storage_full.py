"""A full disk ends a run with the first unit that cannot be committed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from segcore.distributed.actors import UnitOutcome, failed_outcome
from segcore.distributed.node_failures import (
    MAX_CONSECUTIVE_FAILURES,
    ClusterView,
    NodeFailures,
)
from segcore.distributed.pipeline import Pipeline
from segcore.distributed.pool import PoolSize
from segcore.errors import StorageError, StorageFull
from segcore.planning.plan import Units
from segcore.sources.unit_tables import units_from_table, units_to_table
from segcore.sources.units import Unit
from segcore.storage import Storage, local_disk

UNITS = Units(units_to_table(Unit(f"{i:020}", "objects", "", "", 0, 1, 1, 1) for i in range(50)))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_and_no_quota_are_storage_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_room(handle: int) -> None:
        raise OSError(code, "no room")

    monkeypatch.setattr(local_disk.os, "fsync", no_room)
    for write in (Storage().write, Storage().write_if_absent):
        with pytest.raises(StorageFull, match="cannot be written: no room") as caught:
            write(str(tmp_path / "x"), b"new")
        assert "rerun the same command" in caught.value.hint


@pytest.mark.parametrize("n_done", [0, 3])
@pytest.mark.parametrize("error", [StorageFull("no room"), StorageError("timeout")])
def test_a_full_disk_stops_the_pipeline_at_once(n_done: int, error: StorageError) -> None:
    taken: list[str] = []

    class Simulated(Pipeline):
        def __init__(self) -> None:
            self._pool = PoolSize(2, 2, cpus=1, gpus=0, device="cpu")
            one_node = ClusterView(frozenset([""]), frozenset([""]))
            self._nodes = NodeFailures(lambda: one_node, {})

        def _recent_deaths(self) -> dict[str, int]:
            return {}

        def _measure(self, name: str, value: float) -> None:
            pass

        def _run_graph(self, blocks: list[pa.Table], *_: object) -> Iterator[UnitOutcome]:
            for unit in units_from_table(pa.concat_tables(blocks)):
                taken.append(unit.unit)
                done = len(taken) <= n_done
                yield UnitOutcome(unit.unit, ok=1) if done else failed_outcome(unit, error)

    with pytest.raises(type(error)) as caught:
        list(Simulated()._run_units(UNITS, lambda n_units: []))
    is_full = isinstance(error, StorageFull)
    assert isinstance(caught.value, StorageFull) == is_full
    assert len(taken) == n_done + (1 if is_full else MAX_CONSECUTIVE_FAILURES)
