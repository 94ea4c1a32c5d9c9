"""The seven nights of `tests/run/test_seven_nights.py` as a scheduler's commands, with real Ray.

    pytest -s -m chaos tests/faults/test_seven_nights.py

Each call is a process that starts a Ray of its own. The table is printed as in docs/schedules.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from segcore.inspection.verify import verify_output
from segcore.storage import Storage
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.commands import run_module
from tests.support.jobs import BRIGHT_MODEL, write_files
from tests.support.nights import BLIND_MODEL, STUCK_MODEL, fresh_rows, published_rows
from tests.support.paths import PYTHONPATH, ROOT
from tests.support.run_without_ray import without_ray

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(1800)]
OLD, NEW, NEWEST = (("model.conf=0.25",), ("model.conf=0.5",), ("model.conf=0.75",))


class _End(NamedTuple):
    """How a call ended: its exit code, what it printed as JSON, and how long it took."""

    code: int
    report: dict[str, Any]
    seconds: float


class _Nights:
    """Calls of a scheduler over the archive `in` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._date = 0

    def arguments(self, sets: Sequence[str], model: str) -> list[str]:
        """The command of a night, but for its name."""
        values = [
            f"input={self.folder}/in", f"output={self.folder}/out", f"model.name={model}",
            "plan.images=3", "run.lease_ttl_s=60", "schedule.if_busy=wait", "ray.max_actors=2",
            *sets,
        ]  # fmt: skip
        sets = [part for value in values for part in ("--set", value)]
        config = str(ROOT / "configs" / "reprocess.yaml")
        date = ["--logical-date", f"2026-11-{self._date:02}"]
        return ["reprocess", config, *sets, *date, "--json", "--exit-99-if-nothing-to-do"]

    def call(self, *sets: str, model: str = BRIGHT_MODEL, kill_before: str = "") -> _End:
        """One call of a new night, to its end."""
        self._date += 1
        began = time.monotonic()
        arguments = self.arguments(sets, model)
        if kill_before:
            done = run_module("tests.support.killed_segcore", kill_before, *arguments)
        else:
            done = run_module("segcore", *arguments)
        report = json.loads(done.stdout) if done.stdout else {}
        assert kill_before or "status" in report, (done.returncode, done.stdout, done.stderr)
        return _End(done.returncode, report, time.monotonic() - began)

    def at_once(self, *sets: str) -> list[int]:
        """Exit codes of two calls that begin together, sorted."""
        self._date += 1
        command = [sys.executable, "-m", "segcore", *self.arguments(sets, BRIGHT_MODEL)]
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        both = [
            subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)
        ]  # fmt: skip
        for process in both:
            print(*process.communicate(), process.returncode, sep="\n")  # shown if the test fails
        return sorted(process.returncode for process in both)

    def check(self, what: str, end: str, expected: dict[str, Any]) -> None:
        """The published table is this one; prints a row about it."""
        found = published_rows(self.folder)
        assert found == expected, what
        n = {name: len(rows) for name, rows in found.items()}
        print(f"| {what} | {end} | {n['images']} | {n['instances']} |")


def _fresh(folder: Path, name: str, sets: Sequence[str]) -> dict[str, Any]:
    with without_ray():
        return fresh_rows(folder, name, *sets)


def test_seven_nights_with_ray(tmp_path: Path) -> None:
    nights, archive = _Nights(tmp_path), tmp_path / "in"
    print("\n| night | how it ended | images | instances |\n|---|---|---|---|")

    def describe(end: _End) -> str:
        return f"`{end.report.get('status', 'killed')}`, exit code {end.code}, {end.seconds:.0f} s"

    write_files(archive, bright_pngs(20))
    end = nights.call(*OLD)
    assert (end.code, end.report["status"]) == (0, "published")
    nights.check("1: 20 images", describe(end), _fresh(tmp_path, "1", OLD))

    write_files(archive, {f"{n:03}.png": bright_png(n) for n in range(20, 24)})
    write_files(archive, {"004.png": bright_png(104)})
    (archive / "007.png").unlink()
    assert nights.at_once(*OLD) == [0, 99]
    nights.check("2: 4 new, 1 changed, 1 gone; two calls", "exit codes 0 and 99",
                 _fresh(tmp_path, "2", OLD))  # fmt: skip

    write_files(archive, {"024.png": bright_png(24)})
    end = nights.call(*NEW)
    assert (end.code, end.report["status"]) == (0, "published")
    nights.check("3: 1 new; a new model", describe(end), _fresh(tmp_path, "3", NEW))

    write_files(archive, {f"{n:03}.png": bright_png(n) for n in (25, 26)})
    end = nights.call(model=BLIND_MODEL)
    assert (end.code, end.report["status"], end.report["images_added"]) == (4, "refused", 2)
    expected = _fresh(tmp_path, "4", NEW)
    nights.check("4: 2 new; a model that finds nothing", describe(end), expected)

    # How many of such small units are done before the workers end is a matter of speed, unless
    # these wait for ever.
    end = nights.call(*NEWEST, "run.max_seconds=0.01", model=STUCK_MODEL)
    assert (end.code, end.report["status"]) == (0, "budget_reached")
    done = end.report["images_this_time"]
    assert 0 < done < 26 - 12
    nights.check("5: another model; a deadline", describe(end), expected)
    end = nights.call(*NEWEST, "run.max_images=12")
    assert (end.code, end.report["status"]) == (0, "budget_reached")
    assert end.report["images_this_time"] == 12
    nights.check("5, again: 12 images", describe(end), expected)

    end = nights.call(*NEWEST)
    assert (end.code, end.report["status"]) == (0, "published")
    assert end.report["images_this_time"] == 26 - done - 12
    expected = _fresh(tmp_path, "6", NEWEST)
    nights.check("6: the rest", describe(end), expected)

    write_files(archive, {"027.png": bright_png(27)})
    end = nights.call(*NEW, kill_before="/out/latest.json")
    assert end.code == -signal.SIGKILL
    nights.check("7: 1 new; the model of night 3; kill -9", "killed", expected)
    end = nights.call(*NEW)
    assert (end.code, end.report["status"], end.report["images_this_time"]) == (0, "published", 0)
    nights.check("7: the next call", describe(end), _fresh(tmp_path, "7", NEW))

    end = nights.call(*NEW)
    assert (end.code, end.report["status"]) == (99, "nothing_to_do")
    nights.check("8: nothing", describe(end), published_rows(tmp_path))
    assert not verify_output(Storage(), f"{tmp_path}/out").counts
