"""The real `segcore` command as a process: run to its end, or watched and killed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.paths import PYTHONPATH, ROOT

# An interrupt inside of `exec("...")`, as on import of namedtuples, makes CPython end by SIGINT,
# whatever catches it; a shell calls both 130.
INTERRUPTED = (130, -signal.SIGINT)
MAX_WAIT_S = 600.0  # far more than any command here takes, on a busy machine too
_ACTOR_CLASSES = ("UnitActor", "ReadActor", "SegmentActor", "Isolator", "ImageActor")
POLL_S = 0.02  # listing S3 without pause would take a core from the job


def run_segcore(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m segcore` to its end; pytest's own time limit is the only one."""
    return run_module("segcore", *arguments, environment=environment)


def call_segcore(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Do what `run_segcore` does in this process, which saves the seconds of a start."""
    from segcore.cli.main import main

    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["segcore", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code or 0
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def run_module(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE`, which finds `segcore` and `tests`, with output as text."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


class SegmentCommand:
    """One start of `segcore segment`, in a session of its own as a terminal would give it.

    Attributes:
        process: The driver.
        started: When it was started, in seconds of `time.monotonic`.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log, self._stdout = log, log.with_suffix(".json")
        self._descendants: dict[int, psutil.Process] = {}
        self.started = time.monotonic()
        with self._log.open("w") as stderr, self._stdout.open("w") as stdout:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "segcore", "segment", *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": PYTHONPATH, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def running(self) -> bool:
        """Whether the driver lives."""
        return self.process.poll() is None

    def wait_until(self, condition: Callable[[], object], pause_s: float = POLL_S) -> bool:
        """Wait until something holds; False when the command ended before.

        Raises:
            AssertionError: Neither happened for a long time.
        """
        while self.running():
            if condition():
                return True
            waited_s = time.monotonic() - self.started
            assert waited_s < MAX_WAIT_S, f"hangs for {waited_s:.0f} s: {self.describe()}"
            time.sleep(pause_s)
        return False

    def is_segmenting(self) -> bool:
        """Whether its workers have started: before that, no part can appear."""
        return "Working with" in self.stderr()

    def advises_to_rerun(self) -> bool:
        """Whether it told people that the same command resumes the job."""
        return re.search(r"\b(re)?run the same command", self.stderr(), re.IGNORECASE) is not None

    def descendants(self) -> list[psutil.Process]:
        """All living processes below the driver that were ever seen here, itself left out."""
        roots = [process for process in self._descendants.values() if process.is_running()]
        if self.running():
            roots.append(psutil.Process(self.process.pid))
        for root in roots:
            try:
                for process in root.children(recursive=True):
                    self._descendants.setdefault(process.pid, process)
            except psutil.NoSuchProcess:
                continue
        return [process for process in self._descendants.values() if process.is_running()]

    def kill_driver(self) -> None:
        """SIGKILL the driver alone; what it started is still among `descendants`."""
        self.descendants()
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """The exit code.

        Raises:
            AssertionError: It does not end.
        """
        self.wait_until(lambda: False)
        return self.process.wait()

    def stdout(self) -> str:
        """What it printed."""
        return self._stdout.read_text()

    def stderr(self) -> str:
        """What it told people."""
        return self._log.read_text("utf-8", "replace")

    def report(self) -> dict[str, Any]:
        """The report that a command with `--json` printed when it succeeded."""
        text = self.stdout()
        try:
            return dict(json.loads(text))
        except ValueError:
            raise AssertionError(f"stdout is not one JSON document: {text[:1000]!r}") from None

    def describe(self) -> str:
        """Exit code and stderr, for a person who must find out what went wrong."""
        return f"\n--- exit code {self.process.poll()}:\n{self.stderr()[-4000:]}"

    def kill_all(self) -> None:
        """Kill the driver and all that it started, by id."""
        descendants = self.descendants()
        self.process.kill()
        self.process.wait()
        kill_trees(descendants)


def kill_trees(processes: Sequence[psutil.Process]) -> None:
    """Kill these processes, and whatever they started meanwhile, by id."""
    for process in processes:
        try:
            tree = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for one in tree:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
    psutil.wait_procs(processes, timeout=10)


def command_line(process: psutil.Process) -> list[str]:
    """The words of a process's command line; [] once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def pool_actors(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The actors of the pool among processes, by the title that Ray gives them."""
    titles = [(process, " ".join(command_line(process))) for process in processes]
    return [
        process
        for process, title in titles
        if title.startswith("ray::") and any(name in title for name in _ACTOR_CLASSES)
    ]
