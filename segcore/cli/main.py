"""The segcore command: every job under one name."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from segcore.cli import (
    bench,
    compact,
    compare,
    config,
    console,
    convert,
    demo,
    editions,
    evaluate,
    export,
    failures,
    history,
    import_corrections,
    label_studio,
    models,
    predict,
    prelabel,
    prune,
    publish,
    rank,
    report,
    reprocess,
    sample_size,
    segment,
    show,
    status,
    stderr_log,
    submit,
    train,
    verify,
)
from segcore.cli.process import run_as_process
from segcore.exit_codes import EXIT_CODES
from segcore.version import __version__

app = console.new_app(
    add_completion=True,
    no_args_is_help=True,
    help="Segment archives of millions of images with Ray Data: masks as Parquet with COCO RLE.",
    epilog=f"Start with [bold]segcore demo[/bold].\n\n{EXIT_CODES}",
)
app.command("predict", cls=predict.Command, epilog=predict.EPILOG)(predict.command)
app.command("segment", cls=segment.Command, epilog=segment.EPILOG)(segment.command)
app.command("status", epilog=status.EPILOG)(status.command)
app.command("verify", epilog=verify.EPILOG)(verify.command)
app.command("failures", epilog=failures.EPILOG)(failures.command)
app.command("compact", epilog=compact.EPILOG)(compact.command)
app.command("reprocess", cls=reprocess.Command, epilog=reprocess.EPILOG)(reprocess.command)
app.command("editions", epilog=editions.EPILOG)(editions.command)
app.command("history", epilog=history.EPILOG)(history.command)
app.command("publish", epilog=publish.EPILOG)(publish.command)
app.command("prune", epilog=prune.EPILOG)(prune.command)
app.command("show", epilog=show.EPILOG)(show.command)
app.command("evaluate", epilog=evaluate.EPILOG)(evaluate.command)
app.command("compare", epilog=compare.EPILOG)(compare.command)
app.command("report", epilog=report.EPILOG)(report.command)
app.command("rank", epilog=rank.EPILOG)(rank.command)
app.command("sample-size", epilog=sample_size.EPILOG)(sample_size.command)
app.command("train", cls=train.Command, epilog=train.EPILOG)(train.command)
app.command("prelabel", cls=prelabel.Command, epilog=prelabel.EPILOG)(prelabel.command)
app.command("submit", context_settings=submit.SETTINGS, epilog=submit.EPILOG)(submit.command)
app.command("export", cls=export.Command, epilog=export.EPILOG)(export.command)
app.command("import", epilog=import_corrections.EPILOG)(import_corrections.command)
app.command("label-studio", cls=label_studio.Command, epilog=label_studio.EPILOG)(
    label_studio.command
)
app.command("models", epilog=models.EPILOG)(models.command)
app.command("convert", epilog=convert.EPILOG)(convert.command)
app.command("config", epilog=config.EPILOG)(config.command)
app.add_typer(bench.app, name="bench")
app.command("demo", epilog=demo.EPILOG)(demo.command)


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        print(f"segcore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that come before the name of a command."""
    stderr_log.hide_log()  # of a command before, where one process calls several


def main() -> NoReturn:
    """Run the command that `sys.argv` names.

    Raises:
        SystemExit: With its exit code.
    """
    console.run_app(app)


def run() -> NoReturn:
    """Entry point of the console script: `main`, and the end of the process."""
    run_as_process(main)
