"""Results of a model, checked when they arrive: what is wrong would be written as it is."""

from __future__ import annotations

import numpy as np

from segcore.errors import ErrorCode, ImageError
from segcore.instances import Instances
from segcore.masks.measure import measure_masks
from segcore.models.base import Model
from segcore.worker.faults import code_failure, is_own_model


class ResultChecks:
    """Checks what a model returns for each image; no bitmap is made of any mask.

    Strings are measured only if they come from a class of the user: that takes as long as some
    models do, and our own encoders are tested to be exact.
    """

    def __init__(self, model: Model) -> None:
        ids = sorted(category.id for category in model.info.categories)
        self._category_ids = np.array(ids, np.int64)
        self._is_own_model = is_own_model(model)

    def checked(self, result: object) -> Instances | ImageError:
        """The result as it is, or an error that says what is wrong with it."""
        try:
            problem = self._find_problem(result)
        # A result of the wrong kind can raise nearly anything when it is looked at.
        except Exception as error:
            code = ErrorCode.INTERNAL_ERROR if self._is_own_model else ErrorCode.MODEL_ERROR
            problem = f"model gave something that cannot be read ({type(error).__name__}: {error})"
            return code_failure(code, error, problem[:300])
        if problem:
            return ImageError(ErrorCode.MODEL_ERROR, f"model gave {problem}"[:300])
        assert isinstance(result, Instances)
        return result

    def _find_problem(self, result: object) -> str:
        """What is wrong, as the object of "model gave"; "" if nothing is."""
        if not isinstance(result, Instances):
            return f"a {type(result).__name__} in place of Instances"
        if not all(isinstance(side, int | np.integer) for side in (result.height, result.width)):
            return "a canvas whose height and width are not whole numbers"
        n = len(result.counts)
        columns = {
            "boxes": ((n, 4), "fiu"),
            "scores": ((n,), "fiu"),
            "category_ids": ((n,), "iu"),
            "areas": ((n,), "iu"),
        }
        for name, (shape, kinds) in columns.items():
            column = getattr(result, name)
            if not isinstance(column, np.ndarray) or column.dtype.kind not in kinds:
                kind = getattr(column, "dtype", type(column).__name__)
                return f"{name} of type {kind}"
            if column.shape != shape:
                return f"{name} of shape {column.shape} for {n} masks"
        if not n:
            return ""
        problem = self._find_wrong_number(result)
        if not problem and not self._is_own_model:
            problem = _find_wrong_mask(result)
        return problem

    def _find_wrong_number(self, result: Instances) -> str:
        scores = result.scores.astype(np.float32)
        in_range = (scores >= 0) & (scores <= 1)  # NaN is not
        if not in_range.all():
            return f"a score of {scores[~in_range][0]}, outside of 0 to 1"
        boxes = result.boxes.astype(np.float32)
        if not np.isfinite(boxes).all():
            return "a box that is not finite (NaN or infinity)"
        if (boxes[:, 2:] < 0).any():
            return f"a box of {boxes[:, 2:].min():g} pixels; boxes are x, y, width, height"
        ids = result.category_ids.astype(np.int64)
        unknown = ids[~np.isin(ids, self._category_ids)]
        if unknown.size:
            return f"the category id {unknown[0]}, which is not among its categories"
        return ""


def _find_wrong_mask(result: Instances) -> str:
    """What is wrong with the strings: each must fill the canvas and have the area that is given."""
    wrong = next((c for c in result.counts if not isinstance(c, bytes)), None)
    if wrong is not None:
        return f"a mask of type {type(wrong).__name__} in place of bytes (COCO compressed RLE)"
    text = np.frombuffer(b"".join(result.counts), np.uint8)
    offsets = np.cumsum([0, *map(len, result.counts)])
    n = len(result.counts)
    height, width = np.full(n, result.height), np.full(n, result.width)
    measures = measure_masks(text, offsets, height, width)
    if not measures.valid.all():
        return (
            f"a mask (number {np.flatnonzero(~measures.valid)[0]}) that is not a COCO RLE string "
            f"for {result.width} x {result.height} pixels"
        )
    if (measures.areas != result.areas).any():
        i = np.flatnonzero(measures.areas != result.areas)[0]
        return f"an area of {result.areas[i]} for a mask of {measures.areas[i]} pixels"
    if (measures.areas == 0).any():
        return "a mask without a pixel"
    return ""
