"""The real `segcore segment` as a process that can be watched, killed and asked how it went."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from segcore.storage import Storage
from tests.faults.chaos_cluster import end
from tests.support.paths import ROOT

# An interrupt inside of `exec("...")`, as on import of namedtuples, makes CPython end by SIGINT,
# whatever catches it; a shell calls both 130.
INTERRUPTED = (130, -signal.SIGINT)
_ACTORS = ("UnitActor", "Isolator", "ImageActor")
LIMIT_S = 600.0  # far more than any command here takes, on a busy machine too
POLL_S = 0.02  # listing S3 without pause would take a core from the job


class Parts:
    """Which units of an output are in which table, by listing it past the job."""

    def __init__(self, storage: Storage, output: str) -> None:
        self._storage, self._output = storage, output

    def committed(self) -> set[str]:
        """Units that are done."""
        return self._units("images")

    def half_done(self) -> set[str]:
        """Units with instances but without images."""
        instances = self._units("instances")  # first, or a unit done in between would count
        return instances - self._units("images")

    def _units(self, table: str) -> set[str]:
        found = (info.uri.split("/") for info in self._storage.list(self._output))
        return {names[-1] for names in found if names[-2] == table}


class Command:
    """One start of the command, in a session of its own, as a terminal would give it.

    Attributes:
        before: Units that were committed when it was started.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, parts: Parts
    ) -> None:
        self.parts = parts
        self.before = len(parts.committed())
        self._log, self._out = log, log.with_suffix(".json")
        self._known: dict[int, psutil.Process] = {}
        self.began = time.monotonic()
        with self._log.open("w") as stderr, self._out.open("w") as stdout:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "segcore", "segment", *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def running(self) -> bool:
        """Whether the driver lives."""
        return self.process.poll() is None

    def until(self, true: Callable[[], object], pause: float = POLL_S) -> bool:
        """Wait until something holds; False when the command ended before.

        Raises:
            AssertionError: Neither happened for a long time.
        """
        while self.running():
            if true():
                return True
            waited = time.monotonic() - self.began
            assert waited < LIMIT_S, f"hangs for {waited:.0f} s: {self.story()}"
            time.sleep(pause)
        return False

    def works(self) -> bool:
        """Whether it has come to segmenting: before that, no part can appear."""
        return "Working with" in self.summary()

    def family(self) -> list[psutil.Process]:
        """All living processes that the driver ever started and that we saw, itself left out."""
        roots = [process for process in self._known.values() if process.is_running()]
        if self.running():
            roots.append(psutil.Process(self.process.pid))
        for root in roots:
            try:
                for process in root.children(recursive=True):
                    self._known.setdefault(process.pid, process)
            except psutil.NoSuchProcess:
                continue
        return [process for process in self._known.values() if process.is_running()]

    def kill(self) -> None:
        """SIGKILL the driver alone; what it started is still in `family`."""
        self.family()
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """The exit code.

        Raises:
            AssertionError: It does not end.
        """
        self.until(lambda: False)
        return self.process.wait()

    def report(self) -> dict[str, Any]:
        """What it printed; of a command that succeeded."""
        text = self._out.read_text()
        try:
            return dict(json.loads(text))
        except ValueError:
            raise AssertionError(f"stdout is not one JSON document: {text[:1000]!r}") from None

    def summary(self) -> str:
        """What it told people."""
        return self._log.read_text("utf-8", "replace")

    def story(self) -> str:
        """Exit code and words, for a person who must find out what went wrong."""
        return f"\n--- exit code {self.process.poll()}:\n{self.summary()[-4000:]}"

    def end(self) -> None:
        """Kill all of it, by id."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        end(family)


def actors(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The actors of the pool among processes, by the title that Ray gives them."""
    titles = [(process, " ".join(words_of(process))) for process in processes]
    return [
        process
        for process, title in titles
        if title.startswith("ray::") and any(name in title for name in _ACTORS)
    ]


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process; [] once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
