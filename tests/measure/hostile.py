"""What hostile files take: memory and CPU time of each file of generated families.

    python -m tests.measure.hostile             # all families; two minutes of CPU
    python -m tests.measure.hostile png tar

Each file is read in a forked process. Its peak is the memory beside what was loaded before; the
budget is what segcore.images.memory estimates for an image that is decoded, and 64 MiB for all
else: a refusal, a listing, a document. The exit code is 1 if a file takes more than twice its
budget, more than 60 s of CPU, or ends its process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from segcore.errors import ImageError, SegcoreError
from segcore.images import DecodeOptions, check_limits, decode_image
from segcore.sources import SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage
from tests.measure.hostile_files import FAMILIES, HostileFile

MIB = 1 << 20
FLOOR_MIB = 64
MAX_CPU_S = 60


def read_image(path: Path) -> tuple[str, int]:
    """What came out, and the budget in MiB."""
    data, options = path.read_bytes(), DecodeOptions()
    budget = 0
    try:
        budget = check_limits(data, options) // MIB
        return f"ok {decode_image(data, options).shape}", budget
    except ImageError as error:
        return f"{error.code}: {error.message[:90]}", budget


def read_archive(path: Path) -> tuple[str, int]:
    """Rows of a tar, a manifest or a COCO file; no image is read."""
    try:
        source = open_source(str(path), SourceOptions(allow_empty=True), Storage())
        n_rows = sum(
            1
            for unit in source.units(UnitLimits())
            for _ in read_unit(unit, Storage(), SourceOptions())
        )
        return f"{n_rows} rows", 0
    except SegcoreError as error:
        return f"{error.code}: {error.message[:90]}", 0


def read_truth(path: Path) -> tuple[str, int]:
    from segcore.evaluation.truth_file import load_ground_truth

    try:
        return f"{len(load_ground_truth(path.read_bytes(), path.name).images)} images", 0
    except SegcoreError as error:
        return f"{error.code}: {error.message[:90]}", 0


READERS: dict[str, Callable[[Path], tuple[str, int]]] = {
    "image": read_image,
    "archive": read_archive,
    "truth": read_truth,
}


def _in_child(action: Callable[[], object]) -> None:
    """Run an action in a process of its own, so that what it frees is not there for the next."""
    child = os.fork()
    if not child:
        try:
            action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def measure(file: HostileFile, folder: Path) -> tuple[str, int, int, float, int]:
    """What came out, budget and peak in MiB, CPU seconds; and the bytes of the file."""
    path, answer = folder / file.name, folder / "answer.json"
    answer.unlink(missing_ok=True)
    _in_child(lambda: path.write_bytes(file.data()))

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (2 * MAX_CPU_S, 2 * MAX_CPU_S))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, start = _peak_mib(), time.process_time()
        text, budget = READERS[file.reader](path)
        numbers = (_peak_mib() - before, time.process_time() - start)
        answer.write_text(json.dumps((text, budget, *numbers)))

    _in_child(run)
    n_bytes = path.stat().st_size
    path.unlink()
    if not answer.exists():
        return "DIED", 0, 0, 0.0, n_bytes
    text, budget, peak, seconds = json.loads(answer.read_text())
    return text, budget, peak, seconds, n_bytes


def _peak_mib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def main() -> int:
    """Measure all files of the families; returns the exit code."""
    wanted = sys.argv[1:] or list(FAMILIES)
    n_over = n_files = 0
    print(f"{'file':34}{'bytes':>10}{'budget':>8}{'peak MiB':>9}{'CPU s':>7}  result")
    with tempfile.TemporaryDirectory() as name:
        for family in wanted:
            for file in FAMILIES[family]():
                text, budget, peak, seconds, size = measure(file, Path(name))
                is_over = peak > 2 * max(budget, FLOOR_MIB) or seconds > MAX_CPU_S or text == "DIED"
                n_over += is_over
                n_files += 1
                print(
                    f"{family + '/' + file.name:34}{size:10}{budget:8}{peak:9}{seconds:7.1f}"
                    f"  {text}{'  OVER' if is_over else ''}",
                    flush=True,
                )
    print(f"{n_files} files, {n_over} over twice the budget")
    return 1 if n_over else 0


if __name__ == "__main__":
    sys.exit(main())
