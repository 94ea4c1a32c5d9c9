"""Many quick kills: small jobs whose processes get `kill -9`, again and again until all is done.

    python -m tests.faults.kills --kills 1000           # a job in one process, without Ray
    python -m tests.faults.kills --kills 100 --pool     # driver and workers on a real cluster
    python -m tests.faults.kills --kills 100 --pool --layout split    # readers, too

A process is killed at a random moment, or just before a random one of its operations on files of
the output: between the two files of a part, before a rename, while the plan, the lease or the
report are written. After each kill every part that a reader can see has to have the bytes of an
undisturbed run; after the last start of a job all of them have to be there, and nothing else.
Drivers are forked from this process, which has imported what they need already.

All is drawn from the seed, but how far a job has come at some moment depends on the machine.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from segcore.run.segment import segment
from segcore.storage import Storage
from tests.faults.chaos import Tables, check_tables, differences
from tests.faults.chaos_archives import KINDS, Archive, make_archive
from tests.faults.chaos_cluster import RealCluster
from tests.faults.mortality import (
    FOLDER_VARIABLE,
    OUTPUTS,
    Mortality,
    MortalModel,
    WorkerKiller,
    exit_code,
    fork,
)
from tests.support.commands import POLL_S
from tests.support.jobs import job_config
from tests.support.paths import PYTHONPATH
from tests.support.run_without_ray import without_ray

_MODEL = f"{MortalModel.__module__}:{MortalModel.__name__}"
_IMAGES_PER_UNIT = 3
_START_AND_END = 0.4  # share of a run that is there whatever units are left
_DRIVER_LIVES = 0.1  # share of starts, so that a job ends however long its end takes
_DRIVER_LIVES_WITH_POOL = 0.3
_MAX_STARTS = 100  # of one job
_MAX_START_S = 300.0
_MAX_WORKER_KILLS = 6  # in one start
_MAX_WORKER_OPERATIONS = 12  # a unit takes about that many


@dataclass
class KillCounts:
    """What happened so far.

    Attributes:
        kills: By victim and moment.
        starts: Of jobs, after which they were killed or ended.
        too_late: Kills that were drawn for processes that had ended.
        not_done: Starts that ended with exit code 1 because workers had been killed; the next one
            did the rest.
    """

    kills: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    starts: int = 0
    too_late: int = 0
    not_done: int = 0
    seconds: float = 0.0

    def summary(self) -> str:
        """One line."""
        kills = ", ".join(f"{name} {n:,}" for name, n in sorted(self.kills.items()))
        return (
            f"{self.kills.total():,} kills ({kills}), {self.too_late:,} came too late; "
            f"{self.jobs:,} jobs in {self.starts:,} starts, {self.not_done:,} ended with 1; "
            f"all parts equal; {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class _Deaths:
    """What is killed in one start of a job.

    Attributes:
        operation: File operation of the driver before which it dies.
        moment_s: Seconds after its start at which it is killed.
        workers: See `WorkerKiller`.
    """

    operation: int | None = None
    moment_s: float | None = None
    workers: tuple[tuple[int, int | None], ...] = ()


@dataclass(frozen=True)
class _Job:
    """An archive, and what an undisturbed run over it made and took."""

    archive: Archive
    tables: Tables
    operations: int  # on files, of the driver
    seconds: float

    @property
    def units(self) -> int:
        """Each has two files."""
        return len(self.tables) // 2


class KillRounds:
    """Jobs that are killed until so many kills have happened.

    Args:
        folder: For archives, outputs and logs.
        cluster: With the pool; None: without Ray.
        layout: Of the pool.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        cluster: RealCluster | None = None,
        layout: str = "fused",
    ) -> None:
        self._layout = layout
        self._folder = folder
        self._rng = random.Random(seed)
        self._cluster = cluster
        self._jobs: dict[str, _Job] = {}
        self._log = folder / "log"
        self.counts = KillCounts()
        (folder / OUTPUTS).mkdir()
        gc.freeze()  # or each child that collects garbage would look at all that is imported

    def run(
        self,
        kills: int,
        max_s: float = float("inf"),
        notify: Callable[[str], None] = lambda text: None,
    ) -> KillCounts:
        """Kill until there were `kills` or `max_s` seconds are over; then end the last job.

        Args:
            notify: Told the counts after each job.

        Raises:
            AssertionError: A part has other bytes, or a job ended in a way it must not.
        """
        started = time.monotonic()
        while self.counts.kills.total() < kills and time.monotonic() - started < max_s:
            self._run_job(KINDS[self.counts.jobs % len(KINDS)])
            self.counts.jobs += 1
            self.counts.seconds = time.monotonic() - started
            notify(self.counts.summary())
        return self.counts

    def _run_job(self, kind: str) -> None:
        job = self._jobs.get(kind) or self._run_undisturbed(kind)
        self._jobs[kind] = job
        output = self._folder / OUTPUTS / str(self.counts.jobs)
        for _ in range(_MAX_STARTS):
            code = self._start(job, output, self._draw(job, output))
            tables = _read_tables(output)
            wrong = [name for name, data in tables.items() if job.tables.get(name) != data]
            assert not wrong, f"{output}: {wrong}"
            if code == 0:
                different = differences(tables, job.tables)
                assert not different, "\n".join([str(output), *different])
                self._in_child(partial(check_tables, Storage(), job.archive, str(output), tables))
                return
        raise AssertionError(f"{output}: started {_MAX_STARTS} times, and never done")

    def _run_undisturbed(self, kind: str) -> _Job:
        source, output = self._folder / "in" / kind, self._folder / OUTPUTS / kind
        archive = make_archive(Storage(), kind, str(source), variant=0)
        counted = self._folder / f"operations-{kind}"

        def run() -> None:
            mortality = Mortality(str(output))
            assert self._segment(archive, output) == 0
            counted.write_text(str(mortality.count))

        started = time.monotonic()
        self._in_child(run)
        seconds = time.monotonic() - started
        return _Job(archive, _read_tables(output), int(counted.read_text()), seconds)

    def _draw(self, job: _Job, output: Path) -> _Deaths:
        rng = self._rng
        n_done = len(_committed(output))
        left = _START_AND_END + (1 - _START_AND_END) * (1 - n_done / job.units)
        driver_lives = rng.random() < (
            _DRIVER_LIVES if self._cluster is None else _DRIVER_LIVES_WITH_POOL
        )
        at_operation = rng.random() < 0.7
        operation = rng.randint(1, int(left * job.operations)) if at_operation else None
        moment_s = None if at_operation else rng.uniform(0, left * job.seconds)
        if self._cluster is None:
            return _Deaths() if driver_lives else _Deaths(operation, moment_s)
        parts = sorted(
            rng.randint(n_done, job.units) for _ in range(rng.randint(0, _MAX_WORKER_KILLS))
        )
        workers = tuple(
            (n, rng.randint(1, _MAX_WORKER_OPERATIONS) if rng.random() < 0.7 else None)
            for n in parts
        )
        if driver_lives:
            return _Deaths(workers=workers)
        return _Deaths(operation, moment_s, workers)

    def _segment(self, archive: Archive, output: Path) -> int:
        """One start of the job, in this process; returns its exit code."""
        sets = [f"plan.images={_IMAGES_PER_UNIT}", "run.max_failed_fraction=0.5"]
        if self._cluster is not None:
            os.environ.update(self._cluster.environment)
            sets += [f"ray.address={self._cluster.address}", "ray.shared_paths=true"]
            sets.append(f"ray.layout={self._layout}")
        config = job_config(archive.uri, output, *sets, model=_MODEL)
        with without_ray() if self._cluster is None else nullcontext():
            return int(segment(config, notify=lambda text: print(text, flush=True)).exit_code)

    def _start(self, job: _Job, output: Path, deaths: _Deaths) -> int:
        """Start the job, kill as drawn, and return its exit code; -9 if the driver was killed."""

        def run() -> int:
            Mortality(str(output), deaths.operation)
            return self._segment(job.archive, output)

        started, driver = time.monotonic(), fork(run, self._log)
        killer = WorkerKiller(self._folder, deaths.workers, job.units, self._cluster)
        killed_at_moment = False
        while (code := exit_code(driver, POLL_S)) is None:
            seconds = time.monotonic() - started
            assert seconds < _MAX_START_S, f"{output} hangs: {self._log.read_text()[-3000:]}"
            if deaths.moment_s is not None and seconds > deaths.moment_s and not killed_at_moment:
                os.kill(driver, signal.SIGKILL)
                killed_at_moment = True
            killer.go_on(len(_committed(output)))
        killer.end()
        counts = self.counts
        counts.starts += 1
        counts.kills += killer.kills
        counts.too_late += killer.n_left
        if code == -signal.SIGKILL:
            counts.kills[f"driver at a {'moment' if killed_at_moment else 'file operation'}"] += 1
        elif (deaths.operation, deaths.moment_s) != (None, None):
            counts.too_late += 1
        counts.not_done += code == 1
        allowed = (0, -signal.SIGKILL, *((1,) if killer.kills else ()))
        assert code in allowed, f"{output}: exit code {code}: {self._log.read_text()[-3000:]}"
        return code

    def _in_child(self, run: Callable[[], object]) -> None:
        """Run in a forked process: this one forks again, and may have no threads."""

        def run_it() -> int:
            run()
            return 0

        child = fork(run_it, self._log)
        while (code := exit_code(child, POLL_S)) is None:
            continue
        assert code == 0, self._log.read_text()[-3000:]


