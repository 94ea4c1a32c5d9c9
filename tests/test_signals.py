from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from segcore.signals import SignalShield, defer_signals, sigterm_as_interrupt

TWICE = """
import os, signal, time
from segcore.signals import defer_signals
try:
    with defer_signals():
        os.kill(os.getpid(), signal.{first})
        time.sleep({pause})
        os.kill(os.getpid(), signal.{first})
        print("held", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def _twice(first: str, pause: float) -> tuple[int, str]:
    program = TWICE.format(first=first, pause=pause)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_held_signal_comes_when_the_block_has_ended(number: int) -> None:
    steps = []

    def work() -> None:
        with defer_signals():
            os.kill(os.getpid(), number)
            steps.append("whole")
        steps.append("never")

    with sigterm_as_interrupt(), pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["whole"]


def test_an_interrupt_comes_even_when_the_block_fails() -> None:
    def work() -> None:
        with defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("first")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_an_alarm_set_by_a_crash_handler_is_called_off() -> None:
    """Abseil's, in Ray, would abort the process 3 s after SIGTERM."""

    def work() -> None:
        with defer_signals():
            signal.alarm(30)
            os.kill(os.getpid(), signal.SIGTERM)

    with sigterm_as_interrupt(), pytest.raises(KeyboardInterrupt):
        work()
    assert signal.alarm(0) == 0


def test_handlers_are_as_before_and_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    term = signal.getsignal(signal.SIGTERM)
    try:
        with defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not term
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is term
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_a_wrapper_doubles_is_one() -> None:
    assert _twice("SIGINT", 0) == (0, "held\ninterrupted\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_whoever_insists_ends_the_process(name: str) -> None:
    assert _twice(name, 1.2) == (-getattr(signal, name), "")


def test_aside_runs_in_one_other_thread_and_passes_on_what_comes_of_it() -> None:
    aside = SignalShield()
    threads = {aside.run(threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    with pytest.raises(ZeroDivisionError):
        aside.run(lambda: 1 // 0)
    with pytest.raises(ValueError, match="main thread"):
        aside.run(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))


def test_an_interrupt_waits_for_what_runs_aside() -> None:
    done = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        done.append(True)

    with pytest.raises(KeyboardInterrupt):
        SignalShield().run(work)
    assert done == [True]


def test_outside_of_the_main_thread_nothing_is_held() -> None:
    seen = []

    def work() -> None:
        with defer_signals(), sigterm_as_interrupt():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
