"""segcore show: pictures of the masks in an output."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)
from segcore.errors import NothingFound, UsageError
from segcore.exit_codes import ExitCode
from segcore.text import plural

if TYPE_CHECKING:
    from segcore.output.rankings import Ranking
    from segcore.output.results import Results
    from segcore.visualize.selection import Selected, Selection
    from segcore.visualize.sheet import Drawing, ShownImage

EPILOG = """
[bold]Examples[/bold]

  segcore show out/

  segcore show out/ photo7.jpg

  segcore show out/ '2024/*.png' --out pictures/

  segcore show out/ --ranking uncertain --limit 40

  segcore show s3://bucket/masks --crowded --limit 20 --out crowded.png

An image is named by its id, or by the end of it from a slash or # on; * and ? stand for any letters
and for one. Images are read from where the job read them. One that is gone or has changed is shown
as a card with the reason; images that failed are cards, too.

Exit codes: 0 done; 1 an image cannot be shown, or a part of the output cannot be read; 2 usage
error; 130 interrupted.
"""
_DEFAULT_LIMIT = 12
_MAX_UNREAD = 5  # units that are named
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def command(
    output: RunOutput,
    image: Annotated[
        str, typer.Argument(metavar="[IMAGE]", help="Id of an image, the end of it, or a pattern.")
    ] = "",
    random: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="So many random images.", show_default=False),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Images that failed, and why.")] = False,
    crowded: Annotated[bool, typer.Option("--crowded", help="Those with most instances.")] = False,
    empty: Annotated[
        bool, typer.Option("--empty", help="Images in which nothing was found.")
    ] = False,
    ranking: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The first images of this ranking, which `segcore rank` made.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most images. Default: 12.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    edition: PublishedEdition = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="F",
            help="A file (.png, .jpg, ...) for the picture or the sheet, or a folder for a file of "
            "each image. Default: a file in this folder.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels",
            help="Write category and score beside each mask. Default: where there are few.",
            show_default=False,
        ),
    ] = None,
    as_read: Annotated[
        bool, typer.Option("--as-read", help="Do not brighten dark images.")
    ] = False,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the picture in a viewer.")
    ] = False,
    include_unlisted: IncludeUnlisted = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw masks, labels and scores over images of an output, as one picture or a contact sheet."""
    from segcore.output.image_rows import describe_unread
    from segcore.output.rankings import read_ranking
    from segcore.output.results import open_results
    from segcore.visualize.selection import select_images
    from segcore.visualize.sheet import Drawing

    selection = make_selection(image, random, failed, crowded, empty, ranking, limit, seed)
    results = open_results(open_storage(sets), output, edition, include_unlisted=include_unlisted)
    notes = [*results.edition_notes, *results.remarks()]
    if ranking is not None:
        ranked = read_ranking(results, ranking)
        selection = replace(selection, ranking=ranked)
        notes.append(ranked.remark(results))
    selected = select_images(results, selection)
    unread = selected.damaged_units
    notes += describe_unread(unread[:_MAX_UNREAD], len(unread))
    if not selected.records:
        notify(*notes)
        error = NothingFound if selected.damaged_units else UsageError
        raise error(f"{results.prefix} has no {_what(selection)} to show.")
    drawing = Drawing(labels, as_read, why=_reasons(selection.ranking, selected))
    shown = _write(results, selected, selection, out, drawing)
    files = list(dict.fromkeys(one.file for one in shown))
    if as_json:
        rows = [one.to_dict() for one in shown]
        print_json({"edition": results.name, "matching": selected.n_matching,
                    "files": files, "images": rows,
                    "damaged_units": list(selected.damaged_units)})  # fmt: skip
    notify(*notes)
    if (left := selected.n_matching - len(shown)) > 0 and random is None:
        notify(f"{plural(left, 'more image')} like these; --limit shows more.")
    missing = [one for one in shown if one.problem]
    for one in missing[:5]:
        notify(f"{one.record.image_id} cannot be shown: {one.problem}")
    if len(missing) > 5:
        notify(f"{len(missing) - 5:,} more cannot be shown.")
    where = files[0] if len(files) == 1 else f"{len(files):,} files in {Path(files[0]).parent}"
    opened = len(files) == 1 and not (no_open or as_json) and open_in_viewer(files[0])
    notify(f"Wrote {where}." + (" Opened it." if opened else ""))
    sys.exit(ExitCode.INCOMPLETE if missing or selected.damaged_units else ExitCode.DONE)


