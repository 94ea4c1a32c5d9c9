"""Time and memory of `segcore report` and `segcore rank` on an output of millions of instances.

    python -m tests.measure.large_output [--instances 10000000] [--per-image 25] [--folder F]
                                         [--only report rank-uncertain ...]

Writes an output of that many instances in images of 512 x 512 first, in units of 256 images, with
pictures that the report can show, into a temporary folder or into F, which is used again where it
is there. Each command then runs in a process of its own: wall time, CPU time of all its threads
and the most resident memory. Ten million instances take about a minute of CPU to write.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.tables import ImageResult, images_table, instances_table
from segcore.ranking.methods import RankBy
from segcore.sources.units import Member, Unit, make_unit
from segcore.storage import ObjectInfo, Storage
from tests.measure.compare import measure
from tests.support.generated_output import draw_instances, write_edition

_IMAGES_IN_A_UNIT = 256
_SIDE = 512  # pixels of an image
_RANKINGS = [f"rank-{by}" for by in RankBy]


def write(folder: Path, n_instances: int, per_image: int) -> str:
    """Write the archive and the output; its place. A folder that is whole is used again."""
    output = folder / "output"
    if (output / "latest.json").exists():
        return str(output)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for number in range(_IMAGES_IN_A_UNIT):
        (pictures / f"{number:03}.jpg").write_bytes(_picture(number))
    n_units = -(-n_instances // (per_image * _IMAGES_IN_A_UNIT))
    archive = folder / "archive"
    archive.mkdir(exist_ok=True)
    versions = [Storage().stat(f"{pictures}/{i:03}.jpg") for i in range(_IMAGES_IN_A_UNIT)]
    units = [_unit(archive, pictures, number, versions) for number in range(n_units)]
    drawn = [draw_instances("nuclei", per_image, seed) for seed in range(_IMAGES_IN_A_UNIT)]

    def results(unit: Unit) -> list[ImageResult]:
        rows = (ImageResult(m.image_id, m.uri, m.etag, _SIDE, _SIDE) for m in unit.members)
        return [replace(row, instances=one) for row, one in zip(rows, drawn, strict=True)]

    write_edition(str(output), units, results, archive=str(archive), commit=_Writer())
    return str(output)


class _Writer:
    """Writes units that differ in the ids of their images alone."""

    def __init__(self) -> None:
        self._rows: pa.Table | None = None

    def __call__(self, parts: Parts, unit: Unit, results: list[ImageResult]) -> None:
        if self._rows is None:
            self._rows = instances_table(results, dict(parts.categories))
        ids = pa.array([result.image_id for result in results], pa.string())
        counts = [len(result.instances or ()) for result in results]
        owners = ids.take(pa.array(np.repeat(np.arange(len(counts)), counts)))
        rows = self._rows.set_column(0, self._rows.schema.field(0), owners)
        of_unit = PartCounts.of_results(unit.unit, results, {})
        parts.commit_tables(images_table(unit, results), rows, of_unit)


def _picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (16, 16, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(small).resize((_SIDE, _SIDE)).save(sink, "JPEG")
    return sink.getvalue()


def _unit(archive: Path, pictures: Path, number: int, versions: list[ObjectInfo]) -> Unit:
    """A folder of images; all folders are the same one by other names."""
    folder = archive / f"{number:06}"
    if not folder.is_symlink():
        folder.symlink_to(pictures, target_is_directory=True)
    uris = [f"{folder}/{image:03}.jpg" for image in range(len(versions))]
    members = [Member(uri, uri, v.etag, v.size) for uri, v in zip(uris, versions, strict=True)]
    n, n_bytes = len(members), sum(member.size for member in members)
    return make_unit("objects", stop=n, n_images=n, n_bytes=n_bytes, members=members)


def main() -> None:
    """Measure and print one line for each command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instances", type=int, default=10_000_000)
    parser.add_argument("--per-image", type=int, default=25)
    parser.add_argument("--folder", type=Path, help="Keep the output here, or take it from here.")
    parser.add_argument("--only", nargs="+", choices=["report", *_RANKINGS], default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        # Elsewhere, because the memory of this process counts as that of its children's beginning.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            output = pool.submit(write, folder, args.instances, args.per_image).result()
        html = folder / "report.html"
        commands = {"report": ["report", output, "--out", str(html)]}
        commands |= {
            name: ["rank", output, "--by", name.removeprefix("rank-"), "--overwrite"]
            for name in _RANKINGS
        }
        for name, arguments in commands.items():
            if not args.only or name in args.only:
                print(name, json.dumps(measure(arguments)), flush=True)
        if html.exists():
            print(f"report.html has {html.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
