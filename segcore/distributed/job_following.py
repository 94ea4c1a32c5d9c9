"""A submitted job until its end: its output as it comes, and how it ended."""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from segcore.distributed.job_server import JobServer
from segcore.errors import ClusterError, UsageError
from segcore.exit_codes import ExitCode
from segcore.text import format_duration, one_line

_STATUS_INTERVAL_S = 2.0
_WAIT_S = 0.2
_LAST_OUTPUT_TIMEOUT_S = 10.0
_MAX_RETRY_PAUSE_S = 5.0
MAX_SILENCE_S = 60.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_EXCEPTION = re.compile(r"^\s*([\w.]*(?:Error|Exception)\b.*)$", re.MULTILINE)


@dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes:
        status: Ray's word: SUCCEEDED, FAILED or STOPPED.
        exit_code: What its command ended with; where it has none, 1, or 130 if it was stopped.
        message: What people should know besides; "" for nothing.
    """

    status: str
    exit_code: int
    message: str = ""


def follow(
    server: JobServer,
    job_id: str,
    show: Callable[[str], None],
    *,
    max_silence_s: float = MAX_SILENCE_S,
) -> JobEnd:
    """Show the output of a job, from its beginning, until it ends.

    Args:
        show: Takes output as it comes, in pieces of any length.
        max_silence_s: How long the server may not answer.

    Raises:
        UsageError: The server knows no such job.
        ClusterError: The server does not answer any more, or has forgotten the job.
    """
    status = _read_status(server, job_id)
    if status is None:
        raise UsageError(
            f"The cluster at {server.address} has no job {job_id}.",
            hint="`ray job list` shows those that it has.",
        )
    with closing(_OutputTail(server.client, job_id)) as tail:
        answered_at = asked_at = time.monotonic()
        while status.status not in _ENDED:
            tail.show_next(show, _WAIT_S)
            if time.monotonic() - asked_at < _STATUS_INTERVAL_S:
                continue
            asked_at = time.monotonic()
            try:
                newest = _read_status(server, job_id)
            except (OSError, RuntimeError) as error:
                silence_s = time.monotonic() - answered_at
                if silence_s > max_silence_s:
                    raise _lost(server, job_id, silence_s, error) from None
                continue
            if newest is None:
                raise _forgotten(server, job_id)
            answered_at, status = time.monotonic(), newest
        tail.show_rest(show)
        return _end(status, tail.lacks_segcore)


def ask_to_stop(server: JobServer, job_id: str) -> None:
    """Send SIGTERM to a job; it stops after what is in progress, and can be resumed.

    Raises:
        ClusterError: The server does not answer, or does not know it.
    """
    try:
        server.client.stop_job(job_id)
    except Exception as error:  # Ray raises bare ones
        raise ClusterError(
            f"The job {job_id} could not be asked to stop: {one_line(error, 300)}"
        ) from None


class _OutputTail:
    """The output of a job, read by a thread that connects again whenever it is cut off.

    The server sends all from the beginning each time; what was shown is left out.
    """

    def __init__(self, client: Any, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._pieces: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._n_shown = 0
        self._last = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-output", daemon=True)
        self._thread.start()

    @property
    def lacks_segcore(self) -> bool:
        """Whether the command did not find segcore, as far as its last output tells."""
        return "No module named segcore" in self._last

    def close(self) -> None:
        """Connect no more."""
        self._closed.set()

    def show_next(self, show: Callable[[str], None], timeout_s: float) -> None:
        """Show the next piece; returns at the latest after the timeout."""
        try:
            piece = self._pieces.get(timeout=timeout_s)
        except queue.Empty:
            return
        self._last = (self._last + piece)[-2000:]
        show(piece)

    def show_rest(self, show: Callable[[str], None]) -> None:
        """Show what is left of a job that has ended."""
        give_up_at = time.monotonic() + _LAST_OUTPUT_TIMEOUT_S
        while self._thread.is_alive() and time.monotonic() < give_up_at:
            self.show_next(show, _WAIT_S)
        while not self._pieces.empty():
            self.show_next(show, _WAIT_S)

    def _run(self) -> None:
        pause_s = _WAIT_S
        while not self._closed.is_set():
            try:
                asyncio.run(self._read())
                return
            except Exception:  # the main thread finds out whether the server is gone
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, _MAX_RETRY_PAUSE_S)

    async def _read(self) -> None:
        position = 0
        async for text in self._client.tail_job_logs(self._job_id):
            new = text[max(0, self._n_shown - position) :]
            position += len(text)
            if new:
                self._n_shown = position
                self._pieces.put(new)


def _read_status(server: JobServer, job_id: str) -> Any | None:
    """What the server says of a job; None where it knows none.

    Raises:
        OSError, RuntimeError: The server does not answer.
    """
    try:
        return server.client.get_job_info(job_id)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def _end(status: Any, lacks_segcore: bool) -> JobEnd:
    """How a job ended, by what the server says of it."""
    name = str(getattr(status.status, "value", status.status))
    code = status.driver_exit_code
    if name == "STOPPED":
        return JobEnd(name, ExitCode.INTERRUPTED)
    if name == "SUCCEEDED":
        return JobEnd(name, ExitCode.DONE)
    if lacks_segcore:
        return JobEnd(
            name,
            ExitCode.INCOMPLETE,
            "The cluster has no segcore. Use an image that has it; --ship-code sends segcore "
            "itself, but not what it needs.",
        )
    if code is None:
        text = f"The job did not come to its end: {_reason(str(status.message))}"
        return JobEnd(name, ExitCode.INCOMPLETE, text)
    if code < 0 or (code > 128 and code != ExitCode.INTERRUPTED):
        number = -code if code < 0 else code - 128
        return JobEnd(
            name,
            ExitCode.INCOMPLETE,
            f"The command was ended by signal {number}; submit it again to resume."
            + (" Was there enough memory on its node?" if number == 9 else ""),
        )
    return JobEnd(name, code)


def _reason(message: str) -> str:
    """A message of Ray's in one line, with the last exception in place of a traceback."""
    begin, found, traceback = message.partition("Traceback (most recent call last):")
    exceptions = _EXCEPTION.findall(traceback)
    return one_line(f"{begin} {exceptions[-1]}" if found and exceptions else message, 600)


def _lost(server: JobServer, job_id: str, silence_s: float, error: Exception) -> ClusterError:
    return ClusterError(
        f"The job server at {server.address} has not answered for {format_duration(silence_s)}: "
        f"{one_line(error, 200)}",
        hint="If only the connection is gone, the job goes on: segcore submit --attach "
        f"{job_id} --address {server.address}. If the head is gone, so is the job: submit it again "
        "to resume; finished units are not redone.",
    )


def _forgotten(server: JobServer, job_id: str) -> ClusterError:
    return ClusterError(
        f"The cluster at {server.address} does not know the job {job_id} any more: its head was "
        "started anew, and the job has ended with the old one.",
        hint="Submit it again to resume; finished units are not redone.",
    )