def make_selection(
    image: str,
    random: int | None,
    failed: bool,
    crowded: bool,
    empty: bool,
    ranking: str | None,
    limit: int | None,
    seed: int,
) -> Selection:
    """The images that the options ask for.

    Raises:
        UsageError: The options contradict each other.
    """
    from segcore.visualize.selection import Choice, Selection

    chosen = [
        (Choice.RANDOM, random is not None),
        (Choice.FAILED, failed),
        (Choice.CROWDED, crowded),
        (Choice.EMPTY, empty),
        (Choice.RANKED, ranking is not None),
    ]
    choices = [choice for choice, is_chosen in chosen if is_chosen]
    if len(choices) > 1:
        flags = [f"--{'ranking' if one == Choice.RANKED else one}" for one in choices]
        raise UsageError(
            f"Choose one of {' and '.join(flags)}.",
            "Each can be joined with the name or pattern of images.",
        )
    if random is not None and limit is not None:
        raise UsageError("--random says how many images: leave --limit out.")
    default = Choice.FIRST if image else Choice.RANDOM
    return Selection(
        choices[0] if choices else default, image, random or limit or _DEFAULT_LIMIT, seed
    )


def _reasons(ranking: Ranking | None, selected: Selected) -> dict[str, str]:
    """image_id -> why an image was ranked."""
    if ranking is None:
        return {}
    wanted = {record.image_id for record in selected.records}
    ids = ranking.rows["image_id"].to_pylist()
    rows = [row for row, image_id in enumerate(ids) if image_id in wanted]
    why = ranking.rows["why"].take(rows).to_pylist()
    return {ids[row]: text for row, text in zip(rows, why, strict=True)}


def open_in_viewer(file: str) -> bool:
    """Open a picture where there is a display and a person; whether that was tried."""
    has_display = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return has_display and is_terminal() and typer.launch(file) == 0


def is_terminal() -> bool:
    """Whether a person reads the messages."""
    return sys.stderr.isatty()


def _write(
    results: Results, selected: Selected, selection: Selection, out: str | None, drawing: Drawing
) -> list[ShownImage]:
    from segcore.visualize.selection import Choice
    from segcore.visualize.sheet import picture_name, write_files, write_picture, write_sheet

    records = selected.records
    if out is not None and not out.lower().endswith(_PICTURE_SUFFIXES):
        if "." in Path(out).name and not Path(out).is_dir() and not out.endswith("/"):
            raise UsageError(
                f"--out {out} is neither a picture nor a folder.",
                f"Pictures end with {', '.join(_PICTURE_SUFFIXES)}; folders with a slash.",
            )
        return write_files(results, records, Path(out), drawing)
    if len(records) == 1:
        return write_picture(results, records[0], Path(out or picture_name(records[0])), drawing)
    target = Path(out or f"{results.name}-{selection.choice}.png")
    n_of = f" of {selected.n_matching:,}" if selected.n_matching > len(records) else ""
    title = f"{results.name}: {len(records):,}{n_of} {_what(selection)}"
    notes = [
        "Each colour is one instance.",
        "" if drawing.as_read else "Dark images are brightened.",
    ]
    note = "" if selection.choice == Choice.FAILED else " ".join(notes).strip()
    return write_sheet(results, records, target, drawing, title, note)


def _what(selection: Selection) -> str:
    """The images that were asked for, in words."""
    from segcore.visualize.selection import Choice

    words = {
        Choice.FIRST: "images",
        Choice.RANDOM: "segmented images",
        Choice.FAILED: "failed images",
        Choice.CROWDED: "segmented images, the most crowded first",
        Choice.EMPTY: "images without instances",
        Choice.RANKED: "images of the ranking, in its order",
    }
    named = f" like {selection.name}" if selection.name else ""
    return f"{words[selection.choice]}{named}"
