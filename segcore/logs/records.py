"""Log records as text or JSON, cleaned; and as plain values that travel between processes."""

from __future__ import annotations

import json
import logging
import textwrap
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from segcore.logs.cleaning import clean, clean_line
from segcore.logs.faults import fault_key

LOGGER_NAME = "segcore"
LIBRARIES = f"{LOGGER_NAME}.libraries"  # above the loggers of other libraries in workers
WHOLE = {"whole": True}  # `extra` of sentences that need no "Warning:" or "Error:" before them
KEPT_ONLY = {"kept_only": True}  # `extra` of what is for the log in the output alone
_EXTRAS = ("worker", "image", "error")  # in the order in which they are shown
_INDENT = "    "  # of a traceback: no line of it looks like a record


def record_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says: time (UTC), level, logger, message, and what else it has.

    `extra={"image": ...}` of a logging call says which image it is about. `error` is the type and
    place of an exception, `traceback` the whole of it.
    """
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    fields: dict[str, Any] = {
        "time": time.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": clean_line(record.getMessage()),
    }
    for name in _EXTRAS:
        if value := getattr(record, name, ""):
            fields[name] = clean_line(str(value))
    if (error := record.exc_info[1] if record.exc_info else None) is not None:
        fields["error"] = error_of(record)
        fields["traceback"] = clean("".join(traceback.format_exception(error))).rstrip()
    elif text := getattr(record, "traceback", ""):
        fields["traceback"] = clean(str(text)).rstrip()
    return fields


def error_of(record: logging.LogRecord) -> str:
    """Type and place of the error that a record is about; "" if it is about none."""
    if text := getattr(record, "error", ""):
        return clean_line(str(text))
    error = record.exc_info[1] if record.exc_info else None
    return clean_line(fault_key(error)) if error is not None else ""


def is_ours(name: str) -> bool:
    """Whether a logger of this name is one of segcore."""
    return name == LOGGER_NAME or name.startswith(f"{LOGGER_NAME}.")


def record_of_fields(fields: Mapping[str, Any]) -> logging.LogRecord:
    """Inverse of `record_fields`, for a record that comes from another process."""
    name = fields["logger"] if is_ours(fields["logger"]) else f"{LIBRARIES}.{fields['logger']}"
    record = logging.makeLogRecord({"msg": fields["message"], "name": name})
    record.levelname = str(fields["level"]).upper()
    record.levelno = logging.getLevelNamesMapping()[record.levelname]
    record.created = datetime.fromisoformat(fields["time"]).timestamp()
    record.__dict__.update({n: fields[n] for n in (*_EXTRAS, "traceback") if n in fields})
    return record


class TextFormatter(logging.Formatter):
    """``2026-11-28T17:05:29.123Z WARNING segcore.worker: message (image ...)``, for files."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line; a traceback follows, indented."""
        fields = record_fields(record)
        extras = ", ".join(f"{name} {fields[name]}" for name in _EXTRAS if name in fields)
        line = f"{fields['time']} {record.levelname:<7} {fields['logger']}: {fields['message']}"
        return _with_traceback(f"{line} ({extras})" if extras else line, fields)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        return json.dumps(record_fields(record))


class ConsoleFormatter(logging.Formatter):
    """The bare message for people at a terminal; what is severe says so.

    Args:
        tracebacks: Show them, too.
    """

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line; perhaps a traceback follows."""
        fields = record_fields(record)
        line = fields["message"]
        if image := fields.get("image"):
            line += f" (image {image})"
        if record.levelno != logging.INFO and not getattr(record, "whole", False):
            line = f"{record.levelname.capitalize()}: {line}"
        return _with_traceback(line, fields) if self._tracebacks else line


def make_formatter(form: str) -> logging.Formatter:
    """The formatter of a kept log.

    Args:
        form: ``text`` or ``json``.
    """
    return JsonFormatter() if form == "json" else TextFormatter()


def _with_traceback(line: str, fields: Mapping[str, Any]) -> str:
    if not fields.get("traceback"):
        return line
    return line + "\n" + textwrap.indent(fields["traceback"], _INDENT, lambda _: True)
