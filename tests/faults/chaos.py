"""Jobs that are killed at random points, started again, and compared with an undisturbed run.

    python tests/chaos.py --seed 7             # one round, told as it goes
    python tests/chaos.py --seed 0 --rounds 50

All of a round is drawn from its seed: the archive, where the output lies, on which Ray the job
runs, what is killed and when. Only how far the job has come at that moment is left to the machine.
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
from tests.faults.chaos_archives import PER_UNIT, Archive, make_archive
from tests.faults.chaos_cluster import NODES, RealCluster, end
from tests.faults.chaos_command import INTERRUPTED, POLL_S, Command, Parts, actors
from tests.faults.chaos_draw import Figures, Kill, Round, draw
from tests.support.paths import PYTHONPATH

MODEL_DELAY_S = 0.05  # per image: kills shall fall inside the work
MAX_COMMANDS = 6


class Stage:
    """What rounds are played on: an S3 server, a cluster of two worker nodes, archives."""

    def __init__(self, folder: Path, setenv: Callable[[str, str], None]) -> None:
        self.folder = folder
        self.figures = Figures()
        self._calm: dict[tuple[object, ...], tuple[Archive, dict[str, bytes]]] = {}
        self._commands = 0
        self.s3 = LoopbackS3(folder / "weed", bucket="chaos").start()
        try:
            for name, value in self.s3.environment.items():
                setenv(name, value)  # for us, and for all that is started from here
            shared = {
                "PYTHONPATH": PYTHONPATH,
                "FAKE_MODEL_DELAY": str(MODEL_DELAY_S),
                "OMP_NUM_THREADS": "1",
            }
            self.cluster = RealCluster(shared, folder / "cluster.log")
            self.environment = shared | self.cluster.environment
        except BaseException:
            self.s3.stop()
            raise
        self.storage = Storage()

    def close(self) -> None:
        """End everything."""
        self.cluster.stop()
        self.s3.stop()

    def heal(self) -> None:
        """Bring back whatever a round that broke off left dead."""
        if not self.s3.alive():
            self.s3.revive()
        while self.cluster.nodes < NODES:
            self.cluster.add_node()

    def place(self, name: str, on_s3: bool) -> str:
        """A folder of this name on S3 or on disk."""
        return f"s3://chaos/{name}" if on_s3 else str(self.folder / name)

    def calm(self, story: Round) -> tuple[Archive, dict[str, bytes]]:
        """The archive of a round, and its tables after a run that nobody disturbed."""
        key = (story.kind, story.variant, story.deadly, story.on_s3)
        if key not in self._calm:
            name = f"{story.kind}{story.variant}{'-deadly' * story.deadly}"
            folder = self.place(f"in/{name}", story.on_s3)
            archive = make_archive(self.storage, story.kind, folder, story.variant, story.deadly)
            output = self.place(f"calm/{name}", story.on_s3)
            command = self.command(archive, output, actors=2)
            try:
                assert command.wait() == 0
            except AssertionError as error:
                raise AssertionError(f"undisturbed: {error}{command.story()}") from None
            finally:
                command.end()
            tables = self.tables(output)
            check(self.storage, archive, output, tables)
            self._calm[key] = archive, tables
        return self._calm[key]

    def command(
        self, archive: Archive, output: str, actors: int, local_ray: bool = False
    ) -> Command:
        """The real command, started."""
        self._commands += 1
        options = [
            *("--model", "tests.support.fake_models:BrightModel", "--json"),
            *("--set", f"plan.images={PER_UNIT}", "--set", f"ray.max_actors={actors}"),
            *("--set", "run.max_failed_fraction=0.5"),
        ]
        if not local_ray:
            options += ["--address", self.cluster.address, "--set", "ray.shared_paths=true"]
        log = self.folder / f"{self._commands:04d}.log"
        return Command(
            [archive.uri, output, *options], self.environment, log, Parts(self.storage, output)
        )

    def tables(self, output: str) -> dict[str, bytes]:
        """Bytes of all that lies in the two tables, by its name below the output."""
        return {
            info.uri.removeprefix(output): self.storage.read(info.uri)
            for info in self.storage.list(output)
            if info.uri.removeprefix(output).split("/")[2:3] in (["images"], ["instances"])
        }


def differences(tables: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """What is in one and not in the other: files, then rows of files with other bytes."""
    found = [f"only in one of them: {name}" for name in sorted(tables.keys() ^ expected.keys())]
    for name in sorted(tables.keys() & expected.keys()):
        if tables[name] != expected[name]:
            rows, right = (_rows(one[name]) for one in (tables, expected))
            found.append(f"other bytes: {name}")
            found += [f"  - {row}" for row in right if row not in rows]
            found += [f"  + {row}" for row in rows if row not in right]
    return found


def _rows(part: bytes) -> list[dict[str, Any]]:
    return list(pq.read_table(io.BytesIO(part)).to_pylist())


def check(storage: Storage, archive: Archive, output: str, tables: dict[str, bytes]) -> None:
    """Every image of the archive exactly once, and nothing that `verify_output` complains about."""
    rows = [row for name, data in tables.items() if "/images/" in name for row in _rows(data)]
    ids = Counter(row["image_id"] for row in rows)
    assert len(ids) == len(rows), [name for name, n in ids.items() if n > 1]
    failures = Counter(row["error_code"] for row in rows if row["status"] == "failed")
    assert (len(rows), failures) == (archive.images, archive.failures)
    found = verify_output(storage, output)
    assert found.exit_code == 0, found


def play(stage: Stage, story: Round, tell: bool = False) -> Figures:
    """Play one round; returns its figures and adds them to the stage's.

    Raises:
        AssertionError: The result is not what it must be; the message tells the whole story.
    """
    diary: list[str] = [str(story)]
    began = time.monotonic()

    def note(text: str) -> None:
        diary.append(f"{time.monotonic() - began:6.1f} s  {text}")
        if tell:
            print(diary[-1], flush=True)

    if tell:
        print(story)
    player = _Player(stage, story, note)
    try:
        figures = player.play()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of pytest's time limit, too
        logs = "\n".join(command.story() for command in player.commands)
        raise AssertionError(f"seed {story.seed}: {error}\n" + "\n".join(diary) + logs) from error
    finally:
        player.clear_up()
    figures.seconds = time.monotonic() - began
    total = stage.figures
    for name in ("rounds", "kills", "points", "missed", "resumes", "images", "seconds"):
        setattr(total, name, getattr(total, name) + getattr(figures, name))
    return figures


class _Player:
    """A round as it is played: its commands, and what they still must answer for."""

    def __init__(self, stage: Stage, story: Round, note: Callable[[str], None]) -> None:
        self.stage, self.story, self.note = stage, story, note
        self.commands: list[Command] = []
        self.figures = Figures(rounds=1)
        self.struck: set[str] = set()  # victims since the last start

    def play(self) -> Figures:
        """Kill as drawn, start again until done, compare."""
        stage, story = self.stage, self.story
        archive, expected = stage.calm(story)
        output = stage.place(f"out/{story.seed}-{time.time_ns()}", story.on_s3)
        units = len(expected) // 2

        def start() -> Command:
            assert len(self.commands) < MAX_COMMANDS, "started again and again, never done"
            self.struck.clear()
            self.commands.append(stage.command(archive, output, story.actors, story.local_ray))
            self.note(f"command {len(self.commands)}, {self.commands[-1].before} units done before")
            return self.commands[-1]

        command = start()
        for kill in story.kills:
            if not command.running():
                if self._ended(command):
                    self.figures.missed += 1
                    continue
                command = start()
            self._strike(command, kill, units)
        while not self._ended(command):
            command = start()
        tables = stage.tables(output)
        found = differences(tables, expected)
        assert not found, "\n".join(["not the tables of an undisturbed run:", *found])
        check(stage.storage, archive, output, tables)
        report = command.report()
        assert report["units_done_before"] >= command.before  # nothing finished is done again
        assert report["images"] == archive.images
        self.figures.resumes += len(self.commands) - 1
        self.figures.images += archive.images
        return self.figures

    def clear_up(self) -> None:
        """End what the round started; bring back what it took away."""
        for command in self.commands:
            command.end()
        self.stage.heal()

    def _strike(self, command: Command, kill: Kill, units: int) -> None:
        """Wait for the moment, and kill."""
        goal = min(command.before + kill.parts, units)
        most = units - 3
        moments: dict[str, Callable[[], object]] = {
            "start": lambda: time.monotonic() - command.began > kill.wait_s,
            "parts": lambda: len(command.parts.committed()) >= goal,
            # a matter of milliseconds that polling may miss: then before the last unit
            "commit": lambda: command.parts.half_done() or len(command.parts.committed()) > most,
            "end": lambda: len(command.parts.committed()) == units,
        }
        reached = kill.point == "start" or command.until(command.works)
        pause = 0.0 if kill.point == "commit" else POLL_S
        reached = reached and command.until(moments[kill.point], pause)
        if reached and kill.point == "parts":
            time.sleep(kill.wait_s)
        if not (reached and self._kill(command, kill)):
            self.figures.missed += 1
            self.note(f"too late for {kill.victim} at {kill.point}")
            return
        self.struck.add(kill.victim)
        self.figures.kills[kill.victim] += 1
        self.figures.points[kill.point] += 1
        done, half = len(command.parts.committed()), len(command.parts.half_done())
        self.note(
            f"killed {kill.victim} at {kill.point}: {done} of {units} units done, {half} half"
        )

    def _kill(self, command: Command, kill: Kill) -> bool:
        """Whether the victim was there and died."""
        stage = self.stage
        if not command.running():
            return False
        if kill.victim == "driver":
            command.kill()
            if not kill.orphans:
                end(command.family())
        elif kill.victim == "actor":
            found: list[psutil.Process] = []

            def any_actor() -> bool:
                family = command.family() if self.story.local_ray else stage.cluster.workers()
                found[:] = actors(family)
                return bool(found)

            if not command.until(any_actor):
                return False
            found[kill.pick % len(found)].kill()
        elif kill.victim == "node":
            stage.cluster.remove_node(kill.pick)
            time.sleep(kill.pause_s)
            stage.cluster.add_node()
        elif kill.victim == "s3":
            stage.s3.kill()
            time.sleep(kill.pause_s)
            stage.s3.revive()
        elif kill.victim == "sigterm":
            command.process.terminate()
        else:
            os.killpg(command.process.pid, signal.SIGINT)
        return True

    def _ended(self, command: Command) -> bool:
        """Wait for the command; whether the job is done. It must end in one of the known ways."""
        code = command.wait()
        self.note(f"exit code {code}")
        if "driver" in self.struck:
            assert code in (0, -signal.SIGKILL)
        elif self.struck & {"sigterm", "ctrl-c"}:
            said = "Run the same command again" in command.summary()
            assert code in (0, *INTERRUPTED)
            assert code == 0 or said or not command.works()  # before that nothing was begun
        else:
            assert code in ((0, 1) if self.struck else (0,)), f"exit code {code}"
        assert "Traceback" not in command.summary()
        return code == 0


def main() -> None:
    """Play rounds from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or our servers would outlive us
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), os.environ.__setitem__)
        try:
            for seed in range(options.seed, options.seed + options.rounds):
                try:
                    play(stage, draw(seed), tell=True)
                except AssertionError as error:
                    failed.append(seed)
                    print(error, file=sys.stderr, flush=True)
        finally:
            stage.close()
            print(stage.figures.summary())
    if failed:
        sys.exit(f"failed: seeds {failed}")


if __name__ == "__main__":
    main()
