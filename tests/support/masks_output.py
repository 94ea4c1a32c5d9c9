"""Outputs with given masks on real pictures in a real archive, written without a model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from segcore import masks
from segcore.errors import ErrorCode, ImageError
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
from segcore.planning.plan import make_plan
from segcore.planning.plan_files import encode_plan
from segcore.sources import SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, normalize

CATEGORIES = (Category(3, "cat"), Category(5, "dog & <b>"), Category(9, "tree"))
HEIGHT, WIDTH = 40, 60


@dataclass(frozen=True)
class Drawn:
    """One mask of an image: (H, W) bool, the id of its class, its score."""

    mask: np.ndarray
    category: int
    score: float


def hard_mask() -> np.ndarray:
    """A hole, two parts, a part of one pixel, all four borders touched."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 5:40] = True
    mask[15:22, 12:20] = False
    mask[0, 20:30] = mask[-1, 30:33] = True
    mask[3:6, 0] = mask[5:30, -1] = True
    mask[35, 10] = True
    return mask


def mask_family() -> dict[str, np.ndarray]:
    """Masks of which each is hard for some format, by name."""
    rng = np.random.default_rng(5)
    full = np.ones((HEIGHT, WIDTH), bool)
    first = np.zeros((HEIGHT, WIDTH), bool)
    first[:3, :4] = True
    pixel = np.zeros((HEIGHT, WIDTH), bool)
    pixel[17, 23] = True
    diagonal = np.zeros((HEIGHT, WIDTH), bool)
    diagonal[np.arange(5, 15), np.arange(5, 15)] = True
    rows = np.zeros((HEIGHT, WIDTH), bool)
    rows[8:12] = True
    ragged = rng.random((HEIGHT, WIDTH)) < 0.5
    island = np.zeros((HEIGHT, WIDTH), bool)
    island[5:30, 5:30] = True
    island[8:27, 8:27] = False
    island[12:20, 12:20] = True
    return {
        "hard": hard_mask(),
        "full": full,
        "first": first,
        "pixel": pixel,
        "diagonal": diagonal,
        "rows": rows,
        "ragged": ragged,
        "island": island,
    }


def picture(seed: int, kind: str = "PNG", orientation: int = 1) -> bytes:
    """A picture that is shown with HEIGHT rows and WIDTH columns."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    if orientation == 6:  # stored lying on its side
        pixels = np.ascontiguousarray(pixels.transpose(1, 0, 2)[:, ::-1][::-1, ::-1])
    exif = Image.Exif()
    exif[274] = orientation
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **({"exif": exif} if orientation != 1 else {}))
    return sink.getvalue()


def write_results(
    source: str,
    output: str,
    drawn: Mapping[str, Sequence[Drawn]],
    sequence: int = 1,
    options: SourceOptions = SourceOptions(),
    failed: Sequence[str] = (),
    decode: DecodeOptions = DecodeOptions(),
) -> EditionLayout:
    """Write the output of a finished run over the archive `source`.

    Args:
        drawn: End of the image id -> its masks; images without an entry have none.
        failed: Ends of the ids of images that are corrupt.
    """
    storage = Storage()
    info = ModelInfo("drawn", "none", "1" * 64, "CC0-1.0", CATEGORIES)
    edition = make_edition(info, decode)
    layout = OutputLayout(normalize(output)).edition(edition.name)
    plan = make_plan(open_source(source, options, storage), UnitLimits(images=4))
    names = tuple((category.id, category.name) for category in CATEGORIES)
    parts = Parts(storage, layout.prefix, edition.name, plan.run, edition.licence, names)
    storage.write(layout.edition_json, edition.to_json())
    storage.write(layout.plan(plan.run), encode_plan(plan))
    n_images = n_masks = 0
    for unit in plan.units:
        results = []
        for sample in read_unit(unit, storage, options):
            found = [d for end, ds in drawn.items() if sample.image_id.endswith(end) for d in ds]
            row = ImageResult(sample.image_id, sample.uri, sample.etag, WIDTH, HEIGHT)
            error = sample.error
            if any(sample.image_id.endswith(end) for end in failed):
                error = ImageError(ErrorCode.CORRUPT, "It was drawn so.")
            if error is not None:
                results.append(replace(row, error=error, width=None, height=None))
                continue
            results.append(replace(row, instances=instances_of(found)))
            n_masks += len(found)
        n_images += len(results)
        parts.commit(unit, results)
    write_unlisted(storage, layout, plan.run, UNLISTED_SCHEMA.empty_table())
    report = RunReport(
        status=SUCCESS, run=plan.run, edition=edition.name, input=plan.input,
        output=normalize(output), prefix=layout.prefix, model=info.name, sequence=sequence,
        max_failed_fraction=0.01,
    )  # fmt: skip
    counts = {"images": n_images, "ok": n_images, "instances": n_masks, "units": len(plan.units)}
    storage.write(layout.run_record(plan.run), replace(report, **counts).to_json())
    publish(storage, layout, plan.run, SUCCESS)
    return layout


def instances_of(drawn: Sequence[Drawn]) -> Instances:
    """Masks as a model returns them, by descending score."""
    ordered = sorted(drawn, key=lambda one: -one.score)
    counts = [masks.encode(one.mask) for one in ordered]
    boxes = [masks.bbox(text, HEIGHT, WIDTH) for text in counts]
    return Instances(
        height=HEIGHT,
        width=WIDTH,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array([one.score for one in ordered], np.float32),
        category_ids=np.array([one.category for one in ordered], np.int32),
        areas=np.array([int(one.mask.sum()) for one in ordered], np.int64),
        counts=counts,
    )
