"""What all commands share: options of the same meaning, errors as sentences, exit codes."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from segcore.errors import SegcoreError
from segcore.exit_codes import ExitCode
from segcore.signals import raise_interrupt
from segcore.text import printable, printable_lines, redact_link

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

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

IncludeUnlisted = Annotated[
    bool,
    typer.Option(
        "--include-unlisted",
        help="Also the results of images that the newest run's listing lacks.",
    ),
]


def new_app(**options: Any) -> typer.Typer:
    """A typer app without shell-completion options and without decorated tracebacks."""
    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich", **options
    )


def run_app(app: typer.Typer) -> NoReturn:
    """Run an app and exit with the right code, see `segcore.exit_codes`.

    A traceback is shown only for a bug in segcore.
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
        sys.exit(ExitCode.INCOMPLETE)
    except Exception:
        traceback.print_exc()
        notify("This is a bug in segcore; please report it with the lines above.")
        sys.exit(ExitCode.INCOMPLETE)
    sys.exit(ExitCode.DONE)


def notify(*lines: str) -> None:
    """Print messages for people to stderr, one a line; empty ones are left out."""
    for line in lines:
        if line:
            print_text(line, sys.stderr)


def own_command(*added: str, without: str) -> str:
    """The command that is running, as one would type it, with other options.

    "" where it is not known, or where a word may be secret.
    """
    words = sys.argv[1:]
    if words[:1] != ["segment"] or any(redact_link(word) != word for word in words):
        return ""
    return shlex.join(["segcore", *(word for word in words if word != without), *added])


def print_text(text: str, stream: TextIO | None = None) -> None:
    """Print text for people, with "?" for what could steer their terminal; stdout by default.

    Names from archives, checkpoints and ground truths reach a terminal through this function, or
    as cells of `print_table`, and never by print() or as a string in a table.
    """
    stream = stream or sys.stdout
    safe = printable_lines(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(safe.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def safe_cell(text: str) -> Text:
    """Text for a table of rich: neither markup nor control characters mean anything in it."""
    from rich.text import Text

    return Text(printable(text))


def print_table(table: Table) -> None:
    """Print a table of rich to stdout; markup in its strings is shown as it is."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    if console.encoding.lower().startswith("utf"):
        console.print(table)
        return
    with console.capture() as capture:  # for example a terminal that has ASCII alone
        console.print(table)
    print(capture.get().encode(console.encoding, "backslashreplace").decode(console.encoding))


def print_json(document: Any) -> None:
    """Print the one JSON document of a command to stdout."""
    print(json.dumps(document, indent=2))
