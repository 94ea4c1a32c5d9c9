"""segcore rank: which images of an output to look at first."""

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
    print_text,
    unit_progress,
)
from segcore.exit_codes import ExitCode
from segcore.ranking.methods import STRATA, RankBy
from segcore.text import printable

EPILOG = """
[bold]Examples[/bold]

  segcore rank out/ --by uncertain

  segcore show out/ --ranking uncertain --limit 20

  segcore rank out/ --by diverse --limit 200 --name first-labels

  segcore rank s3://bucket/masks --by stratified --strata category,score --seed 1

The ranking is written into the edition: rankings/NAME.parquet, with image_id, rank, score and why.
`segcore show`, `segcore report`, `segcore export` and `segcore prelabel` take it by its name, with
--ranking NAME. The same options replace it; other options need another --name or --overwrite.

Exit codes: 0 done; 1 a part of the output cannot be read, or there is no image to rank; 2 usage
error; 130 interrupted.
"""
_SHOWN = 5


def command(
    output: RunOutput,
    by: Annotated[
        RankBy,
        typer.Option(
            help="uncertain: lowest mean score of the instances; crowded: most instances; diverse: "
            "least like those before, by what was found in them; random; stratified: at random, "
            "but each kind of image by its share."
        ),
    ],
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Most images in the ranking. Default: 100,000; 1,000 for diverse.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Name of the ranking. Default: what it is by.", show_default=False
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same ranking.")] = 0,
    strata: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What tells the kinds of images of a stratified ranking apart: the most frequent "
            "class, the size of most masks, the mean score.",
        ),
    ] = ",".join(STRATA),
    edition: PublishedEdition = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a ranking of this name made with other options."),
    ] = False,
    include_unlisted: IncludeUnlisted = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Rank images: which to look at, correct or label first."""
    from segcore.output.image_rows import describe_unread
    from segcore.output.results import open_results
    from segcore.ranking.rank import RankOptions, rank

    chosen = tuple(word.strip() for word in strata.split(",") if word.strip())
    options = RankOptions(by, name, limit, seed, chosen, overwrite)
    results = open_results(open_storage(sets), output, edition, include_unlisted=include_unlisted)
    report = rank(results, options, unit_progress("read"))
    if as_json:
        print_json(report.to_dict())
    else:
        first = report.ranking.rows.slice(0, _SHOWN).to_pylist()
        lines = [f"{row['rank']:>3}  {row['image_id']}  {row['why']}" for row in first]
        print_text("\n".join(map(printable, lines)))
    notify(*results.edition_notes, *report.notes)
    notify(*describe_unread(report.damaged_units, report.n_damaged))
    n_ranked, n_images = report.ranking.rows.num_rows, report.ranking.n_images
    of_all = f" of {n_images:,}" if n_ranked < n_images else ""
    notify(
        f"Wrote {report.ranking.uri}: {n_ranked:,}{of_all} segmented "
        f"{'image' if n_images == 1 else 'images'}."
    )
    sys.exit(ExitCode.INCOMPLETE if report.damaged_units else ExitCode.DONE)
