"""segcore demo: draw an archive with known masks, segment it, measure, and show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from segcore.cli.console import JsonFlag, notify, print_json

EPILOG = """
[bold]Examples[/bold]

  segcore demo

  segcore demo --images 100 --out /tmp/demo

  segcore demo --s3

Exit codes: 0 all as expected; 1 the rows do not match what was broken on purpose, the masks are
worse than they should be, or infrastructure failed; 2 usage error; 130 interrupted.
"""


def command(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        "demo-output"
    ),
    images: Annotated[int, typer.Option(min=1, max=100_000, help="Images to draw.")] = 400,
    model: Annotated[
        str | None,
        typer.Option(
            help="Bundled name or checkpoint path. Default: nuclei-yolo11n.", show_default=False
        ),
    ] = None,
    s3: Annotated[
        bool,
        typer.Option("--s3", help="Put archive and tables on an S3 server started on loopback."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Draw microscopy images with known masks, segment them, and measure the masks found.

    Makes an archive of tar shards with a few members broken on purpose; runs the whole pipeline on
    it with the bundled model; checks that every image is accounted for; and leaves the tables, the
    ground truth, a contact sheet and the report of `segcore report` in OUT.
    """
    from segcore.demo.folder import claim_folder, copy_results, loopback_bucket
    from segcore.demo.run import DemoOptions, run_demo
    from segcore.demo.summary import print_summary

    claim_folder(out)
    if s3:
        with loopback_bucket(out, notify) as base:
            report = run_demo(DemoOptions(out, base, images, model), notify)
            copy_results(report, base, out)
    else:
        report = run_demo(DemoOptions(out, str(out.absolute()), images, model), notify)
    print_json(report.to_dict()) if as_json else print_summary(report)
    problems = report.problems()
    notify(*(f"Error: {problem}" for problem in problems))
    sys.exit(1 if problems else 0)
