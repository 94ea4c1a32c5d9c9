"""segcore label-studio: an ML backend for Label Studio that answers from an edition."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer

from segcore.cli import stderr_log
from segcore.cli.console import ConfigSets, IncludeUnlisted, PublishedEdition, notify
from segcore.cli.export import (
    LIST_KEYS,
    Categories,
    Exclude,
    ImageList,
    Include,
    MinScores,
    Renames,
    common_flags,
    schema,
)
from segcore.cli.option_help import command_class
from segcore.errors import UsageError
from segcore.text import plural

EPILOG = """
[bold]Examples[/bold]

  segcore label-studio masks/

  segcore label-studio s3://bucket/masks --dest s3://bucket/tasks --min-score 0.4

In the project: Settings > Model > Connect Model, with the URL that this prints. Label Studio then
asks for the masks of a task whenever somebody opens it; nothing is imported, and no model runs.
docs/annotation-servers.md says how an image is found, and what happens if it is not.
"""

KEYS = {
    **LIST_KEYS,
    "output": "output",
    "masks": "export.masks",
}


Command = command_class(KEYS, schema)


def command(
    output: Annotated[str | None, typer.Argument(metavar="OUTPUT", show_default=False)] = None,
    dest: Annotated[
        str | None,
        typer.Option(
            help="DEST of the export whose images the project has: they alone are known then, by "
            "the names that it gave them.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9090,
    masks: Annotated[str | None, typer.Option(metavar="HOW", show_default=False)] = None,
    categories: Categories = None,
    renames: Renames = None,
    min_scores: MinScores = None,
    include: Include = None,
    exclude: Exclude = None,
    image_list: ImageList = None,
    whole_names: Annotated[
        bool,
        typer.Option(
            "--whole-names", help="Find no image by the end of its path, such as its file name."
        ),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(help="YAML file with options of `segcore export`.", show_default=False),
    ] = None,
    sets: ConfigSets = None,
    edition: PublishedEdition = None,
    include_unlisted: IncludeUnlisted = False,
) -> None:
    """Answer Label Studio's requests for pre-labels from an output, until it is stopped."""
    from segcore.annotators.edition_images import EditionImages
    from segcore.annotators.label_studio import LabelStudioBackend
    from segcore.annotators.label_studio_server import BackendServer
    from segcore.config import load_config
    from segcore.config.exports import ExportConfig
    from segcore.logs.options import LogOptions
    from segcore.output.results import open_results
    from segcore.storage import Storage

    flags: dict[str, tuple[str | tuple[str, ...], object]] = {
        "OUTPUT": ("output", output),
        "--dest": ("dest", dest),
        "--masks": ("export.masks", masks),
        "--edition": ("edition", edition),
        "--include-unlisted": ("include_unlisted", include_unlisted or None),
        **common_flags(
            "label-studio", categories, renames, min_scores, include, exclude, image_list
        ),
    }
    options = load_config(config, sets or (), flags, schema=ExportConfig)
    if options.output is None:
        raise UsageError("OUTPUT is missing.", "Usage: segcore label-studio OUTPUT")
    storage = Storage(options.storage)
    results = open_results(
        storage, options.output, options.edition, include_unlisted=options.include_unlisted
    )
    images = EditionImages(results, options.export, dest=options.dest, whole_names=whole_names)
    stderr_log.show_log(LogOptions())
    backend = LabelStudioBackend(images)
    with BackendServer((host, port), backend) as server:
        notify(*results.edition_notes, *results.remarks())
        notify(f"Answering for {plural(len(images), 'image')} at {server.url}; Ctrl-C ends it.")
        if not _is_loopback(host):
            notify(f"Whoever reaches {host} can ask for masks: there is no password.")
        try:
            server.serve_forever()
        finally:
            notify("; ".join(f"{what}: {n:,}" for what, n in backend.counts.items()))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
