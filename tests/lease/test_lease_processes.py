"""The lease between real processes that are killed, stopped, or have the wrong time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segcore.lease.holder import Holder
from segcore.lease.lease import FOLDER, Lease, LeaseHeld
from segcore.lease.observation import GONE, read_lease
from segcore.storage import join
from tests.support.lease_files import at_once, put, storage, take
from tests.support.paths import PYTHONPATH

HOLD = """
    import signal, sys, threading
    {before}
    from segcore.errors import SegcoreError
    from segcore.lease.lease import hold_lease
    from segcore.storage import Storage
    try:
        with hold_lease(Storage(), sys.argv[1], float(sys.argv[2])) as lease:
            print("held", flush=True)
            {work}
            print("acted", flush=True)
    except SegcoreError as error:
        print(type(error).__name__, error.message, flush=True)
"""
WAIT_TO_CHECK = "sys.stdin.readline(); lease.check()"


class Child:
    """A process that holds a lease and does some work."""

    def __init__(self, folder: str, ttl_s: float, work: str, before: str = "") -> None:
        script = textwrap.dedent(HOLD).format(work=work, before=before)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, folder, str(ttl_s)],
            env=os.environ | {"PYTHONPATH": PYTHONPATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "held"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@pytest.fixture
def child(folder: str) -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(*args: object, **options: object) -> Child:
        started.append(Child(folder, *args, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_killed_one_on_this_machine_is_free_at_once(folder: str, child) -> None:
    holder = child(600, WAIT_TO_CHECK)
    with pytest.raises(LeaseHeld, match=f"process {holder.process.pid}"):
        take(folder, 600, at_once())
    holder.send(signal.SIGKILL)
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie
    assert read_lease(join(folder, FOLDER), storage, 600).state == GONE
    take(folder, 600, at_once()).check()


def test_another_process_with_its_number_is_not_the_holder(tmp_path: Path) -> None:
    me = Holder.here(60)
    assert me.exists() is True
    assert (
        me.model_copy(update={"process_start_ticks": me.process_start_ticks + 1}).exists() is False
    )
    assert me.model_copy(update={"machine": ""}).exists() is None
    assert me.model_copy(update={"host": "other"}).exists() is None
    put(str(tmp_path), me.model_copy(update={"process_start_ticks": me.process_start_ticks + 1}))
    take(str(tmp_path), 60, at_once())


def _take_when_free(folder: str) -> Lease:
    while True:
        try:
            return take(folder, 60)
        except LeaseHeld:
            time.sleep(0.1)


def test_a_stopped_one_that_wakes_up_notices_before_it_acts(folder: str, child) -> None:
    holder = child(1.0, WAIT_TO_CHECK)
    holder.send(signal.SIGSTOP)
    mine = _take_when_free(folder)
    holder.go_on()
    holder.send(signal.SIGCONT)
    said = holder.line()
    assert said.startswith("LeaseLost Another run took over")
    assert f"process {os.getpid()}" in said
    holder.process.wait()
    mine.check()


def test_a_stopped_one_at_work_is_interrupted_when_it_wakes_up(folder: str, child) -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"  # as in a job in the background
    holder = child(1.0, "threading.Event().wait()", before=ignored)
    holder.send(signal.SIGINT)
    holder.send(signal.SIGSTOP)
    mine = _take_when_free(folder)
    holder.send(signal.SIGCONT)
    assert holder.line().startswith("LeaseLost Another run took over")
    mine.check()


@pytest.mark.parametrize("hours", [-9, 9])
def test_a_holder_with_the_wrong_time_is_judged_all_the_same(
    folder: str, child, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    wrong = f"import time; real = time.time; time.time = lambda: real() + {hours * 3600}"
    holder = child(2.0, WAIT_TO_CHECK, before=wrong)
    monkeypatch.setattr("segcore.lease.holder._machine", lambda: "another")
    with pytest.raises(LeaseHeld, match=f"process {holder.process.pid}"):
        take(folder)
    holder.send(signal.SIGKILL)
    take(folder).check()  # after its time, as that it is dead cannot be told from "another"
