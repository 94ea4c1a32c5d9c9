"""Outputs of any size, written without images or a model: blobs with ragged edges as masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from segcore import masks
from segcore.images import DecodeOptions
from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo
from segcore.output.edition import make_edition
from segcore.output.latest import publish
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.parts import Parts
from segcore.output.report import SUCCESS, RunReport
from segcore.output.tables import ImageResult
from segcore.output.unlisted import UNLISTED_SCHEMA, write_unlisted
from segcore.planning.plan import Plan, Units, run_name
from segcore.planning.plan_files import encode_plan
from segcore.sources.unit_tables import units_to_table
from segcore.sources.units import Member, Unit, make_unit
from segcore.storage import Storage, normalize

# Height and width of the images, smallest and largest diameter of a mask: pixels.
SIZES = {"nuclei": (512, 512, 12, 40), "photos": (960, 1280, 60, 400)}
CATEGORIES = tuple(Category(number, f"class {number}") for number in range(1, 81))
_INPUT = "s3://archive/photos"
_N_IMAGES = 256  # distinct ones: compression finds no mask twice in a unit


def blob(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width) bool: an ellipse whose edge wanders, as those of real masks do."""
    y, x = np.mgrid[:height, :width]
    dy, dx = (y + 0.5) / height * 2 - 1, (x + 0.5) / width * 2 - 1
    angle = np.arctan2(dy, dx)
    phases = rng.uniform(0, 2 * np.pi, 3)
    edge = 0.85 + sum(0.05 * np.sin(k * angle + p) for k, p in zip((3, 7, 13), phases, strict=True))
    return np.hypot(dx, dy) < edge


def draw_instances(size: str, n: int, seed: int) -> Instances:
    """`n` instances on an image of one of `SIZES`."""
    height, width, smallest, largest = SIZES[size]
    rng = np.random.default_rng(seed)
    boxes, areas, counts = [], [], []
    for _ in range(n):
        h, w = rng.integers(smallest, largest, 2).tolist()
        top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        columns = np.zeros((height, w), bool)
        columns[top : top + h] = blob(h, w, rng)
        runs = masks.string_to_counts(masks.encode(columns))
        runs[0] += left * height
        runs[-1] += (width - left - w) * height
        counts.append(masks.counts_to_string(runs))
        boxes.append(masks.bbox(counts[-1], height, width))
        areas.append(int(columns.sum()))
    return Instances(
        height=height,
        width=width,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.sort(rng.random(n).astype(np.float32))[::-1],
        category_ids=rng.integers(1, len(CATEGORIES) + 1, n).astype(np.int32),
        areas=np.array(areas, np.int64),
        counts=counts,
    )


def plan_units(n_units: int, n_images: int) -> list[Unit]:
    """Units of loose images."""
    units = []
    for number in range(n_units):
        uris = [f"{_INPUT}/{number:06}/{image:06}.jpg" for image in range(n_images)]
        members = [Member(uri, uri, f"etag-{number:x}-{i:x}", 1000) for i, uri in enumerate(uris)]
        n_bytes = 1000 * n_images
        units.append(
            make_unit("objects", stop=n_images, n_images=n_images, n_bytes=n_bytes, members=members)
        )
    return units


def write_output(
    folder: str, n_units: int, n_images: int, n_instances: int, size: str = "nuclei"
) -> EditionLayout:
    """Write the output of a finished run: so many units, images in each, instances in each."""
    drawn = [draw_instances(size, n_instances, seed) for seed in range(min(_N_IMAGES, n_images))]

    def results(unit: Unit) -> list[ImageResult]:
        return [_result(m, drawn[i % len(drawn)]) for i, m in enumerate(unit.members)]

    return write_edition(folder, plan_units(n_units, n_images), results)


def write_edition(
    folder: str,
    units: list[Unit],
    results: Callable[[Unit], list[ImageResult]],
    name: str = "generated",
    categories: tuple[Category, ...] = CATEGORIES,
    archive: str = _INPUT,
    commit: Callable[[Parts, Unit, list[ImageResult]], object] = Parts.commit,
) -> EditionLayout:
    """Write the output of a finished run over these units, and publish it.

    Args:
        results: Those of a unit.
        name: Of the model.
        commit: Writes the two parts of a unit.
    """
    storage = Storage()
    info = ModelInfo(name, "none", "0" * 64, "CC0-1.0", categories)
    edition = make_edition(info, DecodeOptions())
    output = OutputLayout(normalize(folder))
    layout = output.edition(edition.name)
    table = units_to_table(units)
    plan = Plan(run_name(table), archive, Units(table))
    names = tuple((category.id, category.name) for category in categories)
    parts = Parts(storage, layout.prefix, edition.name, plan.run, edition.licence, names)
    storage.write(layout.edition_json, edition.to_json())
    storage.write(layout.plan(plan.run), encode_plan(plan))
    counts: Counter[str] = Counter({"units": len(units)})
    for unit in units:
        rows = results(unit)
        commit(parts, unit, rows)
        counts["images"] += len(rows)
        counts["ok"] += sum(row.error is None for row in rows)
        counts["instances"] += sum(len(row.instances or ()) for row in rows)
    write_unlisted(storage, layout, plan.run, UNLISTED_SCHEMA.empty_table())
    report = RunReport(
        status=SUCCESS,
        run=plan.run,
        edition=edition.name,
        input=plan.input,
        output=output.uri,
        prefix=layout.prefix,
        model=info.name,
        sequence=1,
        max_failed_fraction=1.0,
        failed=counts["images"] - counts["ok"],
    )
    storage.write(layout.run_record(plan.run), replace(report, **counts).to_json())
    publish(storage, layout, plan.run, SUCCESS)
    return layout


def _result(member: Member, drawn: Instances) -> ImageResult:
    row = ImageResult(member.image_id, member.uri, member.etag)
    return replace(row, width=drawn.width, height=drawn.height, instances=drawn)
