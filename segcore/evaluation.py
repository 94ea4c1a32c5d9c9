"""Mask and box AP of a run's output against COCO ground truth."""

from __future__ import annotations

from segcore.average_precision import DEFAULT_MAX_DETS, Scores, mask_and_box_ap

__all__ = ["DEFAULT_MAX_DETS", "Scores", "mask_and_box_ap"]
