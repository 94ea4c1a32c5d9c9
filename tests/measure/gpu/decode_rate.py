"""Images/s of decoding and preprocessing alone: threads of one process, and processes.

    python -m tests.measure.gpu.decode_rate FOLDER [--threads 1 4 8 16] [--processes 16]

FOLDER holds JPEG files, such as FOLDER/loose of `make_archive`. Prints one JSON object. It uses no
device: a job can be no faster than this, whatever its GPU does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cv2

from segcore.images import DecodeOptions, decode_image
from segcore.models.yolo.model import Preprocess

MAX_FILES = 2048
_PIECES_PER_PROCESS = 4  # so that no process waits long for the last one

_preprocess = Preprocess(640, "rect")
_options = DecodeOptions()


def prepare(data: bytes) -> int:
    """Decode and letterbox one file; the height of its canvas."""
    return int(_preprocess(decode_image(data, _options)).pixels.shape[1])


def prepare_all(files: Iterable[bytes]) -> int:
    """The same for some files, in one call to another process."""
    cv2.setNumThreads(1)
    return sum(prepare(data) for data in files)


def _images_per_s(n_images: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return n_images / (time.perf_counter() - started)


def measure(files: list[bytes], threads: list[int], processes: int) -> dict[str, float]:
    """Images/s for each number of threads, and of that many processes."""
    figures = {"files": len(files), "bytes_per_file": sum(map(len, files)) / len(files)}
    for n in threads:
        # a single thread is slow: a part of the files tells enough
        some = files if n > 1 else files[: max(1, len(files) // 8)]
        with ThreadPoolExecutor(n) as pool:
            rate = _images_per_s(len(some), lambda p=pool, s=some: list(p.map(prepare, s)))
        figures[f"threads_{n}_images_s"] = rate
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(prepare_all, [files[:8]] * processes))  # start them, import everything
        step = processes * _PIECES_PER_PROCESS
        pieces = [files[start::step] for start in range(step)]
        rate = _images_per_s(len(files), lambda: list(pool.map(prepare_all, pieces)))
    figures[f"processes_{processes}_images_s"] = rate
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--processes", type=int, default=16)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(options.folder.glob("*.jpg"))[:MAX_FILES]
    if not paths:
        raise SystemExit(f"no *.jpg in {options.folder}")
    files = [path.read_bytes() for path in paths]
    print(json.dumps(measure(files, options.threads, options.processes)))


if __name__ == "__main__":
    main()
