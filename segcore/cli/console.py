"""What all commands share: errors in people's words, and the exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any, NoReturn

import typer

from segcore.errors import SegcoreError
from segcore.signals import raise_interrupt


def new_app(**options: Any) -> typer.Typer:
    """A typer app without shell-completion options and without decorated tracebacks."""
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", **options
    )


def run_app(app: typer.Typer) -> NoReturn:
    """Run an app and leave the process with the right exit code.

    0 done; 1 infrastructure, or work left; 2 wrong use or configuration; 3 too many images
    failed; 130 interrupted. A traceback shows only for a bug of ours.
    """
    signal.signal(signal.SIGTERM, raise_interrupt)  # batch systems send it; it is as good as Ctrl-C
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
        notify("This is a bug in segcore; the lines above help to mend it.")
        sys.exit(1)
    sys.exit(0)


def notify(*lines: str) -> None:
    """Words for people: stderr, plain, empty ones left out."""
    for line in lines:
        if line:
            print(line, file=sys.stderr)
