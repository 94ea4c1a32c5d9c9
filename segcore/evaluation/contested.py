"""COCO's matching of detections that compete for objects, one after another.

Written so that numba compiles it as it is; see `segcore.evaluation.numba_matching`.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def match_contested(
    rows: Any,
    truths: Any,
    ious: Any,
    is_crowd: Any,
    is_ignored: Any,
    limits: Any,
    matches: Any,
) -> None:
    """Match detections by the rule of `segcore.evaluation.coco_matching`.

    Args:
        rows: (P,) int64 places of detections in the last axis of `matches`, ascending.
        truths: (P,) int64 objects, ascending for each detection.
        ious: (P,) float64.
        is_crowd, is_ignored, limits: See `match_detections` there; limits are (T,) float64.
        matches: (A, T, D) int64, written to.
    """
    n_ranges, n_truths = is_ignored.shape
    for a in range(n_ranges):
        for t in range(limits.size):
            is_taken = np.zeros(n_truths, np.bool_)
            start = 0
            while start < rows.size:
                row = rows[start]
                best, best_ignored = -1, -1
                iou, iou_ignored = limits[t], limits[t]
                stop = start
                while stop < rows.size and rows[stop] == row:
                    g = truths[stop]
                    if not is_taken[g] or is_crowd[g]:
                        if is_ignored[a, g]:
                            if ious[stop] >= iou_ignored:
                                best_ignored, iou_ignored = g, ious[stop]
                        elif ious[stop] >= iou:
                            best, iou = g, ious[stop]
                    stop += 1
                if best < 0:
                    best = best_ignored
                if best >= 0:
                    matches[a, t, row] = best
                    is_taken[best] = True
                start = stop
