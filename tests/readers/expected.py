"""What a reader must find; without segcore, for the environments of others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

Found = dict[str, list[tuple[np.ndarray, str]]]  # name -> masks and classes


class Expected:
    """The masks that were exported.

    Attributes:
        images: Name in the export -> (mask, class), by descending score.
    """

    def __init__(self, build: Path) -> None:
        document = json.loads((build / "expected.json").read_bytes())
        masks = np.load(build / "expected.npy")
        self.images: Found = {name: [] for name in document["images"]}
        for mask, entry in zip(masks, document["masks"], strict=True):
            self.images[entry["name"]].append((mask, entry["category"]))

    def compare(self, found: Found, lowest: float = 1.0) -> str:
        """A line about the agreement; AssertionError where it is not as good as it must be.

        Args:
            lowest: IoU that each mask must have.
        """
        assert found.keys() == self.images.keys(), sorted(found.keys() ^ self.images.keys())
        ious = []
        for name, wanted in self.images.items():
            assert len(found[name]) == len(wanted), (name, len(found[name]), len(wanted))
            for (mask, category), (other, other_category) in zip(found[name], wanted, strict=True):
                assert category == other_category, (name, category, other_category)
                mask = np.asarray(mask, bool)
                assert mask.shape == other.shape, (name, mask.shape)
                ious.append(float((mask & other).sum() / (mask | other).sum()))
        assert min(ious) >= lowest, f"worst IoU {min(ious):.4f}"
        equal = sum(iou == 1.0 for iou in ious)
        return f"{len(ious)} masks, {equal} equal, worst IoU {min(ious):.3f}"


def filled(mask: np.ndarray) -> np.ndarray:
    """The mask with its holes filled."""
    import cv2

    empty = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    background = cv2.connectedComponents(empty, connectivity=8)[1]
    return np.asarray((background != background[0, 0])[1:-1, 1:-1])


def run_checks(checks: dict[str, Callable[[], str]]) -> int:
    """Run each and print a line for it; returns the exit code."""
    failed = 0
    for name, check in checks.items():
        try:
            print(f"ok      {name:<44} {check()}", flush=True)
        except Exception as error:
            failed = 1
            print(f"FAILED  {name:<44} {type(error).__name__}: {str(error)[:300]}", flush=True)
    return failed


def build_folder() -> Path:
    """The folder that was named on the command line."""
    return Path(sys.argv[1])
