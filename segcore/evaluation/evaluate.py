"""Mask and box AP of a run's output against COCO ground truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.evaluation.analysis import Analysis, analyse
from segcore.evaluation.average_precision import DEFAULT_MAX_DETS, Scores, measure
from segcore.evaluation.exif_labels import ExifLabels
from segcore.evaluation.ground_truth import GroundTruth, Id
from segcore.evaluation.matching import ImageRow, match_categories, match_images
from segcore.evaluation.objects import Detections, text_of
from segcore.evaluation.remarks import list_names
from segcore.evaluation.resources import paused_collection
from segcore.evaluation.truth_file import load_ground_truth
from segcore.masks.overlap import MaskStrings
from segcore.output.results import Results, open_results
from segcore.output.schema import INSTANCES_SCHEMA
from segcore.storage import Storage, normalize
from segcore.text import plural

_MAX_GROUND_TRUTH_BYTES = 8 << 30
_COLUMNS = [
    "image_id", "category_id", "category", "score", "bbox_x", "bbox_y", "bbox_w", "bbox_h",
    "height", "width", "counts",
]  # fmt: skip


@dataclass(frozen=True)
class EvaluationReport:
    """Scores and what they were measured on.

    Attributes:
        images: Images of the ground truth that were measured.
        failed: Of these, images that failed in the run; they count as without detections.
        not_in_ground_truth: Images of the output that the ground truth lacks; left out.
        not_in_output: Images of the ground truth that the output lacks; left out on request.
        other_classes: Detections of classes that the ground truth does not have; left out.
        analysis: Where the output is wrong.
        output_ids: Image of the ground truth -> image_id of the output.
        notes: Sentences for people about the above.
        edition_notes: Sentences for people about the edition: whether it is published, and
            whether there is a newer one.
    """

    edition: str
    ground_truth: str
    images: int
    failed: int
    not_in_ground_truth: int
    not_in_output: int
    other_classes: int
    scores: Scores
    analysis: Analysis
    output_ids: Mapping[Id, str] = field(repr=False, default_factory=dict)
    notes: tuple[str, ...] = field(default=())
    edition_notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; numbers without ground truth are None."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        del values["output_ids"]
        return values | {
            "scores": self.scores.to_dict(),
            "analysis": self.analysis.to_dict(self.output_ids),
            "notes": list(self.notes),
            "edition_notes": list(self.edition_notes),
        }


@paused_collection()
def evaluate(
    storage: Storage,
    output: str,
    ground_truth: str,
    edition: str | None = None,
    max_dets: int = DEFAULT_MAX_DETS,
    allow_missing: bool = False,
    exif_labels: ExifLabels = ExifLabels.REFUSE,
    *,
    include_unlisted: bool = False,
) -> EvaluationReport:
    """Measure an output.

    Args:
        output: The output of a run, or the prefix of one of its editions.
        ground_truth: URI of a COCO instances JSON; images are matched by `file_name`.
        edition: Name of the edition in `output`; None: the published one.
        max_dets: Detections that count, per image and class.
        allow_missing: Leave out images of the ground truth that the output lacks, instead of
            refusing.
        exif_labels: What becomes of images whose width and height are swapped in the ground truth.
        include_unlisted: Also measure results of images that the newest run's listing lacked.

    Raises:
        UsageError: There is nothing to measure, images or classes cannot be matched, or sizes
            differ.
    """
    results = open_results(storage, output, edition, include_unlisted=include_unlisted)
    truth = read_ground_truth(storage, ground_truth)
    match = match_images(image_rows(results), truth.images.values(), exif_labels)
    notes = match.check(results.prefix, ground_truth, allow_missing)
    for image_id, (width, height) in match.shown_size.items():
        truth.set_size(image_id, width, height)
    categories, by_id = match_categories(results.categories, truth.categories)
    if by_id:
        notes.append("Classes were matched by their ids, because they have no name in common.")
    other_classes: Counter[str] = Counter()
    with ThreadPoolExecutor(1, "detections") as reader:
        reading = reader.submit(_detections, results, match.image_ids, categories, other_classes)
        truth.require_objects(match.image_ids.values())
        detections = [reading.result()]
    remarks = truth.remarks
    has_annotations = any(truth.annotations.get(name) for name in match.image_ids.values())
    truths = [truth]
    del reading, truth
    # Both are handed over, so that their strings are gone once they are columns.
    measurement = measure(truths.pop(), match.image_ids.values(), detections.pop(), max_dets)
    scores = measurement.scores
    notes += _class_notes(scores, set(categories.values()), other_classes)
    notes += [*results.remarks(), *remarks.sentences()]
    if not has_annotations:
        notes.append("The ground truth has no annotation of these images.")
    return EvaluationReport(
        edition=results.name,
        ground_truth=normalize(ground_truth),
        images=len(match.image_ids),
        failed=match.failed,
        not_in_ground_truth=match.unknown,
        not_in_output=len(match.missing),
        other_classes=other_classes.total(),
        scores=scores,
        analysis=analyse(measurement),
        output_ids={truth_id: image_id for image_id, truth_id in match.image_ids.items()},
        notes=tuple(notes),
        edition_notes=results.edition_notes,
    )


def _class_notes(scores: Scores, known: set[Id], other_classes: Counter[str]) -> Iterator[str]:
    """Sentences about classes that one of the two sides lacks.

    Args:
        known: Categories of the ground truth that the model has.
    """
    lacking = [c.name for c in scores.per_class if c.n_ground_truth and c.category_id not in known]
    if lacking:
        yield (
            f"{plural(len(lacking), 'class', 'classes')} of the ground truth that the model lacks: "
            f"counted as undetected ({list_names(lacking)})."
        )
    if other_classes:
        names = list_names([name for name, _ in other_classes.most_common()])
        yield (
            f"Left out: {plural(other_classes.total(), 'detection')} of classes that the ground "
            f"truth does not have ({names})."
        )


def read_ground_truth(storage: Storage, uri: str) -> GroundTruth:
    """A COCO instances file with at least one image and one category.

    Raises:
        UsageError: The file is not JSON, or not in COCO's format.
    """
    return load_ground_truth(storage.read(normalize(uri), max_bytes=_MAX_GROUND_TRUTH_BYTES), uri)


def image_rows(results: Results) -> Iterator[ImageRow]:
    """The images of an edition as `match_images` takes them."""
    columns = ["image_id", "shard", "width", "height", "status"]
    for table in results.images(columns):
        for row in table.to_pylist():
            failed = row.pop("status") != "ok"
            yield ImageRow(**row, failed=failed)


def _detections(
    results: Results,
    image_ids: Mapping[str, Id],
    categories: Mapping[int, Id],
    other_classes: Counter[str],
) -> Detections:
    """Instances of matched images.

    Those of classes without ground truth are counted in `other_classes` and left out.
    """
    parts = [INSTANCES_SCHEMA.empty_table().select(_COLUMNS)]
    for table in results.instances(_COLUMNS):
        table = table.filter(_is_among(table["image_id"], image_ids))
        has_truth = _is_among(table["category_id"], categories)
        other_classes.update(table["category"].filter(pc.invert(has_truth)).to_pylist())
        parts.append(table.filter(has_truth))
    rows = pa.concat_tables(part.cast(parts[0].schema) for part in parts)
    boxes = [rows[name].to_numpy() for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")]
    return Detections(
        [image_ids[image_id] for image_id in rows["image_id"].to_pylist()],
        [categories[category_id] for category_id in rows["category_id"].to_pylist()],
        rows["score"].to_numpy().astype(np.float64),
        np.stack(boxes, axis=1).astype(np.float64),
        MaskStrings.of_text(
            *text_of(rows["counts"]), rows["height"].to_numpy(), rows["width"].to_numpy()
        ),
    )


def _is_among(column: pa.ChunkedArray, known: Container[Any]) -> pa.BooleanArray:
    """Which rows of a column with few different values have one that is known."""
    values = pc.unique(column)
    are_known = pa.array([value in known for value in values.to_pylist()], pa.bool_())
    return are_known.take(pc.index_in(column, values).combine_chunks())
