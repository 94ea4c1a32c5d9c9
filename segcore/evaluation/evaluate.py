"""Mask and box AP of a run's output against COCO ground truth."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import UsageError
from segcore.evaluation.average_precision import DEFAULT_MAX_DETS, Scores, mask_and_box_ap
from segcore.output.results import Results, open_results
from segcore.storage import Storage, normalize

__all__ = ["DEFAULT_MAX_DETS", "EvaluationReport", "Scores", "evaluate", "mask_and_box_ap"]

_MAX_BYTES = 8 << 30  # of a ground-truth file
_SHOWN = 5  # names listed in an error


@dataclass(frozen=True)
class EvaluationReport:
    """Scores and what they were measured on.

    Attributes:
        images: Images of the ground truth that were measured.
        failed: Of these, images that failed in the run; they count as without detections.
        not_in_ground_truth: Images of the output that the ground truth does not know.
        not_in_output: Images of the ground truth that the output lacks; left out on request.
        other_classes: Detections of classes that the ground truth does not have; left out.
        notes: Sentences for people about the above.
    """

    edition: str
    ground_truth: str
    images: int
    failed: int
    not_in_ground_truth: int
    not_in_output: int
    other_classes: int
    scores: Scores
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; numbers without ground truth are None."""
        return asdict(self) | {"scores": self.scores.to_dict(), "notes": list(self.notes)}


def evaluate(
    storage: Storage,
    output: str,
    ground_truth: str,
    edition: str | None = None,
    max_dets: int = DEFAULT_MAX_DETS,
    allow_missing: bool = False,
) -> EvaluationReport:
    """Measure an output.

    Args:
        output: What a run was given as output, or the prefix of one of its editions.
        ground_truth: URI of a COCO instances JSON; images are matched by `file_name`.
        max_dets: Detections that count, per image and class.
        allow_missing: Leave out images of the ground truth that the output lacks, instead of
            refusing.

    Raises:
        UsageError: Nothing to measure, images or classes cannot be matched, or sizes differ.
    """
    results = open_results(storage, output, edition)
    truth = read_ground_truth(storage, ground_truth)
    match = match_images(_image_rows(results), truth["images"])
    notes = match.check(results.prefix, ground_truth, allow_missing)
    categories, by_id = match_categories(_model_categories(results), truth["categories"])
    if by_id:
        notes.append("Classes were matched by their ids, because no name is in both.")
    other: Counter[str] = Counter()
    detections = _detections(results, match.image_ids, categories, other)
    scores = mask_and_box_ap(truth, match.image_ids.values(), detections, max_dets)
    if other:
        most = ", ".join(name for name, _ in other.most_common(_SHOWN))
        notes.append(
            f"{sum(other.values()):,} detections are of classes that the ground truth does not "
            f"have ({most}); they are left out."
        )
    return EvaluationReport(
        edition=results.name,
        ground_truth=normalize(ground_truth),
        images=len(match.image_ids),
        failed=match.failed,
        not_in_ground_truth=match.unknown,
        not_in_output=len(match.missing),
        other_classes=sum(other.values()),
        scores=scores,
        notes=tuple(notes),
    )


def read_ground_truth(storage: Storage, uri: str) -> dict[str, Any]:
    """A COCO instances document with at least one image and one category.

    Raises:
        UsageError: Not JSON, or not in COCO's format.
    """
    try:
        document = json.loads(storage.read(normalize(uri), max_bytes=_MAX_BYTES))
    except ValueError as error:
        raise UsageError(f"{uri} is not JSON: {error}") from None
    keys = {
        "images": {"id", "file_name", "width", "height"},
        "annotations": {"image_id", "category_id", "segmentation"},
        "categories": {"id", "name"},
    }
    for key, fields in keys.items():
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise UsageError(
                f"{uri} is no COCO ground truth: it has no list `{key}`.",
                "Expected a COCO instances file with images, annotations and categories.",
            )
        for number, row in enumerate(rows):
            lacking = fields - set(row) if isinstance(row, dict) else fields
            if lacking:
                raise UsageError(f"{uri}: {key}[{number}] has no `{sorted(lacking)[0]}`.")
    if not document["images"] or not document["categories"]:
        raise UsageError(f"{uri} has no images or no categories: there is nothing to measure.")
    return document


@dataclass(frozen=True)
class ImageRow:
    """What is needed of a row of the `images` table; sizes are None for failed images."""

    image_id: str
    shard: str
    width: int | None
    height: int | None
    failed: bool

    @property
    def path(self) -> str:
        """The key inside the shard, or the whole URI of a loose image."""
        return self.image_id.removeprefix(f"{self.shard}#") if self.shard else self.image_id


