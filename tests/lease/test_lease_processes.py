"""The lease between real processes that are killed, stopped, or have a wrong clock."""

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
from segcore.lease.lease import Lease, LeaseHeld
from segcore.lease.observation import GONE, read_lease
from tests.support.lease_files import (
    acquire_lease,
    lease_folder,
    no_wait_clock,
    storage,
    write_lease_file,
)
from tests.support.paths import PYTHONPATH

HOLDER_SCRIPT = """
    import signal, sys, threading
    {before}
    from segcore.errors import SegcoreError
    from segcore.lease.hold import hold_lease
    from segcore.storage import Storage
    try:
        with hold_lease(Storage(), sys.argv[1], float(sys.argv[2])) as lease:
            print("held", flush=True)
            {work}
            print("acted", flush=True)
    except SegcoreError as error:
        print(type(error).__name__, error.message, flush=True)
"""
CHECK_ON_INPUT = "sys.stdin.readline(); lease.check()"


class HolderProcess:
    """A process that holds the lease of an edition and does some work."""

    def __init__(self, prefix: str, ttl_s: float, work: str, before: str = "") -> None:
        script = textwrap.dedent(HOLDER_SCRIPT).format(work=work, before=before)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, lease_folder(prefix), str(ttl_s)],
            env=os.environ | {"PYTHONPATH": PYTHONPATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.read_line() == "held"

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send_line(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)


@pytest.fixture
def start_holder(folder: str) -> Iterator[Callable[..., HolderProcess]]:
    started: list[HolderProcess] = []

    def start(*args: object, **options: object) -> HolderProcess:
        started.append(HolderProcess(folder, *args, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for holder in started:
        holder.process.kill()
        holder.process.communicate()


@pytest.mark.slow
def test_the_lease_of_a_killed_process_on_this_machine_is_free_at_once(
    folder: str, start_holder
) -> None:
    holder = start_holder(600, CHECK_ON_INPUT)
    with pytest.raises(LeaseHeld, match=f"process {holder.process.pid}"):
        acquire_lease(folder, 600, no_wait_clock())
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still a zombie
    assert read_lease(storage, lease_folder(folder), 600).state == GONE
    acquire_lease(folder, 600, no_wait_clock()).check()


def test_another_process_with_the_same_pid_is_not_the_holder(tmp_path: Path) -> None:
    current = Holder.of_current_process(60)
    other_start = {"process_start_ticks": current.process_start_ticks + 1}
    assert current.exists() is True
    assert current.model_copy(update=other_start).exists() is False
    assert current.model_copy(update={"machine": ""}).exists() is None
    assert current.model_copy(update={"host": "other"}).exists() is None
    write_lease_file(str(tmp_path), current.model_copy(update=other_start))
    acquire_lease(str(tmp_path), 60, no_wait_clock())


def _acquire_when_free(folder: str) -> Lease:
    while True:
        try:
            return acquire_lease(folder, 60)
        except LeaseHeld:
            time.sleep(0.1)


@pytest.mark.faults
def test_a_stopped_process_that_wakes_up_notices_the_loss_before_it_acts(
    folder: str, start_holder
) -> None:
    holder = start_holder(1.0, CHECK_ON_INPUT)
    holder.send_signal(signal.SIGSTOP)
    lease = _acquire_when_free(folder)
    holder.send_line()
    holder.send_signal(signal.SIGCONT)
    line = holder.read_line()
    assert line.startswith("LeaseLost Another run took over")
    assert f"process {os.getpid()}" in line
    holder.process.wait()
    lease.check()


@pytest.mark.faults
def test_a_stopped_process_is_interrupted_in_its_work_when_it_wakes_up(
    folder: str, start_holder
) -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"  # as in a background job
    holder = start_holder(1.0, "threading.Event().wait()", before=ignored)
    holder.send_signal(signal.SIGINT)
    holder.send_signal(signal.SIGSTOP)
    lease = _acquire_when_free(folder)
    holder.send_signal(signal.SIGCONT)
    assert holder.read_line().startswith("LeaseLost Another run took over")
    lease.check()


@pytest.mark.faults
@pytest.mark.parametrize("hours", [-9, 9])
def test_a_wrong_clock_of_the_holder_does_not_matter(
    folder: str, start_holder, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    wrong_clock = f"import time; real = time.time; time.time = lambda: real() + {hours * 3600}"
    holder = start_holder(2.0, CHECK_ON_INPUT, before=wrong_clock)
    monkeypatch.setattr("segcore.lease.holder._machine_id", lambda: "another")
    with pytest.raises(LeaseHeld, match=f"process {holder.process.pid}"):
        acquire_lease(folder)
    holder.send_signal(signal.SIGKILL)
    acquire_lease(folder).check()  # only once it expired: seen from "another", it may be alive
