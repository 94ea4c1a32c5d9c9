"""What the exit code of a command means."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended; the numbers are a contract. `MEANINGS` says it in words.

    RUNNING is for ``segcore status --exit-code`` alone: the run goes on. REFUSED is for
    a limit that was asked for and is exceeded, as of `segcore compare`.
    """

    DONE = 0
    INCOMPLETE = 1
    USAGE = 2
    TOO_MANY_FAILED = 3
    REFUSED = 4
    RUNNING = 5
    NOTHING_TO_DO = 99
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.INCOMPLETE: "work left, infrastructure failed, or no image found",
    ExitCode.USAGE: "usage error",
    ExitCode.TOO_MANY_FAILED: "too many images failed",
    ExitCode.REFUSED: "over a limit that was asked for, or refused by a gate",
    ExitCode.NOTHING_TO_DO: "nothing to do, with --exit-99-if-nothing-to-do",
    ExitCode.INTERRUPTED: "interrupted",
}
EXIT_CODES = "Exit codes: " + "; ".join(f"{c} {meaning}" for c, meaning in MEANINGS.items()) + "."