@dataclass
class ImageMatch:
    """Output images against ground truth images.

    Attributes:
        image_ids: image_id of the output -> id in the ground truth.
        failed: Matched images that failed.
        unknown: Output images without a counterpart.
        missing: File names of the ground truth without a counterpart.
        ambiguous: File names of the ground truth that several output images could be, and keys
            of output images that several file names could be.
        other_size: Sentences about matched images of another size.
    """

    image_ids: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    unknown: int = 0
    missing: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)

    def check(self, output: str, ground_truth: str, allow_missing: bool) -> list[str]:
        """Refuse what would make the numbers wrong; sentences about the rest."""
        if self.ambiguous:
            raise UsageError(
                f"{len(self.ambiguous):,} images cannot be told apart by file_name between "
                f"{output} and {ground_truth}: {_some(self.ambiguous)}.",
                "Give file_name in the ground truth enough folders to be unique.",
            )
        if self.other_size:
            raise UsageError(
                f"{len(self.other_size):,} images have another size than the ground truth says: "
                f"{self.other_size[0]}.",
                "Sizes are those after EXIF orientation; is this the ground truth of this archive?",
            )
        if self.missing and not (allow_missing and self.image_ids):
            raise UsageError(
                f"{len(self.missing):,} images of {ground_truth} are not in {output}: "
                f"{_some(self.missing)}.",
                "Finish the run first, or leave these images out with --allow-missing.",
            )
        left_out = "left out of the numbers"
        facts = (
            (len(self.missing), f"of the ground truth not in the output: {left_out}"),
            (self.failed, "failed in the run: counted as undetected"),
            (self.unknown, f"of the output not in the ground truth: {left_out}"),
        )
        return [f"{count:,} image{'s' * (count > 1)} {what}." for count, what in facts if count]


def match_images(rows: Iterator[ImageRow], images: Sequence[Mapping[str, Any]]) -> ImageMatch:
    """Match by `file_name`: equal to the key or path, or one ends with the other at a slash.

    A key without an extension (as some archives have) is matched to the file name without its
    own. An exact match goes before a partial one.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for image in images:
        name = _parts(str(image["file_name"]))[-1]
        for key in {name, name.rpartition(".")[0] or name}:
            by_name[key].append(image)
    found: dict[int, list[ImageRow]] = defaultdict(list)
    match = ImageMatch()
    for row in rows:
        candidates = _candidates(row.path, by_name)
        if len(candidates) == 1:
            found[int(candidates[0]["id"])].append(row)
        elif candidates:
            match.ambiguous.append(row.path)
        else:
            match.unknown += 1
    for image in images:
        of_image = found.get(int(image["id"]), [])
        if len(of_image) == 1:
            _accept(match, image, of_image[0])
        elif of_image:
            match.ambiguous.append(str(image["file_name"]))
        else:
            match.missing.append(str(image["file_name"]))
    return match


def _accept(match: ImageMatch, image: Mapping[str, Any], row: ImageRow) -> None:
    match.image_ids[row.image_id] = int(image["id"])
    match.failed += row.failed
    expected = (int(image["width"]), int(image["height"]))
    if not row.failed and (row.width, row.height) != expected:
        match.other_size.append(
            f"{row.path} is {row.width} x {row.height} pixels, "
            f"not {expected[0]} x {expected[1]} (width x height)"
        )


def _candidates(
    path: str, by_name: Mapping[str, list[Mapping[str, Any]]]
) -> list[Mapping[str, Any]]:
    parts = _parts(path)
    found = []
    for image in by_name.get(parts[-1], []):
        name = _parts(str(image["file_name"]))
        if name[-1] != parts[-1]:
            name[-1] = parts[-1]  # the same but for the extension
        common = min(len(name), len(parts))
        if name[-common:] == parts[-common:]:
            found.append((name == parts, image))
    exact = [image for is_exact, image in found if is_exact]
    return exact or [image for _, image in found]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")] or [path]


def match_categories(
    of_model: Mapping[int, str], categories: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, int], bool]:
    """Category id of the model -> id in the ground truth, by name; by id if no name is in both.

    Returns:
        The map, and whether it is by id.

    Raises:
        UsageError: Neither names nor ids fit.
    """
    ids = {str(c["name"]).strip().casefold(): int(c["id"]) for c in categories}
    by_name = {
        id_: ids[name.strip().casefold()]
        for id_, name in of_model.items()
        if name.strip().casefold() in ids
    }
    if by_name:
        return by_name, False
    if set(of_model) == set(ids.values()):
        return {id_: id_ for id_ in of_model}, True
    raise UsageError(
        f"No class of the model ({_some(sorted(of_model.values()))}) is a class of the ground "
        f"truth ({_some(sorted(str(c['name']) for c in categories))}).",
        "Rename the categories of the ground truth to the names of the model.",
    )


def _image_rows(results: Results) -> Iterator[ImageRow]:
    columns = ["image_id", "shard", "width", "height", "status"]
    for table in results.images(columns):
        for row in table.to_pylist():
            failed = row.pop("status") != "ok"
            yield ImageRow(**row, failed=failed)


def _model_categories(results: Results) -> dict[int, str]:
    model = results.edition.get("model", {})
    return {int(c["id"]): str(c["name"]) for c in model.get("categories", [])}


def _detections(
    results: Results,
    image_ids: Mapping[str, int],
    categories: Mapping[int, int],
    other: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Instances of matched images; counts in `other` those of classes without ground truth."""
    wanted = pa.array(list(image_ids), pa.string())
    for table in results.instances():
        table = table.filter(pc.is_in(table["image_id"], value_set=wanted))
        for row in table.to_pylist():
            if row["category_id"] not in categories:
                other[row["category"]] += 1
                continue
            yield {
                "image_id": image_ids[row["image_id"]],
                "category_id": categories[row["category_id"]],
                "score": row["score"],
                "segmentation": {
                    "size": [row["height"], row["width"]],
                    "counts": row["counts"],
                },
                "bbox": [row["bbox_x"], row["bbox_y"], row["bbox_w"], row["bbox_h"]],
            }


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
