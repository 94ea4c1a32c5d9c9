"""Two models' results on the same images, and known masks: generated, with every kind of change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segcore import masks
from segcore.errors import ErrorCode, ImageError
from segcore.instances import Instances
from segcore.output.layout import EditionLayout
from segcore.output.tables import ImageResult
from segcore.sources.units import Member, Unit, make_unit
from tests.support.generated_output import CATEGORIES, write_edition


def shift(counts: bytes, height: int, width: int, columns: int, rows: int) -> bytes:
    """A mask moved over its canvas; what leaves it comes in on the other side."""
    bitmap = masks.decode(counts, height, width)
    return masks.encode(np.roll(bitmap, (rows, columns), axis=(0, 1)))


def drift(instances: Instances, seed: int) -> Instances:
    """What another model may find: masks moved, relabelled, lost and new; other scores."""
    rng = np.random.default_rng(seed)
    height, width = instances.height, instances.width
    fates = rng.choice(["same", "moved", "relabelled", "lost", "far"], len(instances),
                       p=[0.5, 0.3, 0.05, 0.1, 0.05])  # fmt: skip
    kept = [i for i, fate in enumerate(fates) if fate != "lost"]
    counts = []
    categories = instances.category_ids[kept].copy()
    for place, i in enumerate(kept):
        text = instances.counts[i]
        if fates[i] == "moved":
            text = shift(text, height, width, *rng.integers(-3, 4, 2).tolist())
        elif fates[i] == "far":
            text = shift(text, height, width, int(rng.integers(width)), int(rng.integers(height)))
        elif fates[i] == "relabelled":
            categories[place] = int(rng.integers(1, len(CATEGORIES) + 1))
        counts.append(text)
    scores = np.clip(instances.scores[kept] + rng.normal(0, 0.05, len(kept)), 0, 1)
    order = np.argsort(-scores, kind="stable")
    boxes = [masks.bbox(counts[i], height, width) for i in order]
    return Instances(
        height=height,
        width=width,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=scores[order].astype(np.float32),
        category_ids=categories[order],
        areas=np.array([masks.area(counts[i]) for i in order], np.int64),
        counts=[counts[i] for i in order],
    )


def write_images(
    folder: str,
    images: Mapping[str, Instances | None],
    per_unit: int,
    name: str,
    archive: str = "s3://archive/photos",
    etags: Mapping[str, str] = {},
) -> EditionLayout:
    """Write an edition of these images by their ids; None stands for an image that failed."""
    ids = list(images)
    units = []
    for start in range(0, len(ids), per_unit):
        members = [Member(i, i, etags.get(i, "v1"), 10) for i in ids[start : start + per_unit]]
        n = len(members)
        units.append(make_unit("objects", stop=n, n_images=n, n_bytes=10 * n, members=members))

    def results(unit: Unit) -> list[ImageResult]:
        return [_result(member, images[member.image_id]) for member in unit.members]

    return write_edition(folder, units, results, name, archive=archive)


def _result(member: Member, found: Instances | None) -> ImageResult:
    row = ImageResult(member.image_id, member.uri, member.etag)
    if found is None:
        return replace(row, error=ImageError(ErrorCode.CORRUPT, "it is"))
    return replace(row, width=found.width, height=found.height, instances=found)


def coco_truth(images: Mapping[str, Instances], crowds: Sequence[int] = ()) -> dict[str, Any]:
    """A COCO document with these masks; annotations with an id in `crowds` are crowd regions."""
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": c.id, "name": c.name} for c in CATEGORIES]
    for number, (image_id, found) in enumerate(images.items(), start=1):
        name = image_id.rpartition("photos/")[2]
        size = {"height": found.height, "width": found.width}
        document["images"].append({"id": number, "file_name": name, **size})
        for i, text in enumerate(found.counts):
            annotation_id = len(document["annotations"]) + 1
            document["annotations"].append(
                {
                    "id": annotation_id,
                    "image_id": number,
                    "category_id": int(found.category_ids[i]),
                    "segmentation": {
                        "size": [found.height, found.width],
                        "counts": text.decode(),
                    },
                    "area": int(found.areas[i]),
                    "bbox": [float(v) for v in found.boxes[i]],
                    "iscrowd": int(annotation_id in crowds),
                }
            )
    return document


def truth_bytes(images: Mapping[str, Instances], crowds: Sequence[int] = ()) -> bytes:
    """The same as a file."""
    return json.dumps(coco_truth(images, crowds)).encode()
