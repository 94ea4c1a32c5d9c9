"""Options of the log, the same for all jobs."""

from __future__ import annotations

import logging
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Format = Literal["text", "json"]


class LogOptions(BaseModel):
    """What a job says on stderr, and the form of it and of the log that it keeps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least severe messages on stderr. The log in the output has those from info on "
        "in any case; debug shows tracebacks and the warnings of other libraries, too.",
    )
    quiet: bool = Field(
        False,
        description="Only warnings and errors on stderr, no progress line, and on stdout nothing "
        "but what --json prints.",
    )
    format: Format = Field(
        "text",
        description="text, or json: each message is a JSON object on a line of its own, on stderr "
        "and in the log in the output.",
    )

    @property
    def shown_level(self) -> int:
        """The level of `logging` from which on messages are shown."""
        level = logging.getLevelNamesMapping()[self.level.upper()]
        return max(level, logging.WARNING) if self.quiet else level

    @property
    def kept_level(self) -> int:
        """The level from which on messages are kept."""
        return min(logging.INFO, self.shown_level)
