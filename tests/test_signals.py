from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from segcore.signals import SignalShield, defer_signals, sigterm_as_interrupt

SEND_SIGNAL_TWICE = """
import os, signal, time
from segcore.signals import defer_signals
try:
    with defer_signals():
        os.kill(os.getpid(), signal.{name})
        time.sleep({pause_s})
        os.kill(os.getpid(), signal.{name})
        print("deferred", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def _send_twice(name: str, pause_s: float) -> tuple[int, str]:
    """Exit code and output of a process that gets a signal twice while it defers signals."""
    program = SEND_SIGNAL_TWICE.format(name=name, pause_s=pause_s)
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return process.returncode, process.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_deferred_signal_arrives_when_the_block_has_ended(number: int) -> None:
    steps = []

    def work() -> None:
        with defer_signals():
            os.kill(os.getpid(), number)
            steps.append("end of block")
        steps.append("after block")

    with sigterm_as_interrupt(), pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["end of block"]


def test_an_interrupt_arrives_even_when_the_block_fails() -> None:
    def work() -> None:
        with defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("first")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_an_alarm_of_a_crash_handler_is_cancelled() -> None:
    """That of abseil, in Ray, would abort the process 3 s after SIGTERM."""

    def work() -> None:
        with defer_signals():
            signal.alarm(30)
            os.kill(os.getpid(), signal.SIGTERM)

    with sigterm_as_interrupt(), pytest.raises(KeyboardInterrupt):
        work()
    assert signal.alarm(0) == 0


def test_handlers_are_restored_and_ignored_signals_stay_ignored() -> None:
    sigint_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    try:
        with defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not sigterm_handler
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is sigterm_handler
    finally:
        signal.signal(signal.SIGINT, sigint_handler)


def test_ctrl_c_that_a_wrapper_repeats_counts_once() -> None:
    assert _send_twice("SIGINT", 0) == (0, "deferred\ninterrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_later_on_ends_the_process(name: str) -> None:
    assert _send_twice(name, 1.2) == (-getattr(signal, name), "")


def test_a_shield_calls_in_one_other_thread_and_passes_on_results_and_exceptions() -> None:
    shield = SignalShield()
    threads = {shield.run(threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    with pytest.raises(ZeroDivisionError):
        shield.run(lambda: 1 // 0)
    with pytest.raises(ValueError, match="main thread"):
        shield.run(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))


def test_an_interrupt_waits_until_a_shielded_call_has_returned() -> None:
    completed = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        completed.append(True)

    with pytest.raises(KeyboardInterrupt):
        SignalShield().run(work)
    assert completed == [True]


def test_outside_the_main_thread_no_signal_is_deferred() -> None:
    handlers = []

    def work() -> None:
        with defer_signals(), sigterm_as_interrupt():
            handlers.append(signal.getsignal(signal.SIGTERM))

    handler_before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [handler_before]
