"""What compaction costs and what readers gain: seconds, memory, files, row groups of filters.

    python -m tests.measure.compaction FOLDER [--units 20000] [--images 5] [--masks 4]

Writes an output of random rows of that many units into FOLDER, which must not exist, scans it with
DuckDB, compacts it in both orders, each in a process of its own, and scans it again. CPU seconds
are user and system time of all threads of a process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.output.latest import publish
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.report import SUCCESS, RunReport
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.output.unlisted import UNLISTED_SCHEMA, write_unlisted
from segcore.planning.plan import Plan, Units, run_name
from segcore.planning.plan_files import encode_plan
from segcore.run.compact import compact
from segcore.run.compact_plan import CompactOptions, SortOrder
from segcore.sources.unit_tables import units_to_table
from segcore.sources.units import Member, Unit, make_objects_unit
from segcore.storage import Storage
from tests.support.reports import make_report

CATEGORIES = 80


def make_output(folder: str, n_units: int, n_images: int, n_masks: int) -> EditionLayout:
    """An output of random rows; a mask string is 100 random letters, which compress little."""
    storage = Storage()
    layout = OutputLayout(folder).edition("random-0123")
    units = [_make_unit(number, n_images) for number in range(n_units)]
    table = units_to_table(units)
    plan = Plan(run_name(table), "/in", Units(table))
    parts = Parts(storage, layout.prefix, layout.name, plan.run, "CC0-1.0", ())
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda unit: _commit(parts, unit, n_masks), units):
            pass
    storage.write(layout.edition_json, b'{"model": {"licence": "CC0-1.0"}}')
    storage.write(layout.plan(plan.run), encode_plan(plan))
    write_unlisted(storage, layout, plan.run, UNLISTED_SCHEMA.empty_table())
    report: RunReport = make_report(
        status=SUCCESS, run=plan.run, edition=layout.name, output=folder, prefix=layout.prefix
    )
    storage.write(layout.run_record(plan.run), report.to_json())
    publish(storage, layout, plan.run, SUCCESS)
    return layout


def _make_unit(number: int, n_images: int) -> Unit:
    uris = [f"s3://bucket/archive/{number:07d}/{i:04d}.jpg" for i in range(n_images)]
    return make_objects_unit([Member(uri, uri, f"{number:08x}{i:08x}", 1000) for i, uri in
                              enumerate(uris)])  # fmt: skip


def _commit(parts: Parts, unit: Unit, n_masks: int) -> None:
    random = np.random.default_rng(int(unit.unit[:8], 16))
    ids = [member.image_id for member in unit.members]
    n_images, n = len(ids), len(ids) * n_masks
    images = {
        "image_id": ids, "uri": ids, "etag": [member.etag for member in unit.members],
        "shard": [""] * n_images, "unit": [unit.unit] * n_images, "width": [640] * n_images,
        "height": [480] * n_images, "status": ["ok"] * n_images, "error_code": [None] * n_images,
        "error_message": [None] * n_images, "n_instances": [n_masks] * n_images,
        "warnings": [[]] * n_images, "page": [None] * n_images,
    }  # fmt: skip
    categories = random.integers(0, CATEGORIES, n)
    letters = random.integers(48, 112, (n, 100), np.uint8)
    instances: dict[str, object] = {
        "image_id": np.repeat(ids, n_masks),
        "instance_index": np.tile(np.arange(n_masks, dtype=np.int32), n_images),
        "category_id": categories.astype(np.int32),
        "category": [f"class {category:02d}" for category in categories],
        "score": -np.sort(-random.random((n_images, n_masks)), axis=1).astype(np.float32).ravel(),
        "area": random.integers(1, 10_000, n), "height": np.full(n, 480, np.int32),
        "width": np.full(n, 640, np.int32), "window_x": np.zeros(n, np.int32),
        "window_y": np.zeros(n, np.int32), "geometry": pa.nulls(n, pa.binary()),
        "counts": [row.tobytes().decode("latin-1") for row in letters],
    }  # fmt: skip
    for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"):
        instances[name] = random.random(n, np.float32) * 400
    parts.commit_tables(
        pa.table(images, IMAGES_SCHEMA),
        pa.table({name: instances[name] for name in INSTANCES_SCHEMA.names}, INSTANCES_SCHEMA),
        PartCounts(unit.unit, n_images, 0, n),
    )


def measure_compaction(output: str, sort: SortOrder) -> dict[str, object]:
    """Compact in this process; what it took."""
    began, cpu = time.monotonic(), time.process_time()
    report = compact(Storage(), output, options=CompactOptions(sort=sort))
    return {
        "sort": sort,
        "units": report.units,
        "files": report.files,
        "mb": round(report.bytes / 1e6, 1),
        "cpu_s": round(time.process_time() - cpu, 2),
        "seconds": round(time.monotonic() - began, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "instances": report.instances,
    }


def measure_scan(pattern: str) -> dict[str, float]:
    """CPU seconds of DuckDB for a sum over two columns of all masks."""
    began, cpu = time.monotonic(), time.process_time()
    query = f"SELECT category, count(*), avg(score) FROM read_parquet('{pattern}') GROUP BY 1"
    duckdb.sql(query).fetchall()
    return {
        "cpu_s": round(time.process_time() - cpu, 2),
        "seconds": round(time.monotonic() - began, 2),
    }


def touched_row_groups(pattern: str, image_id: str) -> dict[str, str]:
    """Row groups whose statistics do not exclude a filter, of all."""
    folder = Path(pattern).parent
    metadata = [pq.read_metadata(path) for path in sorted(folder.glob("*.parquet"))]
    groups = [file.row_group(i) for file in metadata for i in range(file.num_row_groups)]
    names = INSTANCES_SCHEMA.names

    def bounds(group: object, name: str) -> tuple:
        statistics = group.column(names.index(name)).statistics  # type: ignore[attr-defined]
        return statistics.min, statistics.max

    def count(*conditions: tuple[str, object, object]) -> str:
        touched = sum(
            all(bounds(group, name)[0] <= high and bounds(group, name)[1] >= low
                for name, low, high in conditions)
            for group in groups
        )  # fmt: skip
        return f"{touched} of {len(groups)}"

    category = ("category", "class 07", "class 07")
    return {
        "category": count(category),
        "category and score > 0.9": count(category, ("score", 0.9, 1.0)),
        "score > 0.9": count(("score", 0.9, 1.0)),
        "one image": count(("image_id", image_id, image_id)),
    }


def main() -> None:
    """Print one JSON document a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=5, help="of each unit")
    parser.add_argument("--masks", type=int, default=4, help="of each image")
    parser.add_argument("--compact", choices=["image", "category,score"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compact:
        print(json.dumps(measure_compaction(str(options.folder), options.compact)))
        return
    layout = make_output(
        str(options.folder.resolve()), options.units, options.images, options.masks
    )
    files = [path for path in Path(layout.prefix).rglob("*.parquet") if path.parent.name in
             ("images", "instances")]  # fmt: skip
    size = sum(path.stat().st_size for path in files)
    loose = measure_scan(layout.parts_pattern("instances"))
    print(json.dumps({"parts": len(files), "mb": round(size / 1e6, 1), "scan": loose}))
    image_id = _make_unit(options.units // 2, options.images).members[0].image_id
    for sort in ("image", "category,score"):
        command = [sys.executable, "-m", "tests.measure.compaction", str(options.folder)]
        done = subprocess.run([*command, "--compact", sort], capture_output=True, check=True)
        result = json.loads(done.stdout)
        pattern = result.pop("instances")
        result["scan"] = measure_scan(pattern)
        result["row groups touched"] = touched_row_groups(pattern, image_id)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
