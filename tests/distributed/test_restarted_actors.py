"""A process that takes the place of one that died does not do its finished units once more."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from segcore.distributed import actors
from segcore.distributed.actors import ActorSpec, UnitActor
from segcore.images import DecodeOptions
from segcore.models.base import ModelOptions
from segcore.output.edition import make_edition
from segcore.output.parts import Parts
from segcore.output.unit_counts import UnitCounts
from segcore.sources import SourceOptions
from segcore.sources.unit_tables import units_to_table
from segcore.sources.units import Unit
from segcore.storage import Storage
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker
from tests.support.bright_images import bright_pngs, unit_of_files
from tests.support.jobs import BRIGHT_MODEL


def _actor(
    parts: Parts, restarted: bool, retry: bool, patch: pytest.MonkeyPatch, **changes: Any
) -> UnitActor:
    patch.setattr(actors, "register_current_actor", lambda progress: "node")
    patch.setattr(actors, "was_restarted", lambda: restarted)
    patch.setattr(actors, "_limit_memory", lambda spec: None)
    options = ReadOptions(parts.storage, SourceOptions(), DecodeOptions(), 1, 1 << 24)
    model = actors.load_model(BRIGHT_MODEL, ModelOptions(device="cpu"), None)
    edition = make_edition(replace(model.info, **changes), DecodeOptions())
    spec = ActorSpec(BRIGHT_MODEL, None, edition, ModelOptions(device="cpu"), options, parts)
    return UnitActor(spec, MagicMock(), retry)


def test_a_worker_that_would_make_another_edition_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "_SETUP_FAILURE_PAUSE_S", 0.0)
    parts = Parts(Storage(), str(tmp_path / "out"), "e", "r", "CC0-1.0", ((1, "bright"),))
    actor = _actor(parts, False, False, monkeypatch, parameters={"conf": 0.5})
    unit = unit_of_files(tmp_path / "a", bright_pngs(2))
    outcome = actor(units_to_table([unit]))
    assert outcome["setup_failed"] == [True]
    assert "model.parameters.conf: 0.5 -> 0.25" in outcome["error"][0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("retry", [False, True])
def test_units_that_are_done_are_left_alone(
    tmp_path: Path, restarted: bool, retry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(Storage(), str(tmp_path / "out"), "e", "r", "CC0-1.0", ((1, "bright"),))
    units = [unit_of_files(tmp_path / name, bright_pngs(n)) for name, n in (("a", 3), ("b", 2))]
    first = _actor(parts, False, False, monkeypatch)(units_to_table(units[:1]))
    if retry:
        _actor(parts, False, False, monkeypatch)(units_to_table(units[1:]))

    segmented = []
    segment = UnitWorker.segment

    def watched(worker: UnitWorker, unit: Unit, *args: object, **options: bool) -> object:
        segmented.append(unit.unit)
        return segment(worker, unit, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(UnitWorker, "segment", watched)
    actor = _actor(parts, restarted, retry, monkeypatch)
    outcomes = actor(units_to_table(units))
    done_before = restarted and not retry
    assert segmented == [unit.unit for unit in (units[1:] if done_before else units)]
    assert outcomes["ok"] == [3, 2]
    assert outcomes["instances"] == [3, 2]
    assert outcomes["error"] == ["", ""]
    told = UnitCounts.from_text(first["counts"][0])
    assert asdict(told.counts) | {"written": None} == asdict(parts.find_counts(units[0].unit))
