"""The grid within its own environment: see `tests.grid.__main__`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.grid import coco
from tests.grid.compare import RESULTS, Verdict, judge
from tests.grid.files import GridFile
from tests.grid.others import WRITERS
from tests.grid.pngs_bmps import bmp_files, png_files
from tests.grid.readers import read_by_all
from tests.grid.tiffs import tiff_files

FORMATS: dict[str, Callable[[], list[GridFile]]] = {
    **WRITERS,
    "png": png_files,
    "bmp": bmp_files,
    "tiff": tiff_files,
}
# Where segcore differs from two that agree: why, and of which files.
EXPLAINED: dict[str, Callable[[GridFile], bool]] = {
    "GIF with transparency: colours under it, as Pillow; OpenCV and giflib make them black": (
        lambda file: file.format == "gif" and file.row["transparency"]
    ),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries write their warnings past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)


def main() -> int:
    """Compare all files; returns the exit code."""
    wanted = sys.argv[1:] or list(FORMATS)
    if wanted == ["coco"]:
        return coco.main()
    verdicts: list[Verdict] = []
    print(f"{'format':8}{'files':>6}" + "".join(f"{result:>13}" for result in RESULTS))
    for name in wanted:
        with quiet():
            of_format = [judge(file, read_by_all(file)) for file in FORMATS[name]()]
        counts = Counter(verdict.result for verdict in of_format)
        print(f"{name:8}{len(of_format):6}" + "".join(f"{counts[result]:13}" for result in RESULTS))
        verdicts += of_format
    refusals = Counter((v.file.format, v.detail) for v in verdicts if v.result == "refused")
    print(f"\n{sum(refusals.values())} refused:")
    for (image_format, reason), count in refusals.most_common():
        print(f"  {count:4} {image_format:5} {reason}")
    n_unexplained = 0
    print("\nunlike two others, or unlike all:")
    for verdict in verdicts:
        if verdict.result in ("WRONG", "UNLIKE ALL"):
            reasons = [why for why, covers in EXPLAINED.items() if covers(verdict.file)]
            n_unexplained += not reasons
            print(
                f"  {verdict.file.name}\n      {verdict.detail}\n      {reasons or 'UNEXPLAINED'}"
            )
    print(f"\n{len(verdicts)} files, {n_unexplained} of them wrong")
    return 1 if n_unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
