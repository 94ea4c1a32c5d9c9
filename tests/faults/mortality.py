"""Processes that die before a random one of their file operations, for `tests.faults.kills`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.faults.chaos_cluster import RealCluster
from tests.support.commands import command_line, pool_actors
from tests.support.fake_models import BrightModel

FOLDER_VARIABLE = "KILLS_FOLDER"  # environment of the workers
OUTPUTS = "out"  # in that folder
_ORDER = "order"  # the same: how many file operations of a worker are left
_WRITERS, _READER = ("UnitActor", "SegmentActor"), "ReadActor"  # in the names of processes
_TAKEN = "taken-by-"  # the same, with the process id of the worker that obeys


class Mortality:
    """Counts the operations of this process on files below a folder; one of them is its last.

    An operation is what Python tells its audit hooks: open, rename, remove, list and the like. The
    process dies just before it.
    """

    def __init__(self, folder: str, last: int | None = None) -> None:
        self._folder = folder
        self._is_watching = True
        self.count = 0
        self.last = last
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple) -> None:
        if not (self._is_watching and arguments and (event == "open" or event.startswith("os."))):
            return
        if isinstance(arguments[0], str) and arguments[0].startswith(self._folder):
            self._is_watching = False  # what `before_operation` does is not counted
            self.before_operation()
            self._is_watching = True

    def before_operation(self) -> None:
        """Count it, or die."""
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class _WorkerMortality(Mortality):
    """That of a worker: the first one that finds an order obeys it."""

    def __init__(self, folder: Path) -> None:
        self._order = folder / _ORDER
        super().__init__(str(folder / OUTPUTS))

    def before_operation(self) -> None:
        """As in the base class."""
        if self.last is None and self._order.exists() and _is_actor(psutil.Process(), _WRITERS):
            taken = self._order.with_name(f"{_TAKEN}{os.getpid()}")
            with suppress(FileNotFoundError):  # another worker was faster, or it was revoked
                self._order.rename(taken)
                self.last = self.count + int(taken.read_text())
        super().before_operation()


class MortalModel(BrightModel):
    """As `BrightModel`; workers of the pool die where `WorkerKiller` wants."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        if folder := os.environ.get(FOLDER_VARIABLE):
            _WorkerMortality(Path(folder))


class WorkerKiller:
    """Kills workers of the pool during one start of a job, one after the other.

    Between two kills a unit has to be committed: a unit that loses its process twice is tried image
    by image, and an image that ends its process twice is blamed, as it should be.

    Args:
        folder: That of `FOLDER_VARIABLE`.
        deaths: For each: how many parts must be there before, and before which of its file
            operations from then on the worker dies; None: at once.
        n_units: Of the job. Once all are done, no worker is killed.

    Attributes:
        kills: How many died, by the way they did.
    """

    def __init__(
        self,
        folder: Path,
        deaths: Sequence[tuple[int, int | None]],
        n_units: int,
        cluster: RealCluster | None,
    ) -> None:
        self._folder = folder
        self._deaths = list(deaths)
        self._n_units = n_units
        self._cluster = cluster
        self._parts_at_death = -1
        self.kills: Counter[str] = Counter()

    @property
    def n_left(self) -> int:
        """How many have not died."""
        return len(self._deaths)

    def go_on(self, n_parts: int) -> None:
        """Kill the next one if it is time; to be called again and again."""
        if self._cluster is None or not self._deaths or n_parts == self._n_units:
            return
        min_parts, n_operations = self._deaths[0]
        if n_parts < min_parts or n_parts <= self._parts_at_death:
            return
        if n_operations is None:
            processes = pool_actors(self._cluster.workers())
            actors = [p for p in processes if _is_actor(p, (*_WRITERS, _READER))]
            if actors:
                actors[n_parts % len(actors)].kill()
                self._count("worker at a moment", n_parts)
        elif (taken := next(self._folder.glob(f"{_TAKEN}*"), None)) is not None:
            if not psutil.pid_exists(int(taken.name.removeprefix(_TAKEN))):
                taken.unlink()
                self._count("worker at a file operation", n_parts)
        else:
            order = self._folder / _ORDER
            if not order.exists():
                draft = order.with_suffix(".new")
                draft.write_text(str(n_operations))
                draft.rename(order)

    def _count(self, name: str, n_parts: int) -> None:
        self._deaths.pop(0)
        self._parts_at_death = n_parts
        self.kills[name] += 1

    def end(self) -> None:
        """The job has ended: nobody else shall die."""
        for path in (self._folder / _ORDER, *self._folder.glob(f"{_TAKEN}*")):
            path.unlink(missing_ok=True)


def _is_actor(process: psutil.Process, kinds: Sequence[str]) -> bool:
    """Whether it is one of these actors.

    Never one that tries images one by one: an image is blamed for the second death.
    """
    name = " ".join(command_line(process))
    return any(kind in name for kind in kinds)


def fork(run: Callable[[], int], log: Path) -> int:
    """Run in a child of this process that has all its modules; returns its process id.

    Args:
        run: Gives its exit code.
        log: Gets its stdout and stderr.
    """
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 70
    try:
        os.setsid()
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        code = run()
    except BaseException:  # nothing of the parent may run in the child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int, wait_s: float = 0.0) -> int | None:
    """The exit code of a forked process, -9 after SIGKILL; None while it runs.

    Args:
        wait_s: Pause if it runs.
    """
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(wait_s)
        return None
    return os.waitstatus_to_exitcode(status)
