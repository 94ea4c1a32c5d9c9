"""CPU time of `segcore reprocess` where nothing is to be done, by the number of units.

    python -m tests.measure.nothing_to_do [--units 100000] [--shards]

The archive has a file for each unit, or with --shards a tar for ten of them, and the output of a
first night has parts without payload, whose counts are in the cache. The second night is the real
command with the bundled model, twice: it has to end with 99. The first call compiles the modules,
as an installer does. Time of the user and of the system together, so that other work on the machine
counts less.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from segcore.config import load_config
from segcore.config.reprocess import ReprocessConfig
from segcore.exit_codes import ExitCode
from segcore.output.layout import Table
from segcore.output.part_counts import PartCounts, WrittenPart
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.run.reprocess import reprocess
from tests.support import serial_run
from tests.support.paths import PYTHONPATH, ROOT

_FILES_PER_FOLDER = 1000
_TABLES: tuple[Table, Table] = ("instances", "images")


def write_archive(folder: Path, n_images: int) -> None:
    """Files that are listed, and never read."""
    for number in range(n_images):
        if number % _FILES_PER_FOLDER == 0:
            (folder / f"{number // _FILES_PER_FOLDER:04}").mkdir(parents=True)
        path = folder / f"{number // _FILES_PER_FOLDER:04}" / f"{number:08}.jpg"
        path.write_bytes(b"%d" % number)


def write_shards(folder: Path, n_images: int) -> None:
    """Tars of ten images, of which only the headers are read."""
    folder.mkdir()
    for number in range(0, n_images, 10):
        with tarfile.open(folder / f"{number // 10:06}.tar", "w") as shard:
            for image in range(number, min(number + 10, n_images)):
                info = tarfile.TarInfo(f"{image:08}.jpg")
                info.size = 8
                shard.addfile(info, io.BytesIO(b"%08d" % image))


def write_parts(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
    """Stands for the work: a part of one byte for each unit, and its counts."""
    for table in _TABLES:
        Path(job.layout.parts_folder(table)).mkdir(parents=True, exist_ok=True)
    for current in passes:
        for unit in current.units.ids():
            for table in _TABLES:
                Path(job.layout.part(table, unit)).write_bytes(b"x")
            info = job.storage.stat(job.layout.part("images", unit))
            written = WrittenPart(0, info.size, info.etag)
            job.counts.add_written(PartCounts(unit, 1, 0, 0, written=written))
            state.done.add(unit)


def main() -> None:
    """Measure, and print a line for each night."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--shards", action="store_true")
    arguments = parser.parse_args()
    units = arguments.units
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        write = write_shards if arguments.shards else write_archive
        write(folder / "in", units)
        sets = [f"input={folder}/in", f"output={folder}/out", "plan.images=1",
                "plan.bytes=1", "schedule.verify=false"]  # fmt: skip
        config = load_config(sets=sets, schema=ReprocessConfig)
        serial_run.without_ray(patch, write_parts)
        report = reprocess(config)
        assert report.segment is not None
        print(f"{report.status}: {report.segment.units:,} units")
        options = [part for text in sets for part in ("--set", text)]
        config_file = str(ROOT / "configs" / "reprocess.yaml")
        command = [sys.executable, "-m", "segcore", "reprocess", config_file,
                   "--exit-99-if-nothing-to-do", *options]  # fmt: skip
        for _ in range(2):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            environment = {**os.environ, "PYTHONPATH": PYTHONPATH,
                           "PYTHONDONTWRITEBYTECODE": "",
                           "PYTHONPYCACHEPREFIX": str(folder / "pyc")}  # fmt: skip
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"exit {done.returncode}: {cpu_s:.1f} CPU s, {time.monotonic() - began:.1f} s, "
                f"at most {after.ru_maxrss >> 10} MB"
            )
            if done.returncode != ExitCode.NOTHING_TO_DO:
                sys.exit(done.stderr)


if __name__ == "__main__":
    main()
