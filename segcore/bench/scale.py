"""What many units cost the process that drives a job: a real run with real commits and no model.

Each step is measured in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segcore.bench.machine import Machine, describe_machine, own_peak_memory_mb
from segcore.bench.null_model import NULL_MODEL
from segcore.config import Config, load_config
from segcore.errors import SegcoreError
from segcore.inspection.status import read_status
from segcore.output.committed import list_committed
from segcore.output.layout import EditionLayout, Table
from segcore.run.segment import segment
from segcore.storage import Storage

_LEFT_TO_DO = 100  # one unit of so many is done again to measure how a run resumes
_FILES_IN_FOLDER = 1000
_LINKS_OF_FILE = 50_000  # fewer than ext4 allows
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RunCost:
    """What one run cost the process that drives it.

    Attributes:
        seconds: Of the whole run, starting Ray included.
        cpu_s: CPU time of the driver alone.
        peak_mb: Largest resident memory of the driver, MB.
        steps: Seconds of each step: prepare, start_ray, segment, account, ...
        prefix: The edition it wrote into.
    """

    seconds: float
    cpu_s: float
    peak_mb: float
    steps: dict[str, float]
    prefix: str


@dataclass(frozen=True)
class ScaleReport:
    """The result of `segcore bench scale`.

    Attributes:
        units: Of one image each.
        output: Where they were committed: "local disk", or a URI.
        run: From nothing to everything done.
        resume: The same with one unit in a hundred left to do.
        nothing_to_do: The same with nothing left.
        status_s, status_peak_mb: Of `segcore status`.
    """

    units: int
    output: str
    machine: Machine
    run: RunCost
    resume: RunCost
    nothing_to_do: RunCost
    status_s: float
    status_peak_mb: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {
            "driver_ms_per_unit": self.driver_ms_per_unit,
            "driver_share_of_core": self.driver_share_of_core,
            "driver_peak_mb": self.run.peak_mb,
            "resume_s": self.resume.seconds,
            "account_s": self.account_s,
        }

    @property
    def driver_ms_per_unit(self) -> float:
        """CPU time of the driver for one unit more.

        The run that resumes has the same start and end and a hundredth of the units: what the whole
        run took beyond it is for the others.
        """
        others = self.units - len(range(0, self.units, _LEFT_TO_DO))
        return round(1e3 * (self.run.cpu_s - self.resume.cpu_s) / others, 3)

    @property
    def driver_share_of_core(self) -> float:
        """CPU time of the driver for those units, by the clock's time for them.

        The rest of the machine's time is that of the workers: a driver at 1 could feed no more.
        """
        seconds = self.run.seconds - self.resume.seconds
        return round((self.run.cpu_s - self.resume.cpu_s) / seconds, 3) if seconds > 0 else 0.0

    @property
    def account_s(self) -> float:
        """Seconds of comparing the output with the plan, in a run that finds nothing to do."""
        return self.nothing_to_do.steps.get("account", 0.0)

    def summary(self) -> str:
        """For people, as lines of text."""
        versions = self.machine.versions
        rows = [
            ("whole run", self.run.seconds, self.run.peak_mb),
            ("resume, 1 % left", self.resume.seconds, self.resume.peak_mb),
            ("nothing to do", self.nothing_to_do.seconds, self.nothing_to_do.peak_mb),
            ("its account", self.account_s, None),
            ("status", self.status_s, self.status_peak_mb),
        ]
        return "\n".join(
            [
                f"{self.units:,} units of one image, no model, committed to {self.output}",
                f"{self.machine.cpu}, {self.machine.cores} cores, Ray {versions['ray']}",
                "",
                *(
                    f"{name:18}{seconds:10.1f} s" + (f"{peak:10,.0f} MB" if peak else "")
                    for name, seconds, peak in rows
                ),
                "",
                f"Driver: {self.driver_ms_per_unit:.2f} ms of CPU for each unit, without that of "
                f"the workers; {self.driver_share_of_core:.0%} of a core",
            ]
        )


def bench_scale(
    units: int, output: str | None = None, notify: Callable[[str], None] = lambda text: None
) -> ScaleReport:
    """Run a job over so many units of one image each, and look at it again in every way.

    Args:
        output: An empty folder or prefix to commit to, which is left there; None: a temporary
            folder.

    Raises:
        SegcoreError: A run failed, or lost a unit.
    """
    with tempfile.TemporaryDirectory(prefix="segcore-scale-") as folder:
        target = output or str(Path(folder) / "out")
        notify(f"Making {units:,} images.")
        make_images(Path(folder) / "photos", units)
        values = {"input": str(Path(folder) / "photos"), "output": target}
        notify("The whole run.")
        run = _in_own_process(drive, values, units)
        undo_units(Storage(), run.prefix)
        notify("Resuming with 1 % left.")
        resume = _in_own_process(drive, values, units)
        notify("A run with nothing to do, and status.")
        nothing_to_do = _in_own_process(drive, values, units)
        status_s, status_peak_mb = _in_own_process(time_status, target, units)
    return ScaleReport(
        units=units,
        output=output or "local disk",
        machine=describe_machine(),
        run=run,
        resume=resume,
        nothing_to_do=nothing_to_do,
        status_s=status_s,
        status_peak_mb=status_peak_mb,
    )


def make_images(folder: Path, count: int) -> None:
    """Small images in folders of 1,000: links to a few files, where the disk has links."""
    import cv2

    data = cv2.imencode(".png", np.full((8, 8, 3), 40, np.uint8))[1].tobytes()
    original = folder / "00000" / "000.png"
    for number in range(count):
        path = folder / f"{number // _FILES_IN_FOLDER:05d}" / f"{number % _FILES_IN_FOLDER:03d}.png"
        if number % _FILES_IN_FOLDER == 0:
            path.parent.mkdir(parents=True)
        if number % _LINKS_OF_FILE == 0:
            path.write_bytes(data)
            original = path
            continue
        try:
            os.link(original, path)
        except OSError:
            shutil.copyfile(original, path)


def drive(values: dict[str, str], units: int) -> RunCost:
    """Run the job in this process, and measure it.

    Raises:
        SegcoreError: It failed, or the output does not hold each unit once.
    """
    flags = {name: (name, value) for name, value in values.items()}
    config: Config = load_config(sets=[f"model.name={NULL_MODEL}", "plan.images=1"], flags=flags)
    cpu_before, started = time.process_time(), time.monotonic()
    report = segment(config)
    seconds, cpu_s = time.monotonic() - started, time.process_time() - cpu_before
    if report.exit_code or (report.images, report.units) != (units, units):
        raise SegcoreError(f"The run is not complete:\n{report.summary()}")
    return RunCost(
        seconds=round(seconds, 2),
        cpu_s=round(cpu_s, 2),
        peak_mb=round(own_peak_memory_mb(), 1),
        steps=dict(report.timings),
        prefix=report.prefix,
    )


def undo_units(storage: Storage, prefix: str) -> None:
    """Delete the parts of one unit in a hundred, at least of one."""
    layout = EditionLayout(prefix)
    names = list_committed(storage, layout).names()[::_LEFT_TO_DO]
    tables: tuple[Table, Table] = ("images", "instances")
    for table in tables:
        storage.delete_all(layout.part(table, *name) for name in names)


def time_status(output: str, units: int) -> tuple[float, float]:
    """Seconds of `segcore status`, and the peak of memory of this process, MB."""
    started = time.monotonic()
    status = read_status(Storage(), output)
    if status.units_done != units:
        raise SegcoreError(f"status counts {status.units_done:,} of {units:,} units.")
    return round(time.monotonic() - started, 2), round(own_peak_memory_mb(), 1)


def _in_own_process(function: Callable[..., _Result], *args: Any) -> _Result:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()
