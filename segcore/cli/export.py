"""segcore export: results as files for annotation tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from segcore.cli.console import (
    ConfigSets,
    IncludeUnlisted,
    JsonFlag,
    PublishedEdition,
    notify,
    print_json,
    print_text,
)
from segcore.cli.option_help import command_class
from segcore.errors import UsageError

EPILOG = """
[bold]Examples[/bold]

  segcore export out/ coco/

  segcore export out/ cvat/ --format cvat --min-score 0.5 --images copy

  segcore export out/ yolo/ --format yolo-seg --rename car=vehicle --rename truck=vehicle

  segcore export s3://bucket/masks s3://bucket/tasks --format label-studio --image-list next.txt

  segcore export out/ next/ --format cvat --ranking uncertain --top 200

Rerun the same command to continue an export that was stopped, or to add the images by which the
archive has grown: ids stay, and what was written is not written again. docs/annotation.md says how
each tool takes the files.
"""

LIST_KEYS = {  # of the flags that `common_flags` takes
    "include": "export.include",
    "exclude": "export.exclude",
    "image_list": "export.image_list",
    "categories": "export.categories",
}
KEYS = {
    **LIST_KEYS,
    "output": "output",
    "dest": "dest",
    "form": "export.format",
    "images": "export.images",
    "label_config": "export.label_config",
    "masks": "export.masks",
    "tolerance": "export.tolerance",
    "max_per_image": "export.max_per_image",
    "min_area": "export.min_area",
    "ranking": "export.ranking",
    "top": "export.top",
    "skip_empty": "export.skip_empty",
    "chunk_images": "export.chunk_images",
    "workers": "export.workers",
}


def schema() -> Any:
    """The schema of its configuration; importing it takes a while."""
    from segcore.config.exports import ExportConfig

    return ExportConfig


Command = command_class(KEYS, schema)

Form = Annotated[str | None, typer.Option("--format", metavar="FORMAT", show_default=False)]
Images = Annotated[str | None, typer.Option(metavar="HOW", show_default=False)]
LabelConfig = Annotated[str | None, typer.Option(metavar="FILE", show_default=False)]
MinScores = Annotated[
    list[str] | None,
    typer.Option(
        "--min-score",
        metavar="[CLASS=]SCORE",
        help="Lowest score, of all classes or of one. Repeatable.",
    ),
]
Renames = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="CLASS=NAME",
        help="Give a class another name; classes of one name become one. Repeatable.",
    ),
]
Categories = Annotated[list[str] | None, typer.Option("--category", show_default=False)]
Include = Annotated[list[str] | None, typer.Option("--include", metavar="PATTERN")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", metavar="PATTERN")]
ImageList = Annotated[str | None, typer.Option("--image-list", metavar="FILE", show_default=False)]
RankingName = Annotated[str | None, typer.Option("--ranking", metavar="NAME", show_default=False)]
Top = Annotated[int | None, typer.Option(min=1, metavar="N", show_default=False)]
Workers = Annotated[int | None, typer.Option(min=1, show_default=False)]


def command(
    output: Annotated[str | None, typer.Argument(metavar="OUTPUT", show_default=False)] = None,
    dest: Annotated[str | None, typer.Argument(metavar="DEST", show_default=False)] = None,
    form: Form = None,
    images: Images = None,
    masks: Annotated[str | None, typer.Option(metavar="HOW", show_default=False)] = None,
    tolerance: Annotated[float | None, typer.Option(show_default=False)] = None,
    label_config: LabelConfig = None,
    categories: Categories = None,
    renames: Renames = None,
    min_scores: MinScores = None,
    min_area: Annotated[int | None, typer.Option(show_default=False)] = None,
    max_per_image: Annotated[int | None, typer.Option(show_default=False)] = None,
    include: Include = None,
    exclude: Exclude = None,
    image_list: ImageList = None,
    ranking: RankingName = None,
    top: Top = None,
    skip_empty: Annotated[bool, typer.Option("--skip-empty")] = False,
    chunk_images: Annotated[int | None, typer.Option(show_default=False)] = None,
    workers: Workers = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with any of the options.", show_default=False)
    ] = None,
    sets: ConfigSets = None,
    edition: PublishedEdition = None,
    include_unlisted: IncludeUnlisted = False,
    as_json: JsonFlag = False,
) -> None:
    """Write results as files that annotation tools and training code read."""
    from segcore.config import load_config
    from segcore.config.exports import ExportConfig
    from segcore.exports.export import export
    from segcore.output.results import open_results
    from segcore.storage import Storage

    flags: dict[str, tuple[str | tuple[str, ...], object]] = {
        "OUTPUT": ("output", output),
        "DEST": ("dest", dest),
        "--images": ("export.images", images),
        "--label-config": ("export.label_config", label_config),
        "--masks": ("export.masks", masks),
        "--tolerance": ("export.tolerance", tolerance),
        "--min-area": ("export.min_area", min_area),
        "--max-per-image": ("export.max_per_image", max_per_image),
        "--ranking": ("export.ranking", ranking),
        "--top": ("export.top", top),
        "--skip-empty": ("export.skip_empty", skip_empty or None),
        "--chunk-images": ("export.chunk_images", chunk_images),
        "--edition": ("edition", edition),
        "--include-unlisted": ("include_unlisted", include_unlisted or None),
        **common_flags(form, categories, renames, min_scores, include, exclude, image_list),
    }
    options = load_config(config, sets or (), flags, schema=ExportConfig)
    for name, value in (("OUTPUT", options.output), ("DEST", options.dest)):
        if value is None:
            raise UsageError(f"{name} is missing.", "Usage: segcore export OUTPUT DEST")
    storage = Storage(options.storage)
    results = open_results(
        storage, options.output or "", options.edition, include_unlisted=options.include_unlisted
    )
    chosen = options.export.model_copy(
        update={"workers": workers or options.export.workers or cores()}
    )
    summary = export(results, options.dest or "", chosen, notify)
    print_json(summary.to_dict()) if as_json else print_text(summary.text())
    notify(*summary.edition_notes, *summary.notes)


def common_flags(
    form: str | None,
    categories: Sequence[str] | None,
    renames: Sequence[str] | None,
    min_scores: Sequence[str] | None,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    image_list: str | None,
) -> dict[str, tuple[str | tuple[str, ...], object]]:
    """The flags whose values are lists or pairs, as `load_config` takes them.

    Raises:
        UsageError: One of them has no such form.
    """
    overall, by_category = None, {}
    for text in min_scores or ():
        name, separator, value = text.rpartition("=")
        try:
            score = float(value)
        except ValueError:
            raise UsageError(f"--min-score {text}: expected SCORE or CLASS=SCORE.") from None
        if separator:
            by_category[name] = score
        else:
            overall = score
    names = {}
    for text in renames or ():
        old, separator, new = text.partition("=")
        if not (old and separator and new.strip()):
            raise UsageError(f"--rename {text}: expected CLASS=NAME.")
        names[old] = new
    return {
        "--format": ("export.format", form),
        "--category": ("export.categories", tuple(categories or ()) or None),
        "--rename": ("export.rename", names or None),
        "--min-score": ("export.min_score", overall),
        "--min-score CLASS=SCORE": ("export.min_score_by_category", by_category or None),
        "--include": ("export.include", tuple(include or ()) or None),
        "--exclude": ("export.exclude", tuple(exclude or ()) or None),
        "--image-list": ("export.image_list", image_list),
    }


def cores() -> int:
    """Processes that convert masks by default: one a core, eight at most."""
    import os

    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
