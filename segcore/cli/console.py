"""What all commands share: options of the same meaning, errors as sentences, exit codes."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from segcore.errors import SegcoreError
from segcore.signals import raise_interrupt

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
ConfigSets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one option by its key. Repeatable."),
]
RunOutput = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT", help="The OUTPUT of `segcore segment`: a folder or an s3:// prefix."
    ),
]
NewestEdition = Annotated[
    str | None,
    typer.Option(
        help="Edition in OUTPUT. Default: the one with the newest run.", show_default=False
    ),
]


def new_app(**options: Any) -> typer.Typer:
    """A typer app without shell-completion options and without decorated tracebacks."""
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", **options
    )


def run_app(app: typer.Typer) -> NoReturn:
    """Run an app and exit with the right code.

    0 done; 1 work left, or infrastructure failed; 2 usage error; 3 too many images failed; 130
    interrupted. A traceback is shown only for a bug in segcore.
    """
    # Batch systems stop a job with SIGTERM; it is handled as Ctrl-C is.
    signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        app()
    except SegcoreError as error:
        notify(f"Error: {error.message}", error.hint)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `segcore ... | head`
        sys.stderr.close()
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        notify("This is a bug in segcore; please report it with the lines above.")
        sys.exit(1)
    sys.exit(0)


def notify(*lines: str) -> None:
    """Print messages for people to stderr, one a line; empty ones are left out."""
    for line in lines:
        if line:
            print(line, file=sys.stderr)


def print_json(document: Any) -> None:
    """Print the one JSON document of a command to stdout."""
    print(json.dumps(document, indent=2))
