"""What tests of `segcore reprocess` share: a call, and the tables that readers find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segcore.config import load_config
from segcore.config.reprocess import ReprocessConfig
from segcore.errors import SegcoreError
from segcore.output.results import open_results
from segcore.run.reprocess import reprocess
from segcore.run.reprocess_report import ReprocessReport
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.jobs import BRIGHT_MODEL, job_config

BLIND_MODEL = "tests.support.fake_models:BlindModel"
STUCK_MODEL = "tests.support.fake_models:StuckModel"


def night_config(folder: Path, *sets: str, model: str = BRIGHT_MODEL) -> ReprocessConfig:
    """The configuration of a night on the archive `in`, in units of three images."""
    flags = {
        "input": ("input", str(folder / "in")),
        "output": ("output", str(folder / "out")),
        "model": ("model.name", model),
    }
    sets = ("plan.images=3", "run.lease_ttl_s=5", *sets)
    return load_config(sets=list(sets), flags=flags, schema=ReprocessConfig)


def night(folder: Path, *sets: str, model: str = BRIGHT_MODEL, date: str = "") -> ReprocessReport:
    """One call of the scheduler."""
    return reprocess(night_config(folder, *sets, model=model), logical_date=date)


def published_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The published tables, sorted, without the column `unit`; empty if nothing is published."""
    try:
        return _rows(str(folder / "out"))
    except SegcoreError:
        return {}


def fresh_rows(folder: Path, name: str, *sets: str, model: str = BRIGHT_MODEL) -> dict[str, Any]:
    """The tables of one run over the archive as it is now, into an output of its own."""
    output = folder / "fresh" / name
    segment(job_config(folder / "in", output, *sets, model=model))
    return _rows(str(output))


def _rows(output: str) -> dict[str, list[dict[str, Any]]]:
    results = open_results(Storage(), output)
    tables = {}
    for table in ("images", "instances"):
        rows = results.to_arrow(table).to_pylist()  # type: ignore[arg-type]
        for row in rows:
            row.pop("unit", None)
        tables[table] = sorted(rows, key=lambda r: (r["image_id"], r.get("instance_index", 0)))
    return tables
