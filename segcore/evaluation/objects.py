"""The objects of some images as columns: known ones, and detections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from segcore.errors import UsageError
from segcore.evaluation.ground_truth import GroundTruth, Id, id_order
from segcore.masks.overlap import MaskStrings


@dataclass(frozen=True)
class Objects:
    """N objects, ordered by their images.

    Attributes:
        images: (N,) int64 number of the image, ascending.
        categories: (N,) int64 number of the category.
        masks: Valid ones.
        boxes: (N, 4) float64 x, y, w, h.
        areas: (N,) float64 of the annotation; of detections, pixels of the mask.
        scores: (N,) float64; NaN for known objects.
        is_crowd: (N,) bool.
    """

    images: np.ndarray
    categories: np.ndarray
    masks: MaskStrings
    boxes: np.ndarray
    areas: np.ndarray
    scores: np.ndarray
    is_crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def number_images(truth: GroundTruth, image_ids: Iterable[Id]) -> dict[Id, int]:
    """Ids of any kind -> whole numbers from 0, in the order of the ids.

    Raises:
        UsageError: An image is not in the ground truth.
    """
    selected = list(dict.fromkeys(image_ids))
    missing = [image_id for image_id in selected if image_id not in truth.images]
    if missing:
        raise UsageError(f"image id {missing[0]} is not in the ground truth")
    return {image_id: n for n, image_id in enumerate(sorted(selected, key=id_order))}


def truth_objects(
    truth: GroundTruth, images: Mapping[Id, int], categories: Mapping[Id, int]
) -> Objects:
    """The objects of these images that can be used.

    Args:
        images, categories: id -> number.
    """
    truth.measure(images)
    items = [(number, item) for image, number in images.items() for item in truth.objects(image)]
    canvases = np.array([item.rle["size"] for _, item in items], np.int64).reshape(-1, 2)
    strings = [item.rle["counts"] for _, item in items]
    return Objects(
        np.array([number for number, _ in items], np.int64),
        np.array([categories[item.category_id] for _, item in items], np.int64),
        MaskStrings.of_strings(strings, canvases[:, 0], canvases[:, 1]),
        np.array([item.bbox for _, item in items], np.float64).reshape(-1, 4),
        np.array([item.area for _, item in items], np.float64),
        np.full(len(items), np.nan),
        np.array([item.is_crowd for _, item in items], bool),
    )


@dataclass(frozen=True)
class Detections:
    """N detections, in any order of their images.

    Attributes:
        image_ids, category_ids: Of the ground truth.
        scores: (N,).
        boxes: (N, 4) x, y, w, h.
        masks: Valid ones, or not.
    """

    image_ids: Sequence[Id]
    category_ids: Sequence[Id]
    scores: np.ndarray
    boxes: np.ndarray
    masks: MaskStrings

    @classmethod
    def of_dicts(cls, detections: Iterable[Mapping[str, Any]]) -> Detections:
        """COCO results: image_id, category_id, score, segmentation (RLE) and bbox."""
        rows = list(detections)
        masks = [row["segmentation"] for row in rows]
        sizes = np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2)
        strings = [mask["counts"] for mask in masks]
        return cls(
            [row["image_id"] for row in rows],
            [row["category_id"] for row in rows],
            np.array([float(row["score"]) for row in rows], np.float64),
            np.array([[float(v) for v in row["bbox"]] for row in rows]).reshape(-1, 4),
            MaskStrings.of_strings(
                [s.encode() if isinstance(s, str) else bytes(s) for s in strings],
                sizes[:, 0],
                sizes[:, 1],
            ),
        )


def detected_objects(
    detections: Detections,
    truth: GroundTruth,
    images: Mapping[Id, int],
    categories: Mapping[Id, int],
) -> Objects:
    """The detections on these images.

    Raises:
        UsageError: An image or category is not in the ground truth, or a mask has another canvas
            than its image or cannot be read.
    """
    unknown = set(detections.image_ids) - truth.images.keys()
    if unknown:
        raise UsageError(
            f"a detection has image id {min(unknown, key=id_order)}, which is not in the ground "
            "truth"
        )
    foreign = set(detections.category_ids) - categories.keys()
    if foreign:
        raise UsageError(
            f"a detection has category id {min(foreign, key=id_order)}, which is not in the "
            "ground truth"
        )
    numbers = np.array([images.get(image_id, -1) for image_id in detections.image_ids], np.int64)
    rows = np.argsort(numbers, kind="stable")
    rows = rows[int((numbers < 0).sum()) :]
    numbers = numbers[rows]
    ids = list(images)
    masks = detections.masks.take(rows)
    _check_canvases(truth, ids, numbers, masks)
    if not masks.measures.valid.all():
        row = int(np.flatnonzero(~masks.measures.valid)[0])
        raise UsageError(
            f"a mask of image id {ids[numbers[row]]} cannot be read.",
            "`segcore verify` says which masks are damaged.",
        )
    category_ids = [detections.category_ids[row] for row in rows.tolist()]
    return Objects(
        numbers,
        np.array([categories[category_id] for category_id in category_ids], np.int64),
        masks,
        np.asarray(detections.boxes, np.float64)[rows],
        masks.measures.areas.astype(np.float64),
        np.asarray(detections.scores, np.float64)[rows],
        np.zeros(len(rows), bool),
    )


def _check_canvases(
    truth: GroundTruth, ids: list[Id], numbers: np.ndarray, masks: MaskStrings
) -> None:
    canvases = np.array([truth.canvas(image_id) for image_id in ids], np.int64).reshape(-1, 2)
    actual = np.stack([masks.heights, masks.widths], axis=1)
    wrong = np.flatnonzero((canvases[numbers] != actual).any(axis=1))
    if wrong.size:
        row = int(wrong[0])
        raise UsageError(
            f"a mask of image id {ids[numbers[row]]} is {tuple(actual[row].tolist())} (height, "
            f"width), but the ground truth says {tuple(canvases[numbers[row]].tolist())}"
        )


def text_of(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) uint8 the strings of a column one after another, and (N + 1,) int64 their offsets."""
    array = column.cast(pa.large_string()).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    text = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return text[ends[0] : ends[-1]], ends - ends[0]
