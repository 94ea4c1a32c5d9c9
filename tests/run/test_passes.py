"""The passes of a run with a pool that needs no Ray: what they hand to it, and what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from segcore.distributed.actors import ActorSpec, UnitOutcome
from segcore.distributed.pool import PoolSize
from segcore.models.registry import load_model
from segcore.output.report import RunReport
from segcore.planning.plan import Units
from segcore.run.segment import segment
from segcore.sources.units import Unit
from segcore.worker.unit_worker import UnitWorker
from tests.support.bright_images import bright_pngs
from tests.support.jobs import job_config, write_files

POOL = PoolSize(2, 2, cpus=1, gpus=0, device="cpu")
N_IMAGES = 14  # in five units of up to three


@dataclass
class _Pool:
    """Stands for `Pipeline` and its processes.

    Attributes:
        deadly: Position in the plan of a unit that ends its process, unless it is isolated.
        handed_out, isolated: Units that it was given, in this order.
        begun: Units that a process has begun.
    """

    deadly: int | None = None
    handed_out: list[str] = field(default_factory=list)
    isolated: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)

    def __call__(self, spec: ActorSpec, pool: PoolSize, **options: Any) -> _Pool:
        model = load_model(spec.model, spec.options, spec.weights)
        self._worker = UnitWorker(model, spec.read_options, spec.parts)
        return self

    def run(self, units: Units) -> Iterator[UnitOutcome]:
        self.handed_out += units.ids()
        for position, unit in enumerate(units):
            self.begun.append(unit.unit)
            if position != self.deadly:
                yield self._segment(unit)

    def isolate(self, units: Units) -> Iterator[UnitOutcome]:
        self.isolated += units.ids()
        for unit in units:
            yield self._segment(unit)

    def _segment(self, unit: Unit) -> UnitOutcome:
        counts = self._worker.segment(unit)
        return UnitOutcome(unit.unit, counts.ok, counts.failed, counts.instances)

    def snapshot(self) -> None:
        return None

    def problems(self) -> list[str]:
        return []

    def take_log(self) -> list[Any]:
        return []

    def samples(self) -> dict[Any, float]:
        return {}


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> _Pool:
    pool = _Pool()
    monkeypatch.setattr("segcore.distributed.pipeline.Pipeline", pool)
    for module in ("segment", "passes"):
        monkeypatch.setattr(
            f"segcore.run.{module}.connect_workers", lambda *args: nullcontext(POOL)
        )
    return pool


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_files(tmp_path / "in", bright_pngs(N_IMAGES))
    return tmp_path


def _run(folder: Path, *sets: str) -> RunReport:
    return segment(job_config(folder / "in", folder / "out", "plan.images=3", *sets))


@pytest.mark.parametrize(
    ("max_images", "done"),
    [(1, [3, 3, 3, 3, 2]), (4, [3, 3, 3, 3, 2]), (7, [6, 6, 2]), (13, [12, 2]), (14, [14])],
)
def test_a_budget_of_images_holds_for_all_attempts(
    archive: Path, pool: _Pool, max_images: int, done: list[int]
) -> None:
    reports = []
    while not reports or reports[-1].status != "success":
        reports.append(_run(archive, f"run.max_images={max_images}", "run.attempts=3"))
        assert len(reports) <= len(done)
    assert [report.images_this_time for report in reports] == done
    assert [report.status for report in reports[:-1]] == ["budget_reached"] * (len(done) - 1)
    assert pool.handed_out == pool.begun
    assert len(set(pool.begun)) == len(pool.begun) == 5  # each unit once, in all calls together
    assert not pool.isolated


def test_only_units_of_the_pass_are_tried_again(archive: Path, pool: _Pool) -> None:
    pool.deadly = 1
    report = _run(archive, "run.max_images=6")
    assert (report.status, report.images) == ("budget_reached", 6)
    assert pool.isolated == pool.begun[1:2]
    assert len(pool.handed_out) == 2


def test_a_deadline_ends_a_run_when_a_unit_is_done(archive: Path, pool: _Pool) -> None:
    report = _run(archive, "run.max_seconds=1e-9")
    assert (report.status, report.images_this_time) == ("budget_reached", 3)
    assert len(pool.begun) == 1
    assert _run(archive).images_this_time == N_IMAGES - 3
