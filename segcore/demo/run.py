"""The demo from its options to its report: draw, segment, check, evaluate, show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segcore.config import Config, load_config
from segcore.demo.checks import check_rows
from segcore.demo.contact_sheet import draw_contact_sheet
from segcore.evaluation.evaluate import EvaluationReport, evaluate
from segcore.output.report import RunReport
from segcore.output.results import open_results
from segcore.reporting.report import ReportOptions, make_report
from segcore.run.segment import segment
from segcore.storage import Storage, join
from segcore.testing.synthetic_archive import SyntheticArchive, write_archive

# What the bundled model must reach on the demo's images; a lower AP50 means that something broke.
AP50_FLOOR = 0.80
_BROKEN_FRACTION = 0.0175  # seven of 400: one of each kind
_MAX_FAILED_FRACTION = 0.05  # images broken on purpose must not make the run count as failed


@dataclass(frozen=True)
class DemoOptions:
    """What to do.

    Attributes:
        out: Local folder for the contact sheet.
        base: Folder or prefix for archive and tables, local or s3://.
        model: None for the bundled one.
    """

    out: Path
    base: str
    images: int
    model: str | None = None
    ap50_floor: float = AP50_FLOOR


@dataclass
class DemoReport:
    """What came out of it.

    Attributes:
        page: The report of `segcore report`, an HTML file.
        tables: Local folder or URI with `images` and `instances` of the edition.
        unexpected: Sentences about rows that are not what the archive must give.
        seconds: Of each step.
    """

    archive: SyntheticArchive
    run: RunReport
    evaluation: EvaluationReport
    contact_sheet: Path
    page: Path
    tables: str
    ap50_floor: float
    unexpected: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Why the demo failed; empty if it did not."""
        problems = list(self.unexpected)
        ap50 = self.evaluation.scores.mask.ap50
        if not ap50 >= self.ap50_floor:
            problems.append(f"mask AP50 is {ap50:.3f}; at least {self.ap50_floor:.2f} is expected.")
        return problems

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ok": not self.problems(),
            "problems": self.problems(),
            "archive": asdict(self.archive),
            "run": self.run.to_dict(),
            "evaluation": self.evaluation.to_dict(),
            "ap50_floor": self.ap50_floor,
            "tables": self.tables,
            "contact_sheet": str(self.contact_sheet),
            "report": str(self.page),
            "seconds": self.seconds,
        }


def run_demo(
    options: DemoOptions,
    notify: Callable[[str], None] = lambda message: None,
    run_segment: Callable[[Config], RunReport] | None = None,
) -> DemoReport:
    """Draw an archive, segment it, check every row, measure the masks, draw a contact sheet,
    and write a report.

    Args:
        notify: Takes messages for people while the demo goes on.
        run_segment: Replaces `segcore.run.segment.segment` in tests.

    Raises:
        SegcoreError: A step could not be done at all.
    """
    storage, timer = Storage(), _StepTimer()
    n_broken = round(options.images * _BROKEN_FRACTION)
    broken = f", {n_broken} of them broken on purpose" if n_broken else ""
    notify(f"Drawing {options.images:,} images of nuclei with known masks{broken} ...")
    archive = write_archive(storage, join(options.base, "archive"), options.images, n_broken)
    timer.end_step("draw")
    notify(f"Segmenting {archive.shards} ...")
    config = _demo_config(options, archive)
    if run_segment is not None:
        report = run_segment(config)
    else:
        report = segment(config, overwrite=True, notify=notify)
    timer.end_step("segment")
    notify("Comparing with the known masks ...")
    results = open_results(storage, report.output, report.edition)
    unexpected = check_rows(archive, results.images(["image_id", "status", "error_code"]))
    evaluation = evaluate(storage, report.output, archive.ground_truth, report.edition)
    timer.end_step("evaluate")
    contact_sheet = options.out / "contact-sheet.png"
    contact_sheet.write_bytes(draw_contact_sheet(results, archive))
    timer.end_step("draw_sheet")
    page = make_report(results, ReportOptions(ground_truth=archive.ground_truth))
    unexpected += page.problems
    page_file = options.out / "report.html"
    page_file.write_bytes(page.html)
    timer.end_step("report")
    return DemoReport(
        archive=archive,
        run=report,
        evaluation=evaluation,
        contact_sheet=contact_sheet,
        page=page_file,
        tables=report.prefix,
        ap50_floor=options.ap50_floor,
        unexpected=unexpected,
        seconds=timer.seconds,
    )


class _StepTimer:
    """Seconds of steps that follow one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._step_start = time.monotonic()

    def end_step(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._step_start = round(now - self._step_start, 2), now


def _demo_config(options: DemoOptions, archive: SyntheticArchive) -> Config:
    return load_config(
        flags={
            "INPUT": ("input", archive.shards),
            "OUTPUT": ("output", join(options.base, "masks")),
            "--model": ("model.name", options.model),
            "demo": ("run.max_failed_fraction", _MAX_FAILED_FRACTION),
            "demo publishes": ("run.publish", True),
        }
    )