def _committed(output: Path) -> list[Path]:
    return list(output.glob("*/images/*.parquet"))


def _read_tables(output: Path) -> Tables:
    """Bytes of all that lies in the two tables, by name below the output."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for table in ("images", "instances")
        for path in output.glob(f"*/{table}/*.parquet")
    }


def kill(
    kills: int,
    seed: int,
    *,
    pool: bool,
    layout: str = "fused",
    max_s: float = float("inf"),
    notify: Callable[[str], None] = lambda text: None,
) -> KillCounts:
    """See the module, and `KillRounds.run`.

    Args:
        pool: On a cluster of two nodes with one CPU each, which lives as long as this takes.
    """
    with tempfile.TemporaryDirectory(prefix="segcore-kills-") as name:
        folder = Path(name)
        if not pool:
            return KillRounds(folder, seed).run(kills, max_s, notify)
        environment = {"PYTHONPATH": PYTHONPATH, FOLDER_VARIABLE: name, "OMP_NUM_THREADS": "1"}
        environment["FAKE_MODEL_DELAY"] = "0.01"
        cluster = RealCluster(environment, folder / "cluster.log")
        try:
            return KillRounds(folder, seed, cluster, layout).run(kills, max_s, notify)
        finally:
            cluster.stop()


def main() -> None:
    """Kill, and print what happened."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no new job after that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", action="store_true", help="with Ray")
    parser.add_argument("--layout", default="fused", help="of the pool: fused or split")
    options = parser.parse_args()
    kill(
        options.kills,
        options.seed,
        pool=options.pool,
        layout=options.layout,
        max_s=60 * options.minutes,
        notify=lambda text: print(text, flush=True),
    )


if __name__ == "__main__":
    main()
