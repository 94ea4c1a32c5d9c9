"""A job until its end, against a server that stutters, forgets, falls silent or dies."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from segcore.distributed import job_following
from segcore.distributed.job_following import JobEnd, follow
from segcore.distributed.job_server import JobServer
from segcore.errors import ClusterError, UsageError

LOG = "".join(f"line {number} of the job ✓\n" for number in range(200))


class FakeClient:
    """A job whose output is `LOG`, cut off again and again, and then its end.

    Args:
        cuts: After how many characters each connection breaks.
    """

    def __init__(self, end: Any, cuts: list[int], pieces: random.Random | None = None) -> None:
        self._end = end
        self._cuts = cuts
        self._pieces = pieces or random.Random(0)
        self._told = threading.Event()

    def get_job_info(self, job_id: str) -> Any:
        if isinstance(self._end, Exception):
            raise self._end
        return self._end if self._told.is_set() else _info("RUNNING")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        stop = self._cuts.pop(0) if self._cuts else len(LOG)
        position = 0
        while position < stop:
            step = self._pieces.randint(1, 900)
            yield LOG[position : min(position + step, stop)]
            position += step
        if stop < len(LOG):
            raise RuntimeError("WebSocket connection closed unexpectedly")
        self._told.set()


def _info(status: str, code: int | None = None, message: str = "") -> Any:
    return SimpleNamespace(status=status, driver_exit_code=code, message=message)


def _server(client: Any) -> JobServer:
    return JobServer("http://head:8265", "2.60.0", client, ())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_STATUS_INTERVAL_S", "_WAIT_S", "_MAX_RETRY_PAUSE_S"):
        monkeypatch.setattr(job_following, name, 0.002)


@pytest.mark.parametrize("seed", range(20))
def test_each_line_is_shown_once_however_often_the_connection_breaks(seed: int) -> None:
    pieces = random.Random(seed)
    cuts = [pieces.randint(0, len(LOG) - 1) for _ in range(pieces.randint(0, 6))]
    shown: list[str] = []
    end = follow(_server(FakeClient(_info("SUCCEEDED", 0), cuts, pieces)), "job", shown.append)
    assert "".join(shown) == LOG
    assert end == JobEnd("SUCCEEDED", 0)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 99, 130])
def test_the_exit_code_is_the_jobs_own(code: int) -> None:
    end = follow(_server(FakeClient(_info("FAILED", code), [])), "job", lambda text: None)
    assert end == JobEnd("FAILED", code)


@pytest.mark.parametrize(
    ("info", "code", "words"),
    [
        (_info("STOPPED"), 130, ""),
        (_info("FAILED", -9), 1, "signal 9; submit it again to resume. Was there enough memory"),
        (_info("FAILED", 137), 1, "signal 9"),
        (_info("FAILED", -15), 1, "signal 15"),
        (_info("FAILED", None, "runtime_env\x1b[2J failed"), 1, "runtime_env?[2J failed"),
        (
            _info(
                "FAILED",
                None,
                "No runtime env. Traceback (most recent call last):\n  File x\n"
                "KeyError: 1\n\n  File y\nFileNotFoundError: no 'podman'\n\n",
            ),
            1,
            "did not come to its end: No runtime env. FileNotFoundError: no 'podman'",
        ),
    ],
)
def test_ends_without_an_exit_code_of_their_own(info: Any, code: int, words: str) -> None:
    end = follow(_server(FakeClient(info, [])), "job", lambda text: None)
    assert end.exit_code == code
    assert words in end.message


def test_a_cluster_without_segcore_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LOG", "/usr/bin/python: No module named segcore\n")
    end = follow(_server(FakeClient(_info("FAILED", 1), [])), "job", lambda text: None)
    assert "has no segcore" in end.message


def test_a_job_that_is_not_there() -> None:
    client = FakeClient(RuntimeError("Request failed with status code 404: x."), [])
    with pytest.raises(UsageError, match="has no job job"):
        follow(_server(client), "job", lambda text: None)


class DyingClient(FakeClient):
    """Answers a few times, and then as `last`."""

    def __init__(self, answers: int, last: Exception) -> None:
        super().__init__(_info("RUNNING"), [])
        self._answers = answers
        self._last = last

    def get_job_info(self, job_id: str) -> Any:
        self._answers -= 1
        if self._answers < 0:
            raise self._last
        return _info("RUNNING")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if self._answers < 0:
            raise self._last
        yield "working\n"


def test_a_head_that_dies_is_said_with_what_to_do() -> None:
    client = DyingClient(3, ConnectionError("refused"))
    with pytest.raises(ClusterError, match="has not answered for 0:00: refused") as error:
        follow(_server(client), "job-1", lambda text: None, max_silence_s=0.01)
    assert "segcore submit --attach job-1 --address http://head:8265" in error.value.hint
    assert error.value.exit_code == 1


def test_a_head_that_came_back_without_the_job_is_said() -> None:
    client = DyingClient(3, RuntimeError("Request failed with status code 404: x."))
    with pytest.raises(ClusterError, match="does not know the job job-1 any more"):
        follow(_server(client), "job-1", lambda text: None)
