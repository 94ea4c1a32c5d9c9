"""segcore failures: the images of an output that failed, and why."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

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
    print_table,
    safe_cell,
)
from segcore.text import plural, printable

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """
[bold]Examples[/bold]

  segcore failures out/

  segcore failures out/ --code corrupt --code empty

  segcore failures s3://bucket/masks --csv > failed.csv

To try them again: segcore segment INPUT OUTPUT --retry-failed
"""
_SHOWN_ROWS = 100


def command(
    output: RunOutput,
    edition: PublishedEdition = None,
    codes: Annotated[
        list[str] | None,
        typer.Option("--code", help="Only failures with this code. Repeatable.", metavar="CODE"),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    include_unlisted: IncludeUnlisted = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """List the images that failed, with the code and the reason of each."""
    from segcore.errors import UsageError
    from segcore.inspection.failures import COLUMNS, read_failures
    from segcore.output.results import open_results

    if as_csv and as_json:
        raise UsageError("--csv and --json are both given.", "Choose one of them.")
    results = open_results(open_storage(sets), output, edition, include_unlisted=include_unlisted)
    rows = (row for table in read_failures(results, codes or ()) for row in table.to_pylist())
    if as_json:
        print_json({"edition": results.name, "run": results.run, "failures": list(rows)})
    elif as_csv:
        print_csv(COLUMNS, rows)
    else:
        print_summary(rows)
    notify(*results.edition_notes, *results.remarks())


def print_csv(columns: tuple[str, ...], rows: Iterator[dict[str, Any]]) -> None:
    """Print rows to stdout as they are; to a terminal, without what could steer it."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if sys.stdout.isatty():
            row = {name: printable(str(value or "")) for name, value in row.items()}
        writer.writerow(row)


def print_summary(rows: Iterator[dict[str, Any]]) -> None:
    """Print a table of the first rows, and how many there are by code."""
    table = _new_table()
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["error_code"]] += 1
        if table.row_count < _SHOWN_ROWS:
            table.add_row(*(safe_cell(row[n] or "") for n in ("image_id", "error_code")),
                          safe_cell(row["error_message"] or ""))  # fmt: skip
    if not counts:
        notify("No image failed.")
        return
    print_table(table)
    by_code = ", ".join(f"{code} {number:,}" for code, number in counts.most_common())
    left_out = counts.total() - table.row_count
    notify(f"{plural(counts.total(), 'image')} failed: {by_code}.")
    if left_out:
        notify(f"The first {table.row_count:,} are shown; --csv and --json give all.")


def _new_table() -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    table.add_column("code", no_wrap=True)
    table.add_column("reason", overflow="fold")
    return table
