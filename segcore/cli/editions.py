"""segcore editions: the editions of an output, side by side."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from segcore.cli.console import (
    JsonFlag,
    RunOutput,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_table,
    safe_cell,
)

if TYPE_CHECKING:
    from segcore.inspection.editions import EditionState

EPILOG = """
[bold]Examples[/bold]

  segcore editions out/

  segcore editions s3://bucket/masks --json

Exit codes: 0 done; 1 storage failed; 2 usage error; 130 interrupted.
"""
_DAY_S = 86_400


def command(output: RunOutput, sets: StorageSets = None, as_json: JsonFlag = False) -> None:
    """List the editions of an output: which is published, how complete, and why they differ."""
    from segcore.inspection.editions import list_editions

    states = list_editions(open_storage(sets), output)
    if as_json:
        print_json({"editions": [state.to_dict() for state in states]})
    else:
        print_editions(states)
    for state in states:
        if state.differs:
            notify(f"{state.edition} differs from {state.differs_from}: "
                   f"{'; '.join(state.differs)}.")  # fmt: skip
        notify(state.why_incomplete)


def print_editions(states: list[EditionState]) -> None:
    """A table with one row for each edition, the newest first."""
    from rich import box
    from rich.table import Table

    from segcore.text import format_bytes

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("edition", overflow="fold")
    table.add_column("published")
    table.add_column("complete")
    table.add_column("newest run")
    for name in ("images", "failed", "size", "age"):
        table.add_column(name, justify="right")
    table.add_column("model", overflow="fold")
    for state in states:
        table.add_row(
            safe_cell(state.edition),
            "yes" if state.published else "",
            "yes" if state.complete else "no",
            safe_cell(state.state),
            f"{state.images:,}",
            f"{state.failed:,}",
            format_bytes(state.bytes),
            _age(state.changed),
            safe_cell(state.model),
        )
    print_table(table)


def _age(changed: float) -> str:
    from segcore.text import format_duration

    if not changed:
        return ""
    seconds = max(0.0, time.time() - changed)
    return f"{seconds / _DAY_S:.0f} d" if seconds >= 2 * _DAY_S else format_duration(seconds)
