"""segcore sample-size: how many images to check by hand, and what the checked ones tell."""

from __future__ import annotations

from typing import Annotated

import typer

from segcore.cli.console import (
    IncludeUnlisted,
    JsonFlag,
    PublishedEdition,
    StorageSets,
    notify,
    open_storage,
    print_json,
    print_text,
)
from segcore.errors import NothingFound, UsageError
from segcore.text import plural

EPILOG = """
[bold]Examples[/bold]

  segcore sample-size out/ --error 0.02

  segcore rank out/ --by random --limit 2345

  segcore sample-size out/ --checked 2345 --wrong 41

The first line says how many of the segmented images to check, each as right or wrong; the last one
says from what was found which share of all images is wrong. Without OUTPUT and --population, there
are taken to be many more images than are checked.

Sources: Cochran, Sampling Techniques (1977), chapter 4; Clopper and Pearson, Biometrika 26 (1934),
with the hypergeometric distribution where the number of images is known.
"""


def command(
    output: Annotated[
        str,
        typer.Argument(
            metavar="[OUTPUT]", help="The OUTPUT of a run: its segmented images are counted."
        ),
    ] = "",
    error: Annotated[
        float, typer.Option(help="How far the share may be off: 0.02 is 2 percentage points.")
    ] = 0.05,
    confidence: Annotated[float, typer.Option(help="How often that is to hold.")] = 0.95,
    expected: Annotated[
        float,
        typer.Option(help="Share of wrong images that is expected; 0.5 is enough for any share."),
    ] = 0.5,
    population: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="All images, without OUTPUT.", show_default=False),
    ] = None,
    checked: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="So many were checked.", show_default=False),
    ] = None,
    wrong: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="So many of them are wrong.", show_default=False),
    ] = None,
    edition: PublishedEdition = None,
    include_unlisted: IncludeUnlisted = False,
    sets: StorageSets = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell how many images to check for a stated error, or what the checked ones tell."""
    from segcore.ranking.sample_size import images_to_check, observed_share

    if (checked is None) != (wrong is None):
        raise UsageError("--checked and --wrong belong together.")
    if output and population is not None:
        raise UsageError("OUTPUT says how many images there are: leave --population out.")
    if output:
        population = _count_images(output, edition, include_unlisted, sets)
    if checked is not None and wrong is not None:
        found = observed_share(checked, wrong, confidence, population)
        text = (
            f"{wrong:,} of {plural(checked, 'checked image')} wrong: {found.share:.2%}. Of all"
            f"{'' if population is None else f' {population:,}'} images, {found.low:.2%} to "
            f"{found.high:.2%} are wrong, with {confidence:.10g} confidence ({found.method})."
        )
        print_json(found.to_dict()) if as_json else print_text(text)
        return
    n = images_to_check(error, confidence, population, expected)
    given = {"error": error, "confidence": confidence, "expected": expected}
    if as_json:
        print_json({"images_to_check": n, **given, "population": population})
        return
    of_all = "" if population is None else f" of {population:,}"
    certain = "whatever it is" if expected == 0.5 else f"if it is about {expected:g}"
    print_text(
        f"Check {n:,}{of_all} images, drawn at random: the share of wrong ones is then known to "
        f"\u00b1{error:g} with {confidence:.10g} confidence, {certain}."
    )
    if output:
        notify(f"To draw them: segcore rank {output} --by random --limit {n}")


def _count_images(
    output: str, edition: str | None, include_unlisted: bool, sets: list[str] | None
) -> int:
    """The segmented images of an edition."""
    from segcore.output.results import open_results

    results = open_results(open_storage(sets), output, edition, include_unlisted=include_unlisted)
    notify(*results.edition_notes, *results.remarks())
    n_images = sum(table["status"].to_pylist().count("ok") for table in results.images(["status"]))
    if not n_images:
        raise NothingFound(f"{results.prefix} has no segmented image.")
    return n_images
