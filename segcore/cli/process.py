"""The end of the command's process, which no thread that is still at work can turn into a crash.

When Python is dismantled, a thread that comes back from a library at that moment (a heartbeat that
hung in the storage, a read of pyarrow's, a call of Ray's) is ended in the middle of native code.
That aborts the process: exit code 134 in place of the command's own. So Python is not dismantled:
once all else has been closed, the process just ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from segcore.exit_codes import ExitCode


def run_as_process(main: Callable[[], NoReturn]) -> NoReturn:
    """Call the entry point of a program and end the process with the code that it exits with."""
    # Threads of torch that wait for each other sleep. By default OpenMP lets them spin, so a
    # training beside other work took three times the CPU time and five times as long; without
    # such work, sleeping costs a few per cent.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    codes: list[int] = []
    # What is registered first is called last: after threads were awaited, and Ray was stopped.
    atexit.register(_end_process, codes)
    try:
        main()
    except SystemExit as end:
        codes.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _end_process(codes: list[int]) -> None:
    """End with the code, if there is one; else Python says what happened, and ends as always."""
    if not codes:
        return
    code = codes[0]
    logging.shutdown()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # nobody reads it any more
        code = code or ExitCode.INCOMPLETE
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)
