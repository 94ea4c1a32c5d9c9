"""What all commands share: options of the same meaning, errors as sentences, exit codes."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from segcore.cli import stderr_log
from segcore.errors import SegcoreError, UsageError, describe_error
from segcore.exit_codes import ExitCode
from segcore.logs.cleaning import clean
from segcore.logs.records import WHOLE
from segcore.signals import raise_interrupt
from segcore.text import printable, printable_lines, redact_link

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from segcore.storage import Storage

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, on errors, too.")
]
ConfigSets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set one option by its key; `segcore config` lists them. Repeatable.",
    ),
]
StorageSets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="storage.KEY=VALUE",
        help="How object stores are accessed, as for segment. Repeatable.",
    ),
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
PublishedEdition = Annotated[
    str | None,
    typer.Option(
        help="Edition in OUTPUT. Default: the one that latest.json names.", show_default=False
    ),
]
IncludeUnlisted = Annotated[
    bool,
    typer.Option(
        "--include-unlisted",
        help="Also the results of images that the newest run's listing lacks.",
    ),
]

# The ClickException of whichever click typer uses: newer versions bring one of their own.
_CommandLineError: Any = typer.BadParameter.__mro__[2]

_PROGRESS_INTERVAL_S = 10.0
_LOGGER = logging.getLogger(__name__)


class ProgressInterval:
    """Tells when a long command is to say again how far it has come.

    Attributes:
        seconds: From the start to when `is_over` was last called.
    """

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self.seconds = 0.0

    def is_over(self) -> bool:
        """Whether ten seconds have passed since the start, or since this last said so."""
        now = time.monotonic()
        self.seconds = now - self._started
        if now - self._last < _PROGRESS_INTERVAL_S:
            return False
        self._last = now
        return True


def unit_progress(done_what: str) -> Callable[[int, int], None]:
    """What a long command calls with the units that are done, and all: says so now and then.

    Args:
        done_what: What was done with them: ``read``, ``compared``, ...
    """
    interval = ProgressInterval()

    def say(done: int, units: int) -> None:
        if interval.is_over():
            notify(f"{done:,} of {units:,} units {done_what}.")

    return say


def new_app(*, add_completion: bool = False, **options: Any) -> typer.Typer:
    """A typer app without decorated tracebacks; the outermost one adds shell completion."""
    return typer.Typer(
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        **options,
    )


def run_app(app: typer.Typer) -> NoReturn:
    """Run an app and exit with the right code, see `segcore.exit_codes`.

    A traceback is shown only for a bug in segcore.
    """
    # Batch systems stop a job with SIGTERM; it is handled as Ctrl-C is.
    signal.signal(signal.SIGTERM, raise_interrupt)
    stderr_log.hide_log()
    try:
        run_with_json_errors(app) if "--json" in sys.argv[1:] else app()
    except SegcoreError as error:
        lines = f"Error: {error.message}".split("\n")
        notify(*map(clean, (*lines, error.hint)), level=logging.ERROR)
        print_json_error(
            error.code, error.message, error.hint, error.exit_code, details=error.details
        )
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `segcore ... | head`
        sys.stderr.close()
        sys.exit(ExitCode.INCOMPLETE)
    except Exception as error:
        show_bug(error)
        print_json_error("bug", describe_error(error), "", ExitCode.INCOMPLETE)
        sys.exit(ExitCode.INCOMPLETE)
    sys.exit(ExitCode.DONE)


def show_bug(error: Exception) -> None:
    """Print the traceback of a bug to stderr, or log it where that is JSON."""
    if stderr_log.is_json():
        _LOGGER.error("This is a bug in segcore; please report this line.", exc_info=error)
        return
    print_text(clean("".join(traceback.format_exception(error))), sys.stderr)
    notify("This is a bug in segcore; please report it with the lines above.", level=logging.ERROR)


def run_with_json_errors(app: typer.Typer) -> None:
    """Run an app; what is wrong with its command line is a JSON document, too."""
    try:
        status = app(standalone_mode=False)
    except _CommandLineError as error:
        error.show()
        print_json_error("usage_error", error.format_message(), "", error.exit_code)
        sys.exit(error.exit_code)
    except typer.Abort:  # Ctrl-C
        print_json_error("interrupted", "Stopped.", "", ExitCode.INTERRUPTED)
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(status if isinstance(status, int) else ExitCode.DONE)


def print_json_error(
    code: str, message: str, hint: str, exit_code: int, details: Sequence[str] = ()
) -> None:
    """Print the one JSON document of a command that failed, if ``--json`` asks for one.

    What may be secret is cleaned out of it, as out of the log.

    Args:
        details: What else went wrong; the list `errors` has it after the message.
    """
    if "--json" in sys.argv[1:]:
        message, hint, *details = map(clean, (message, hint, *details))
        error = {"code": code, "message": message, "hint": hint, "exit_code": int(exit_code)}
        print_json({"error": error, "errors": [message, *details]})


def open_storage(sets: Sequence[str] | None) -> Storage:
    """The storage that ``--set storage.key=value`` describes.

    Raises:
        UsageError: It sets something else.
    """
    from segcore.config import load_config
    from segcore.storage import Storage

    for assignment in sets or ():
        key = assignment.partition("=")[0].strip()
        if not key.startswith("storage."):
            raise UsageError(
                f"--set {printable(key)}: this command takes only options of storage.",
                "For example --set storage.endpoint_url=http://localhost:9000",
            )
    return Storage(load_config(sets=sets or ()).storage)


def notify(*lines: str, level: int = logging.INFO) -> None:
    """Print messages for people to stderr, one a line; empty ones are left out.

    What would begin another line is in a name from an archive, and is shown as "?". Where the log
    is shown, they are part of it.
    """
    for line in filter(None, lines):
        if stderr_log.is_shown():
            _LOGGER.log(level, "%s", printable(line), extra=WHOLE)
        else:
            print_text(printable(line), sys.stderr)


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
