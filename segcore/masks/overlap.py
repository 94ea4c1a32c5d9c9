"""How many pixels masks have in common, from their run lengths: no bitmap is made.

The strings are those of many images, one after another. Which pairs may meet follows from their
boxes; only those are looked at run by run. Where numba is installed, `numba_overlap` does that in
one pass; here, the pixels of one mask before each border of a run of the other are looked up for
all pairs together. Both give the same whole numbers, so that IoU is that of pycocotools in all its
digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcore.masks.from_logits import Backend, default_backend
from segcore.masks.measure import MaskMeasures, decode_runs, measure_masks, running_sums
from segcore.masks.rle import MAX_CANVAS

_MAX_LOOKUPS = 1 << 21  # at once: some 100 MB
_MAX_BOX_PAIRS = 1 << 19  # at once
_MIN_COMPILED_PAIRS = 256
_STRIDE = MAX_CANVAS + 1  # between the positions of two masks


@dataclass(frozen=True)
class MaskStrings:
    """N compressed RLE strings.

    Attributes:
        text: (B,) uint8, all strings one after another.
        offsets: (N + 1,) int64 where each begins, and the end of the last.
        heights, widths: (N,) int64 canvas of each, pixels.
        measures: Area and box of each, and whether it is valid.
    """

    text: np.ndarray
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    measures: MaskMeasures

    @classmethod
    def of_text(
        cls, text: np.ndarray, offsets: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> MaskStrings:
        """Measure the strings; arguments as the attributes."""
        text = np.ascontiguousarray(text)
        offsets, heights, widths = (
            np.ascontiguousarray(column, np.int64) for column in (offsets, heights, widths)
        )
        measures = measure_masks(text, offsets, heights, widths)
        return cls(text, offsets, heights, widths, measures)

    @classmethod
    def of_strings(
        cls, strings: list[bytes], heights: np.ndarray, widths: np.ndarray
    ) -> MaskStrings:
        """The same from strings."""
        offsets = np.cumsum([0, *map(len, strings)], dtype=np.int64)
        return cls.of_text(np.frombuffer(b"".join(strings), np.uint8), offsets, heights, widths)

    def __len__(self) -> int:
        return len(self.heights)

    def take(self, rows: np.ndarray) -> MaskStrings:
        """Some of the strings, in this order."""
        starts, stops = self.offsets[:-1][rows], self.offsets[1:][rows]
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        text = self.text.data
        pieces = zip(starts.tolist(), stops.tolist(), strict=True)
        measures = self.measures
        return MaskStrings(
            np.frombuffer(b"".join(text[start:stop] for start, stop in pieces), np.uint8),
            offsets,
            self.heights[rows],
            self.widths[rows],
            MaskMeasures(measures.valid[rows], measures.areas[rows], measures.boxes[rows]),
        )


def find_meeting_boxes(
    first: np.ndarray, second: np.ndarray, first_offsets: np.ndarray, second_offsets: np.ndarray
) -> np.ndarray:
    """Pairs of boxes of the same image that have a point inside both.

    Args:
        first, second: (N, 4) and (M, 4): x, y, w, h.
        first_offsets, second_offsets: (images + 1,): image i has the boxes
            [offsets[i], offsets[i + 1]) of each.

    Returns:
        (P, 2) int64 places in `first` and in `second`, sorted.
    """
    n_others = np.diff(second_offsets)
    image = np.repeat(np.arange(len(n_others)), np.diff(first_offsets))
    lengths = n_others[image]
    ends = np.cumsum(lengths)
    found = [np.zeros((0, 2), np.int64)]
    start = 0
    while start < len(lengths):
        base = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, base + _MAX_BOX_PAIRS, "right")))
        n = lengths[start:stop]
        rows = np.repeat(np.arange(start, stop), n)
        shift = second_offsets[image[start:stop]] - (np.cumsum(n) - n)
        columns = np.arange(len(rows)) + np.repeat(shift, n)
        meets = _boxes_meet(first[rows], second[columns])
        found.append(np.stack([rows[meets], columns[meets]], axis=1))
        start = stop
    return np.concatenate(found)


def _boxes_meet(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    meets = np.ones(len(first), bool)
    for axis in (0, 1):
        (low, size), (other, other_size) = (
            (boxes[:, axis], boxes[:, axis + 2]) for boxes in (first, second)
        )
        meets &= np.minimum(low + size, other + other_size) - np.maximum(low, other) > 0
    return meets


def intersect_masks(
    first: MaskStrings, second: MaskStrings, pairs: np.ndarray, backend: Backend | None = None
) -> np.ndarray:
    """Pixels that two masks have in common.

    Args:
        pairs: (P, 2) places in `first` and in `second`, of valid masks on the same canvas.
        backend: Which implementation to use; None: where numba is installed, the compiled one,
            unless there are only a few pairs.

    Returns:
        (P,) int64.
    """
    if not len(pairs):
        return np.zeros(0, np.int64)
    first, rows = _take(first, pairs[:, 0])
    second, columns = _take(second, pairs[:, 1])
    if backend is None:
        backend = default_backend() if len(pairs) >= _MIN_COMPILED_PAIRS else "numpy"
    if backend == "compiled":
        from segcore.masks import numba_overlap

        common = np.zeros(len(pairs), np.int64)
        numba_overlap.intersect(
            first.text, first.offsets, second.text, second.offsets, rows, columns, common
        )
        return common
    return _intersect(_Positions.of(first), _Positions.of(second), rows, columns)


def iou(
    first: MaskStrings,
    second: MaskStrings,
    pairs: np.ndarray,
    is_crowd: np.ndarray | None = None,
    backend: Backend | None = None,
) -> np.ndarray:
    """Intersection over union of pairs of masks; over the first mask alone for a crowd region.

    Args:
        pairs: As for `intersect_masks`.
        is_crowd: (M,) bool of `second`; None: none of them is.

    Returns:
        (P,) float64, 0 for masks without a pixel in common.
    """
    common = intersect_masks(first, second, pairs, backend)
    first_areas = first.measures.areas[pairs[:, 0]]
    union = first_areas + second.measures.areas[pairs[:, 1]] - common
    if is_crowd is not None:
        union = np.where(is_crowd[pairs[:, 1]], first_areas, union)
    return np.divide(common, union, out=np.zeros(len(pairs)), where=common > 0)


def _take(strings: MaskStrings, rows: np.ndarray) -> tuple[MaskStrings, np.ndarray]:
    """The strings from the first to the last of these rows, and the rows in them."""
    start, stop = int(rows.min()), int(rows.max()) + 1
    begin, end = strings.offsets[[start, stop]].tolist()
    measures = strings.measures
    part = MaskStrings(
        strings.text[begin:end],
        strings.offsets[start : stop + 1] - begin,
        strings.heights[start:stop],
        strings.widths[start:stop],
        MaskMeasures(
            measures.valid[start:stop], measures.areas[start:stop], measures.boxes[start:stop]
        ),
    )
    return part, np.ascontiguousarray(rows - start)


@dataclass(frozen=True)
class _Positions:
    """The runs of set pixels of N masks, each in its column-major canvas.

    Attributes:
        begins, stops: (R,) int64 half-open.
        set_before: (R,) int64 set pixels of the mask before the run.
        starts, n_runs: (N,) the first run of each mask, and how many there are.
        keys: (R,) int64 `begins` of all masks in one ascending order.
    """

    begins: np.ndarray
    stops: np.ndarray
    set_before: np.ndarray
    starts: np.ndarray
    n_runs: np.ndarray
    keys: np.ndarray

    @classmethod
    def of(cls, strings: MaskStrings) -> _Positions:
        runs = decode_runs(strings.text, strings.offsets)
        stops = running_sums(runs.zeros + runs.ones, runs.starts)
        set_before = running_sums(runs.ones.copy(), runs.starts) - runs.ones
        begins = stops - runs.ones
        keys = begins + np.repeat(np.arange(len(runs.starts)) * _STRIDE, runs.n_pairs)
        return cls(begins, stops, set_before, runs.starts, runs.n_pairs, keys)

    def count_before(self, masks: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(Q,) set pixels of each of these masks before a position."""
        run = np.searchsorted(self.keys, masks * _STRIDE + positions, side="right") - 1
        inside = np.minimum(positions, self.stops[run]) - self.begins[run]
        return np.where(run >= self.starts[masks], self.set_before[run] + inside, 0)


def _intersect(
    first: _Positions, second: _Positions, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    common = np.zeros(len(rows), np.int64)
    is_shorter = first.n_runs[rows] <= second.n_runs[columns]
    for looked_up, walked, of_looked_up, of_walked, chosen in (
        (second, first, columns, rows, np.flatnonzero(is_shorter)),
        (first, second, rows, columns, np.flatnonzero(~is_shorter)),
    ):
        ends = np.cumsum(walked.n_runs[of_walked[chosen]])
        start = 0
        while start < len(chosen):
            base = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, base + _MAX_LOOKUPS, "right")))
            pairs = chosen[start:stop]
            lengths = walked.n_runs[of_walked[pairs]]
            pair_starts = np.cumsum(lengths) - lengths
            run = np.arange(int(lengths.sum())) + np.repeat(
                walked.starts[of_walked[pairs]] - pair_starts, lengths
            )
            masks = np.repeat(of_looked_up[pairs], lengths)
            per_run = looked_up.count_before(masks, walked.stops[run])
            per_run -= looked_up.count_before(masks, walked.begins[run])
            common[pairs] = np.add.reduceat(per_run, pair_starts)
            start = stop
    return common
