"""segcore report: one HTML file about an output."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from segcore.cli.console import (
    IncludeUnlisted,
    JsonFlag,
    PublishedEdition,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    unit_progress,
)
from segcore.errors import UsageError
from segcore.exit_codes import ExitCode
from segcore.text import format_bytes

EPILOG = """
[bold]Examples[/bold]

  segcore report out/

  segcore report out/ --ground-truth instances_val.json --out report.html

  segcore report s3://bucket/masks --against nuclei-0123456789ab --out s3://bucket/report.html

The file needs neither network nor JavaScript, holds small copies of some images, and has at most
10 MB. What cannot be read, such as an image that is gone, is said in it.

Exit codes: 0 done; 1 the report was written, but something is missing in it; 2 usage error; 130
interrupted.
"""
_MAX_PROBLEMS = 5


def command(
    output: RunOutput,
    ground_truth: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="COCO instances JSON to measure against. Local or s3://.",
            show_default=False,
        ),
    ] = "",
    against: Annotated[
        str,
        typer.Option(
            metavar="EDITION",
            help="What to compare with: an edition in OUTPUT, or another output or the prefix of "
            "an edition, with a slash in it.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="The .html file to write. Local or s3://. Default: EDITION-report.html here.",
            show_default=False,
        ),
    ] = "",
    edition: PublishedEdition = None,
    images: Annotated[
        int, typer.Option(min=1, max=50, help="Most images of each kind in the gallery.")
    ] = 8,
    ranking: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Also show the first images of this ranking, which `segcore rank` made.",
            show_default=False,
        ),
    ] = "",
    price: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="What an hour of all machines of the run costs, in any currency: the report then "
            "tells what the last execution cost, and a million images.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    include_unlisted: IncludeUnlisted = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML file about an output: run, counts, histograms, images with masks, scores."""
    from segcore.output.results import open_results
    from segcore.reporting.report import ReportOptions, make_report

    if out and not out.lower().endswith((".html", ".htm")):
        raise UsageError(f"--out {out} is no name of an HTML file.", "Let it end with .html.")
    storage = open_storage(sets)
    results = open_results(storage, output, edition, include_unlisted=include_unlisted)
    options = ReportOptions(ground_truth, against, images, seed, include_unlisted, ranking, price)
    report = make_report(results, options, unit_progress("read"))
    target = out or f"{results.name}-report.html"
    storage.write(target, report.html)
    if as_json:
        print_json({
            "edition": report.edition,
            "file": target,
            "bytes": len(report.html),
            "section_bytes": dict(report.section_bytes),
            "problems": list(report.problems),
        })  # fmt: skip
    notify(*results.edition_notes, *results.remarks(), *report.remarks)
    notify(*report.problems[:_MAX_PROBLEMS])
    if (more := len(report.problems) - _MAX_PROBLEMS) > 0:
        notify(f"{more:,} more; the report lists them.")
    notify(f"Wrote {target} ({format_bytes(len(report.html))}). Open it in a browser.")
    sys.exit(ExitCode.INCOMPLETE if report.problems else ExitCode.DONE)
