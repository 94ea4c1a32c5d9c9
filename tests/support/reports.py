"""Reports of runs that nobody made, for tests of what people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from segcore.output.part_counts import PartCounts
from segcore.output.report import SUCCESS, Account, RunReport, reconcile
from segcore.output.unit_counts import UnitCounts, unit_counts_table


def make_report(**changes: Any) -> RunReport:
    """The report of a published run without images, with these fields changed."""
    report = RunReport(
        status=SUCCESS,
        run="0123456789abcdef",
        edition="model-0123",
        input="/in",
        output="/out",
        prefix="/out/model-0123",
        model="model",
        sequence=1,
        max_failed_fraction=0.01,
        published="model-0123",
    )
    return replace(report, **changes)


def account_of(planned: Mapping[str, int | None], counts: Iterable[PartCounts]) -> Account:
    """The account of units with these numbers of images, whose parts say `counts`."""
    units = pa.table(
        {
            "unit": pa.array(list(planned), pa.string()),
            "n_images": pa.array(list(planned.values()), pa.int64()),
        }
    )
    return reconcile(units, unit_counts_table(UnitCounts(part, 0, 1, "e") for part in counts))
