"""What the demo prints for people: a table of results, and commands that open the tables."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from segcore.demo.run import DemoReport
from segcore.output.layout import EditionLayout
from segcore.storage import is_remote
from segcore.text import plural


def print_summary(report: DemoReport) -> None:
    """Print the summary to stdout."""
    run, scores = report.run, report.evaluation.scores
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="Demo", title_justify="left")
    table.add_column()
    table.add_column()
    reasons = ", ".join(f"{code} {count}" for code, count in run.failures.items())
    verdict = "all as expected" if not report.unexpected else "NOT AS EXPECTED"
    table.add_row("images", f"{run.images:,} in {plural(report.archive.n_shards, 'tar shard')}")
    table.add_row("  segmented", f"{run.ok:,}")
    if reasons or report.archive.broken:
        table.add_row("  broken on purpose", f"{run.failed:,}, {verdict} ({reasons or 'none'})")
    table.add_row("nuclei drawn", f"{report.archive.n_instances:,}")
    table.add_row("masks found", f"{run.instances:,}")
    table.add_row("mask AP50", f"{scores.mask.ap50:.3f}")
    table.add_row("mask AP (50-95)", f"{scores.mask.ap:.3f}")
    table.add_row("box AP (50-95)", f"{scores.box.ap:.3f}")
    table.add_row("speed", f"{run.images_per_second:.1f} images/s, {run.pool}")
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    table.add_row("time", f"{sum(report.seconds.values()):.0f} s ({steps})")
    Console(markup=False, emoji=False).print(table)
    print(f"Contact sheet   {_relative_path(report.contact_sheet)}")
    print(f"Report          {_relative_path(report.page)}  (open it in a browser)")
    if not is_remote(report.archive.shards):  # a loopback server ends with the demo
        output = EditionLayout(report.tables).output.uri
        print(f"More pictures   segcore show {shlex.quote(_relative_path(output))}")
    layout = EditionLayout(report.tables)
    print(f"Tables          {_relative_path(layout.parts_pattern('images'))}")
    print(f"                {_relative_path(layout.parts_pattern('instances'))}")
    pandas, duckdb = one_liners(report.tables)
    print(f"\nOpen them with pandas:\n  {pandas}")
    print(f"or with DuckDB (pip install duckdb):\n  {duckdb}")


def one_liners(tables: str) -> tuple[str, str]:
    """Shell commands that open the tables with pandas and with DuckDB."""
    layout, python = EditionLayout(tables), shlex.quote(_relative_path(sys.executable))
    folder = _relative_path(layout.parts_folder("instances"))
    files = _relative_path(layout.parts_pattern("instances"))
    files = files.replace("'", "''")  # SQL doubles a quote
    pandas = (
        f"import pandas as pd; print(pd.read_parquet({folder!r})"
        ".groupby('category')[['area', 'score']].describe().T)"
    )
    sql = (
        "SELECT category, count(*) AS masks, round(avg(area), 1) AS mean_area, "
        f"round(avg(score), 3) AS mean_score FROM '{files}' GROUP BY category"
    )
    duckdb = f"import duckdb; print(duckdb.sql('''{sql}'''))"
    return f"{python} -c {_quote_code(pandas)}", f"{python} -c {_quote_code(duckdb)}"


def _quote_code(code: str) -> str:
    """A shell word, in double quotes where that is enough: easier to read and to change."""
    needs_escapes = set('"$`\\!') & set(code)
    return shlex.quote(code) if needs_escapes else f'"{code}"'


def _relative_path(path: str | Path) -> str:
    """Relative to the working folder if the path lies in it; else as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
