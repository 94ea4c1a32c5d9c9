"""Jobs that are killed at random points, started again, and compared with an undisturbed run.

    python -m tests.faults.chaos --seed 7             # one round, with a log of what happens
    python -m tests.faults.chaos --seed 0 --rounds 50

All of a round is drawn from its seed: the archive, where the output lies, on which Ray the job
runs, what is killed and when. Only how far the job has come at that moment depends on the machine.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from segcore.inspection.verify import verify_output
from segcore.storage import Storage
from segcore.testing.loopback_s3 import LoopbackS3
from tests.faults.chaos_archives import IMAGES_PER_UNIT, Archive, make_archive
from tests.faults.chaos_cluster import NODES, RealCluster
from tests.faults.chaos_scenarios import ChaosStats, Kill, Scenario, draw_scenario
from tests.faults.watched_command import OutputUnits, WatchedCommand
from tests.support.commands import INTERRUPTED, POLL_S, kill_trees, pool_actors
from tests.support.jobs import BRIGHT_MODEL
from tests.support.paths import PYTHONPATH

MODEL_DELAY_S = 0.05  # for each image, so that kills fall inside the work
MAX_COMMANDS = 6  # in one round

Tables = dict[str, bytes]  # bytes of each part by its name below the output


class ChaosEnvironment:
    """What rounds run on: an S3 server, a cluster of two worker nodes, archives."""

    def __init__(self, folder: Path, setenv: Callable[[str, str], None]) -> None:
        self.folder = folder
        self.stats = ChaosStats()
        self._undisturbed: dict[tuple[object, ...], tuple[Archive, Tables]] = {}
        self._n_commands = 0
        self.s3 = LoopbackS3(folder / "weed", bucket="chaos").start()
        try:
            for name, value in self.s3.environment.items():
                setenv(name, value)  # for this process and for all that it starts
            shared = {
                "PYTHONPATH": PYTHONPATH,
                "FAKE_MODEL_DELAY": str(MODEL_DELAY_S),
                "OMP_NUM_THREADS": "1",
            }
            self.cluster = RealCluster(shared, folder / "cluster.log")
            self.command_environment = shared | self.cluster.environment
        except BaseException:
            self.s3.stop()
            raise
        self.storage = Storage()

    def close(self) -> None:
        """End the cluster and the server."""
        self.cluster.stop()
        self.s3.stop()

    def heal(self) -> None:
        """Bring back whatever a round that broke off left dead."""
        if not self.s3.alive():
            self.s3.restart()
        while self.cluster.nodes < NODES:
            self.cluster.add_node()

    def folder_for(self, name: str, on_s3: bool) -> str:
        """A folder of this name on S3 or on disk."""
        return f"s3://chaos/{name}" if on_s3 else str(self.folder / name)

    def undisturbed(self, scenario: Scenario) -> tuple[Archive, Tables]:
        """The archive of a round, and its tables after a run that nothing disturbed."""
        key = (scenario.kind, scenario.variant, scenario.deadly, scenario.on_s3)
        if key not in self._undisturbed:
            self._undisturbed[key] = self._run_undisturbed(scenario)
        return self._undisturbed[key]

    def _run_undisturbed(self, scenario: Scenario) -> tuple[Archive, Tables]:
        kind, variant = scenario.kind, scenario.variant
        name = f"{kind}{variant}{'-deadly' * scenario.deadly}"
        source = self.folder_for(f"in/{name}", scenario.on_s3)
        archive = make_archive(self.storage, kind, source, variant, scenario.deadly)
        output = self.folder_for(f"undisturbed/{name}", scenario.on_s3)
        command = self.start_command(archive, output, actors=2)
        try:
            assert command.wait() == 0
        except AssertionError as error:
            raise AssertionError(f"undisturbed: {error}{command.describe()}") from None
        finally:
            command.kill_all()
        tables = self.read_tables(output)
        check_tables(self.storage, archive, output, tables)
        return archive, tables

    def start_command(
        self, archive: Archive, output: str, actors: int, local_ray: bool = False
    ) -> WatchedCommand:
        """Start the real command."""
        self._n_commands += 1
        options = [
            *("--model", BRIGHT_MODEL, "--json"),
            *("--set", f"plan.images={IMAGES_PER_UNIT}", "--set", f"ray.max_actors={actors}"),
            *("--set", "run.max_failed_fraction=0.5"),
        ]
        if not local_ray:
            options += ["--address", self.cluster.address, "--set", "ray.shared_paths=true"]
        return WatchedCommand(
            [archive.uri, output, *options],
            self.folder / f"{self._n_commands:04d}.log",
            self.command_environment,
            OutputUnits(self.storage, output),
        )

    def read_tables(self, output: str) -> Tables:
        """Bytes of all that lies in the two tables."""
        return {
            info.uri.removeprefix(output): self.storage.read(info.uri)
            for info in self.storage.list(output)
            if info.uri.removeprefix(output).split("/")[2:3] in (["images"], ["instances"])
        }


def differences(tables: Tables, expected: Tables) -> list[str]:
    """What is in one and not in the other: files, then rows of files with other bytes."""
    lines = [f"only in one of them: {name}" for name in sorted(tables.keys() ^ expected.keys())]
    for name in sorted(tables.keys() & expected.keys()):
        if tables[name] != expected[name]:
            rows, expected_rows = (_rows(side[name]) for side in (tables, expected))
            lines.append(f"other bytes: {name}")
            lines += [f"  - {row}" for row in expected_rows if row not in rows]
            lines += [f"  + {row}" for row in rows if row not in expected_rows]
    return lines


def _rows(part: bytes) -> list[dict[str, Any]]:
    return list(pq.read_table(io.BytesIO(part)).to_pylist())


def check_tables(storage: Storage, archive: Archive, output: str, tables: Tables) -> None:
    """Every image of the archive exactly once, and nothing that `verify_output` complains about."""
    rows = [row for name, data in tables.items() if "/images/" in name for row in _rows(data)]
    ids = Counter(row["image_id"] for row in rows)
    assert len(ids) == len(rows), [name for name, n in ids.items() if n > 1]
    failures = Counter(row["error_code"] for row in rows if row["status"] == "failed")
    assert (len(rows), failures) == (archive.images, archive.failures)
    verification = verify_output(storage, output)
    assert verification.exit_code == 0, verification


def run_scenario(
    environment: ChaosEnvironment, scenario: Scenario, verbose: bool = False
) -> ChaosStats:
    """Run one round; returns its counts and adds them to those of the environment.

    Raises:
        AssertionError: The result is not what it must be; the message has the whole log.
    """
    log: list[str] = [str(scenario)]
    started = time.monotonic()

    def record(text: str) -> None:
        log.append(f"{time.monotonic() - started:6.1f} s  {text}")
        if verbose:
            print(log[-1], flush=True)

    if verbose:
        print(scenario)
    chaos_round = _Round(environment, scenario, record)
    try:
        stats = chaos_round.run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pytest's time limit is one of them
        commands = "\n".join(command.describe() for command in chaos_round.commands)
        message = f"seed {scenario.seed}: {error}\n" + "\n".join(log) + commands
        raise AssertionError(message) from error
    finally:
        chaos_round.clean_up()
    stats.seconds = time.monotonic() - started
    environment.stats.add(stats)
    return stats


class _Round:
    """A round while it runs: its commands, and what was killed."""

    def __init__(
        self, environment: ChaosEnvironment, scenario: Scenario, record: Callable[[str], None]
    ) -> None:
        self.environment, self.scenario, self.record = environment, scenario, record
        self.commands: list[WatchedCommand] = []
        self.stats = ChaosStats(rounds=1)
        self.killed: set[str] = set()  # victims since the last start of the command

    def run(self) -> ChaosStats:
        """Kill as drawn, start again until done, compare."""
        environment, scenario = self.environment, self.scenario
        archive, expected = environment.undisturbed(scenario)
        output = environment.folder_for(f"out/{scenario.seed}-{time.time_ns()}", scenario.on_s3)
        n_units = len(expected) // 2

        command = self._start(archive, output)
        for kill in scenario.kills:
            if not command.running():
                if self._wait_for_end(command):
                    self.stats.missed += 1
                    continue
                command = self._start(archive, output)
            self._kill_at_its_point(command, kill, n_units)
        while not self._wait_for_end(command):
            command = self._start(archive, output)

        tables = environment.read_tables(output)
        different = differences(tables, expected)
        assert not different, "\n".join(["not the tables of an undisturbed run:", *different])
        check_tables(environment.storage, archive, output, tables)
        report = command.report()
        # nothing that was finished is done again
        assert report["units_done_before"] >= command.committed_before
        assert report["images"] == archive.images
        self.stats.resumes += len(self.commands) - 1
        self.stats.images += archive.images
        return self.stats

    def clean_up(self) -> None:
        """End what the round started; bring back what it killed."""
        for command in self.commands:
            command.kill_all()
        self.environment.heal()

    def _start(self, archive: Archive, output: str) -> WatchedCommand:
        assert len(self.commands) < MAX_COMMANDS, "started again and again, never done"
        self.killed.clear()
        command = self.environment.start_command(
            archive, output, self.scenario.actors, self.scenario.local_ray
        )
        self.commands.append(command)
        self.record(f"command {len(self.commands)}, {command.committed_before} units done before")
        return command

    def _kill_at_its_point(self, command: WatchedCommand, kill: Kill, n_units: int) -> None:
        """Wait for the moment, and kill."""
        units = command.units
        enough_parts = min(command.committed_before + kill.parts, n_units)
        nearly_done = n_units - 3
        conditions: dict[str, Callable[[], object]] = {
            "start": lambda: time.monotonic() - command.started > kill.wait_s,
            "parts": lambda: len(units.committed()) >= enough_parts,
            # a matter of milliseconds that polling may miss: then before the last unit
            "commit": lambda: units.half_committed() or len(units.committed()) > nearly_done,
            "end": lambda: len(units.committed()) == n_units,
        }
        reached = kill.point == "start" or command.wait_until(command.is_segmenting)
        pause_s = 0.0 if kill.point == "commit" else POLL_S
        reached = reached and command.wait_until(conditions[kill.point], pause_s)
        if reached and kill.point == "parts":
            time.sleep(kill.wait_s)
        if not (reached and self._kill(command, kill)):
            self.stats.missed += 1
            self.record(f"too late for {kill.victim} at {kill.point}")
            return
        self.killed.add(kill.victim)
        self.stats.kills[kill.victim] += 1
        self.stats.points[kill.point] += 1
        n_done, n_half = len(units.committed()), len(units.half_committed())
        self.record(
            f"killed {kill.victim} at {kill.point}: {n_done} of {n_units} units done, {n_half} half"
        )

    def _kill(self, command: WatchedCommand, kill: Kill) -> bool:
        """Kill the victim; False when it was no longer there."""
        environment = self.environment
        if not command.running():
            return False
        if kill.victim == "driver":
            command.kill_driver()
            if not kill.orphans:
                kill_trees(command.descendants())
        elif kill.victim == "actor":
            return self._kill_an_actor(command, kill.pick)
        elif kill.victim == "node":
            environment.cluster.remove_node(kill.pick)
            time.sleep(kill.pause_s)
            environment.cluster.add_node()
        elif kill.victim == "s3":
            environment.s3.kill()
            time.sleep(kill.pause_s)
            environment.s3.restart()
        elif kill.victim == "sigterm":
            command.process.terminate()
        else:
            os.killpg(command.process.pid, signal.SIGINT)
        return True

    def _kill_an_actor(self, command: WatchedCommand, pick: int) -> bool:
        candidates: list[psutil.Process] = []

        def any_actor() -> bool:
            local = self.scenario.local_ray
            processes = command.descendants() if local else self.environment.cluster.workers()
            candidates[:] = pool_actors(processes)
            return bool(candidates)

        if not command.wait_until(any_actor):
            return False
        candidates[pick % len(candidates)].kill()
        return True

    def _wait_for_end(self, command: WatchedCommand) -> bool:
        """Wait for the command to end in one of the known ways; whether the job is done."""
        code = command.wait()
        self.record(f"exit code {code}")
        if "driver" in self.killed:
            assert code in (0, -signal.SIGKILL)
        elif self.killed & {"sigterm", "ctrl-c"}:
            assert code in (0, *INTERRUPTED)
            # before it segments, there is nothing to resume
            assert code == 0 or command.advises_to_rerun() or not command.is_segmenting()
        else:
            assert code in ((0, 1) if self.killed else (0,)), f"exit code {code}"
        assert "Traceback" not in command.stderr()
        return code == 0


def main() -> None:
    """Run rounds from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round")
    parser.add_argument("--rounds", type=int, default=1, help="how many, of consecutive seeds")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or our servers would outlive us
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        environment = ChaosEnvironment(Path(folder), os.environ.__setitem__)
        try:
            for seed in range(options.seed, options.seed + options.rounds):
                try:
                    run_scenario(environment, draw_scenario(seed), verbose=True)
                except AssertionError as error:
                    failed.append(seed)
                    print(error, file=sys.stderr, flush=True)
        finally:
            environment.close()
            print(environment.stats.summary())
    if failed:
        sys.exit(f"failed: seeds {failed}")


if __name__ == "__main__":
    main()
