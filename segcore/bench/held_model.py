"""A model that prepares images as YOLO11-seg does and then holds each batch for a stated time.

It takes the place of a GPU: what is measured is what feeds it.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo, ModelOptions
from segcore.models.yolo.letterbox import Letterbox
from segcore.models.yolo.model import PreparedImage, Preprocess

HELD_MODEL = f"{__name__}:HeldModel"
LOG_FOLDER, HOLD_MS = "SEGCORE_BENCH_FEED_LOG", "SEGCORE_BENCH_FEED_HOLD_MS"
IMGSZ = 640
_BATCH_SIZE = 32


class HeldModel:
    """Finds no instance; writes what it got, and when, to a file in the folder `LOG_FOLDER`."""

    thread_safe = True

    def __init__(self, options: ModelOptions | None = None) -> None:
        self.info = ModelInfo(
            name="held",
            architecture="held",
            weights_sha256="0" * 64,
            licence="CC0-1.0",
            categories=(Category(0, "nothing"),),
            parameters={"imgsz": IMGSZ},
        )
        self.batch_size = (options or ModelOptions()).batch_size or _BATCH_SIZE
        self.preprocess = Preprocess(IMGSZ, "rect")
        self._hold_s = float(os.environ.get(HOLD_MS, "0")) / 1e3
        self._log = Path(os.environ.get(LOG_FOLDER, os.devnull)) / str(os.getpid())

    def batch_key(self, prepared: PreparedImage) -> tuple[int, ...]:
        """Images with canvases of the same shape share batches."""
        return prepared.pixels.shape

    def forward(self, prepared: Sequence[PreparedImage]) -> list[Letterbox]:
        """Write a line about the batch, and hold it."""
        line = json.dumps([time.time(), len(prepared), sum(map(checksum, prepared))])
        with self._log.open("a") as lines:
            lines.write(line + "\n")
        time.sleep(self._hold_s)
        return [image.letterbox for image in prepared]

    def postprocess(
        self, raw: Sequence[Letterbox], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """No instances for each image."""
        return [Instances.empty(letterbox.height, letterbox.width) for letterbox in raw]


def checksum(image: PreparedImage) -> int:
    """CRC-32 of the pixels of the canvas, channels last."""
    return zlib.crc32(np.ascontiguousarray(image.pixels.transpose(1, 2, 0)).data)
