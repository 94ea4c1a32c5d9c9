"""segcore evaluate: mask and box AP of an output against COCO ground truth."""

from __future__ import annotations

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
    print_table,
    print_text,
    safe_cell,
)
from segcore.evaluation.exif_labels import ExifLabels
from segcore.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from segcore.evaluation.evaluate import EvaluationReport

_MAX_LINES = 5  # of each kind of error
EPILOG = """
[bold]Examples[/bold]

  segcore evaluate out/ instances_val.json

  segcore evaluate s3://bucket/masks s3://bucket/truth.json --json

Images are matched by file_name, which must be the key of an image or the end of its path. Images
that failed in the run count as images without detections.

Exit codes: 0 done; 1 a part of the output cannot be read, so that there are no scores; 2 usage
error; 130 interrupted.
"""


def command(
    output: RunOutput,
    ground_truth: Annotated[
        str, typer.Argument(metavar="GROUND_TRUTH", help="COCO instances JSON. Local or s3://.")
    ],
    edition: PublishedEdition = None,
    max_dets: Annotated[
        int, typer.Option(min=1, help="Detections that count, per image and class.")
    ] = 500,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Leave out images of the ground truth that are missing from OUTPUT.",
        ),
    ] = False,
    exif_labels: Annotated[
        ExifLabels,
        typer.Option(
            help="Images whose width and height are swapped in GROUND_TRUTH, as where a tool "
            "ignores the EXIF orientation: refuse them, take the masks as lying on the image as "
            "viewers show it, or leave the images out.",
        ),
    ] = ExifLabels.REFUSE,
    include_unlisted: IncludeUnlisted = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure an output against known masks: COCO mask and box AP, per class and over all."""
    from segcore.evaluation.evaluate import evaluate

    report = evaluate(
        open_storage(sets),
        output,
        ground_truth,
        edition,
        max_dets,
        allow_missing,
        exif_labels,
        include_unlisted=include_unlisted,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print_table(scores_table(report))
        print_table(thresholds_table(report))
        print_text("\n".join(analysis_lines(report)))
    notify(*report.edition_notes, *report.notes)


def scores_table(report: EvaluationReport) -> Table:
    """Scores as a table for people: over all classes, then class by class."""
    from rich import box
    from rich.table import Table

    from segcore.evaluation.average_precision import format_score

    scores = report.scores
    table = Table(
        box=box.SIMPLE_HEAD,
        title=safe_cell(
            f"AP of {report.edition}: {report.images:,} images, "
            f"{scores.n_ground_truth:,} objects, {scores.n_detections:,} detections"
        ),
        caption=f"COCO protocol, at most {scores.max_dets} detections per image and class",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("class")
    for heading in ("objects", "mask AP", "AP50", "AP75", "small", "medium", "large", "box AP"):
        table.add_column(heading, justify="right")
    rows = [("all", scores.n_ground_truth, scores.mask, scores.box)]
    if len(scores.per_class) > 1:
        rows += [(c.name, c.n_ground_truth, c.mask, c.box) for c in scores.per_class]
    elif scores.per_class:
        rows[0] = (scores.per_class[0].name, *rows[0][1:])
    for name, n_objects, mask, boxes in rows:
        by_size = (mask.ap_small, mask.ap_medium, mask.ap_large)
        values = (mask.ap, mask.ap50, mask.ap75, *by_size, boxes.ap)
        table.add_row(safe_cell(name), f"{n_objects:,}", *(format_score(value) for value in values))
    return table


def thresholds_table(report: EvaluationReport) -> Table:
    """From which score on detections of each class are best kept."""
    from rich import box
    from rich.table import Table

    from segcore.evaluation.average_precision import format_score

    table = Table(
        box=box.SIMPLE_HEAD,
        title="Best score threshold (highest F1 of masks with IoU 0.50 or more)",
        title_justify="left",
    )
    table.add_column("class")
    for heading in ("score", "F1", "precision", "recall"):
        table.add_column(heading, justify="right")
    for one in report.analysis.per_class:
        if one.best is not None:
            values = (one.best.score, one.best.f1, one.best.precision, one.best.recall)
            table.add_row(safe_cell(one.name), *(format_score(value) for value in values))
    return table


def analysis_lines(report: EvaluationReport) -> list[str]:
    """What goes wrong most: classes that are confused, scores that mislead, the worst images."""
    analysis = report.analysis
    lines = []
    confused = [one for one in analysis.confusions if one.truth != one.found]
    if confused:
        lines.append("Errors, with detections from the best score of their class on:")
    for one in confused[:_MAX_LINES]:
        if not one.found:
            what = f"{one.truth} missed"
        else:
            what = f"{one.truth} found as {one.found}" if one.truth else f"{one.found} invented"
        lines.append(f"  {one.n:,}  {printable(what)}")
    if analysis.calibration_error is not None:
        lines.append(
            "Scores differ from the share of detections that is right by "
            f"{analysis.calibration_error:.2f} on average."
        )
    if analysis.worst_images:
        lines.append("Worst images:")
    for image in analysis.worst_images[:_MAX_LINES]:
        image_id = report.output_ids.get(image.image_id, str(image.image_id))
        lines.append(
            f"  {image.right:,} right, {image.missed:,} missed, {image.wrong:,} invented  "
            f"{printable(image_id)}"
        )
    return lines
