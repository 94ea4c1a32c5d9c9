"""What needs ultralytics: checkpoints as its users have them, and an error where it is missing."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np


def require_ultralytics() -> ModuleType:
    """The peer's package.

    Raises:
        SystemExit: It is not installed here.
    """
    if importlib.util.find_spec("ultralytics") is None:
        raise SystemExit(
            "This needs ultralytics, which is not installed here and which segcore never depends "
            "on. `python -m tests.parity` makes an environment with it in .venv-peers; run this "
            "there, with the repository on PYTHONPATH."
        )
    return importlib.import_module("ultralytics")


def make_checkpoint(photos: list[Path], path: Path, size: str = "n") -> None:
    """Write an official-style YOLO11-seg checkpoint with random weights and varied detections.

    Batch norms have the statistics of the photographs, as in `tests.parity`.
    """
    parity = _parity_with_yolo11()
    parity.make_checkpoint(size, [parity.read_rgb(photo) for photo in photos], path)


def encode_bitmaps(masks: np.ndarray) -> list[bytes]:
    """(N, H, W) bitmaps to RLE strings by pycocotools, as in `tests.parity`."""
    strings: list[bytes] = _parity_with_yolo11().encode(masks)
    return strings


def _parity_with_yolo11() -> ModuleType:
    require_ultralytics()
    return importlib.import_module("tests.parity.yolo11")
