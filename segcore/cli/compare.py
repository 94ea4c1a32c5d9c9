"""segcore compare: what differs between two editions, or an edition and known masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segcore.cli.console import (
    IncludeUnlisted,
    JsonFlag,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_table,
    print_text,
    safe_cell,
    unit_progress,
)
from segcore.exit_codes import ExitCode
from segcore.text import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from segcore.comparison.compare import Comparison

EPILOG = """
[bold]Examples[/bold]

  segcore compare out/nuclei-0123456789ab out/nuclei-ba9876543210

  segcore compare old/ new/ --max-vanished 0.02 --max-changed 0.1

  segcore compare out/ instances_val.json --table changes.parquet

Instances of one image are matched one to one by the IoU of their masks. Shares for the limits are
of all objects of both sides, where a matched pair is one.

Exit codes: 0 done; 1 a part of an output cannot be read; 2 usage error; 4 over one of the
limits; 130 interrupted.
"""
_MAX_CATEGORIES, _MAX_PAIRS, _MAX_IMAGES = 20, 5, 5  # shown
_SIDE = "An output, the prefix of one edition in it, or a COCO instances file (.json)."


def _share(text: str) -> Any:
    return typer.Option(min=0.0, max=1.0, metavar="SHARE", help=text, show_default=False)


def command(
    first: Annotated[str, typer.Argument(metavar="A", help=_SIDE)],
    second: Annotated[str, typer.Argument(metavar="B", help=_SIDE)],
    edition_a: Annotated[
        str | None,
        typer.Option(help="Edition in A. Default: the published one.", show_default=False),
    ] = None,
    edition_b: Annotated[
        str | None,
        typer.Option(help="Edition in B. Default: the published one.", show_default=False),
    ] = None,
    match_iou: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="IoU that makes two masks one object.")
    ] = 0.5,
    same_iou: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="From this IoU on it has not moved.")
    ] = 0.9,
    min_score: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out instances below this score.")
    ] = 0.0,
    max_changed: Annotated[
        float | None, _share("Exit with 4 if a larger share is not the same.")
    ] = None,
    max_moved: Annotated[float | None, _share("The same for objects that moved.")] = None,
    max_relabelled: Annotated[
        float | None, _share("The same for objects of another class.")
    ] = None,
    max_vanished: Annotated[float | None, _share("The same for objects of A alone.")] = None,
    max_appeared: Annotated[float | None, _share("The same for objects of B alone.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Parquet file for one row per pair and lone instance.",
            show_default=False,
        ),
    ] = None,
    include_unlisted: IncludeUnlisted = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare masks: what is the same, moved, appeared, vanished or got another class."""
    from segcore.comparison.compare import CompareOptions, compare
    from segcore.comparison.matching import MatchLimits
    from segcore.errors import UsageError

    if same_iou < match_iou:
        raise UsageError(f"--same-iou {same_iou:g} is below --match-iou {match_iou:g}.")
    limits = {
        "changed": max_changed,
        "moved": max_moved,
        "relabelled": max_relabelled,
        "vanished": max_vanished,
        "appeared": max_appeared,
    }
    comparison = compare(
        open_storage(sets),
        first,
        second,
        CompareOptions(MatchLimits(match_iou, same_iou), min_score, table, None, include_unlisted),
        first_edition=edition_a,
        second_edition=edition_b,
        notify_progress=unit_progress("compared"),
    )
    exceeded = exceeded_limits(comparison, limits)
    if as_json:
        print_json({**comparison.to_dict(), "limits_exceeded": exceeded})
    else:
        print_comparison(comparison)
    notify(*dict.fromkeys(comparison.notes))  # both sides may say the same
    if table is not None:
        notify(f"Wrote {table}.")
    notify(*(f"Over the limit: {sentence}" for sentence in exceeded))
    if comparison.damaged_units:
        sys.exit(ExitCode.INCOMPLETE)
    sys.exit(ExitCode.REFUSED if exceeded else ExitCode.DONE)


def exceeded_limits(comparison: Comparison, limits: dict[str, float | None]) -> list[str]:
    """Sentences about the limits that are exceeded.

    Args:
        limits: ``changed`` or the word of a `Change` -> the largest share that is allowed.
    """
    from segcore.comparison.matching import Change

    by_word: dict[str, Change | None] = {change.word: change for change in Change}
    sentences = []
    for word, limit in limits.items():
        share = comparison.totals.share(by_word.get(word))
        if limit is not None and share > limit:
            sentences.append(f"{share:.2%} of all objects {word}; --max-{word} {limit:g} allows "
                             f"{limit:.2%}.")  # fmt: skip
    return sentences


def print_comparison(comparison: Comparison) -> None:
    """Totals, then by category, by score, and the images that changed most."""
    totals = comparison.totals
    document = totals.to_dict()
    rows = [("all", document["changes"])]
    if len(document["by_category"]) > 1:
        rows += sorted(
            document["by_category"].items(), key=lambda item: (-sum(item[1].values()), item[0])
        )[:_MAX_CATEGORIES]
    title = (
        f"A {comparison.first}\nB {comparison.second}\n"
        f"{totals.images:,} images compared, {totals.changed_images:,} of them changed"
    )
    caption = (
        f"matched from IoU {comparison.limits.match_iou:g}, the same from "
        f"{comparison.limits.same_iou:g} on"
    )
    print_table(_changes_table("class", rows, title, caption))
    bands = [
        ("no score" if row["from"] is None else f"{row['from']:.1f}-{row['from'] + 0.1:.1f}", row)
        for row in document["by_score"]
    ]
    print_table(_changes_table("score", bands, "By score (that of A, or of B alone)"))
    if totals.relabelled:
        pairs = ", ".join(
            f"{before} to {after} {count:,}"
            for (before, after), count in totals.relabelled.most_common(_MAX_PAIRS)
        )
        notify(f"Relabelled: {pairs}.")
    if changed := totals.most_changed()[:_MAX_IMAGES]:
        lines = [f"  {image.n_changed:,} of {sum(image.changes.values()):,}  {image.image_id}"
                 for image in changed]  # fmt: skip
        print_text("\n".join(["Images with most changes:", *map(printable, lines)]))


def _changes_table(
    noun: str, rows: list[tuple[str, dict[str, int]]], title: str, caption: str = ""
) -> Table:
    from rich import box
    from rich.table import Table

    from segcore.comparison.matching import Change

    table = Table(
        box=box.SIMPLE_HEAD,
        title=_title(title),
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(noun, overflow="fold")
    for change in Change:
        table.add_column(change.word, justify="right")
    table.add_column("same share", justify="right")
    for name, counts in rows:
        values = [counts[change.word] for change in Change]
        share = values[0] / sum(values) if sum(values) else 1.0
        table.add_row(safe_cell(name), *(f"{value:,}" for value in values), f"{share:.1%}")
    return table


def _title(title: str) -> Text:
    from rich.text import Text

    return Text("\n").join(safe_cell(line) for line in title.split("\n"))
