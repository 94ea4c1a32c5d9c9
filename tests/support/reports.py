"""Reports of runs that nobody made, for tests of what people read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segcore.output.report import SUCCESS, RunReport


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
