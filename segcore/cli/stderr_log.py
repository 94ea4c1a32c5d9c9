"""The log on stderr: what of it is shown, in which form, and the flags that say so."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from segcore.logs.records import LIBRARIES, LOGGER_NAME, ConsoleFormatter, JsonFormatter, is_ours

if TYPE_CHECKING:
    from segcore.logs.options import LogOptions

# The options that the flags of a command set; their texts are the help of these.
KEYS = {"log_level": "log.level", "quiet": "log.quiet", "log_format": "log.format"}
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option("--log-level", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", show_default=False)]
LogFormat = Annotated[
    Literal["text", "json"] | None, typer.Option("--log-format", show_default=False)
]


def log_flags(
    log_level: str | None, quiet: bool, log_format: str | None
) -> dict[str, tuple[str | tuple[str, ...], object]]:
    """The flags as `load_config` takes them."""
    return {
        "--log-level": (KEYS["log_level"], log_level),
        "--quiet": (KEYS["quiet"], quiet or None),
        "--log-format": (KEYS["log_format"], log_format),
    }


class StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is at that moment."""

    def __init__(self, options: LogOptions) -> None:
        logging.Handler.__init__(self, options.shown_level)
        self._is_debug = options.shown_level <= logging.DEBUG
        self.is_json = options.format == "json"
        self.setFormatter(
            JsonFormatter() if self.is_json else ConsoleFormatter(tracebacks=self._is_debug)
        )

    @property
    def stream(self) -> TextIO:
        """Where it writes."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream is that of the process")

    def filter(self, record: logging.LogRecord) -> bool:
        """What is kept only, and, unless everything is shown, what other libraries say, is not."""
        if getattr(record, "kept_only", False):
            return False
        is_library = not is_ours(record.name) or record.name.startswith(f"{LIBRARIES}.")
        return self._is_debug or not is_library

    def format(self, record: logging.LogRecord) -> str:
        """The record in what the terminal can show."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return super().format(record).encode(encoding, "backslashreplace").decode(encoding)


def show_log(options: LogOptions) -> None:
    """Show the log on stderr from now on, until `hide_log`."""
    hide_log()
    handler = StderrHandler(options)
    logging.getLogger(LOGGER_NAME).setLevel(min(options.kept_level, logging.INFO))
    logging.getLogger(LOGGER_NAME).propagate = False
    for name in (LOGGER_NAME, None):
        logging.getLogger(name).addHandler(handler)


def hide_log() -> None:
    """Undo `show_log`."""
    if not is_shown():
        return
    for name in (LOGGER_NAME, None):
        logger = logging.getLogger(name)
        for handler in [known for known in logger.handlers if isinstance(known, StderrHandler)]:
            logger.removeHandler(handler)
    logging.getLogger(LOGGER_NAME).setLevel(logging.NOTSET)
    logging.getLogger(LOGGER_NAME).propagate = True


def is_shown() -> bool:
    """Whether `show_log` is in effect."""
    return bool(_handlers())


def is_json() -> bool:
    """Whether the log is shown as JSON."""
    return any(handler.is_json for handler in _handlers())


def _handlers() -> list[StderrHandler]:
    handlers = logging.getLogger(LOGGER_NAME).handlers
    return [handler for handler in handlers if isinstance(handler, StderrHandler)]
