"""Models without weights for tests of the pipeline: `tests.support.fake_models:BrightModel`.

What they find is simple, and some images make them misbehave: the first pixel of an image says how.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo, ModelOptions

# An image whose first pixel has one of these colours (RGB) makes `forward`
RAISES = (255, 0, 255)  # raise an error, until the file FAKE_MODEL_MENDED exists
HUNGRY = (0, 255, 255)  # raise what torch raises when it is out of GPU memory
DEADLY = (255, 255, 0)  # end the process
HANGS = (0, 0, 255)  # wait for ever
GREEDY = (255, 255, 255)  # allocate 3 GiB
# ... and `preprocess`
DEADLY_EARLY = (255, 128, 0)  # end the process


@dataclass(frozen=True)
class _PreparedImage:
    image: np.ndarray
    first_pixel: tuple[int, ...]


class BrightModel:
    """Finds one instance per image, the pixels over 127 in green; no instance if there are none."""

    thread_safe = True

    def __init__(self, options: ModelOptions | None = None) -> None:
        if "FAKE_MODEL_BROKEN" in os.environ:
            raise RuntimeError("the driver of the GPU is broken")
        options = options or ModelOptions()
        conf = 0.25 if options.conf is None else options.conf
        self.info = ModelInfo(
            name="bright",
            architecture="threshold",
            weights_sha256="0" * 64,
            licence="CC0-1.0",
            categories=(Category(1, "bright"),),
            parameters={"conf": conf},
        )
        self.batch_size = options.batch_size or 4
        self.batches: list[int] = []
        self._delay_s = float(os.environ.get("FAKE_MODEL_DELAY", "0"))  # per image

    def preprocess(self, image: np.ndarray) -> _PreparedImage:
        """Keep the image and its first pixel."""
        if tuple(image[0, 0]) == DEADLY_EARLY:
            os.kill(os.getpid(), signal.SIGSEGV)
        return _PreparedImage(image, tuple(int(value) for value in image[0, 0]))

    def forward(self, prepared: Sequence[_PreparedImage]) -> list[np.ndarray]:
        """Threshold, or misbehave as the first pixel says."""
        if "FAKE_MODEL_DIES" in os.environ:
            os._exit(7)
        self.batches.append(len(prepared))
        time.sleep(self._delay_s * len(prepared))
        for item in prepared:
            _misbehave(item.first_pixel)
        return [item.image[:, :, 1] > 127 for item in prepared]

    def postprocess(self, raw: list[np.ndarray], prepared: Sequence[Any]) -> list[Instances]:
        """One mask each, encoded by pycocotools."""
        return [_instances(mask) for mask in raw]


def _misbehave(first_pixel: tuple[int, ...]) -> None:
    if first_pixel == RAISES and not os.path.exists(os.environ.get("FAKE_MODEL_MENDED", "")):
        raise ValueError("cannot segment this image")
    if first_pixel == DEADLY:
        os._exit(9)
    if first_pixel == HANGS:
        threading.Event().wait()
    if first_pixel == GREEDY:
        np.ones(3 << 30, np.uint8)
    if first_pixel == HUNGRY:
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 TiB")


class DriverOnlyModel(BrightModel):
    """Can be created only where FAKE_MODEL_HOME is set: on the driver of a test that sets it."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        if "FAKE_MODEL_HOME" not in os.environ:
            raise RuntimeError("this machine has no licence for the model")


class DyingModel(BrightModel):
    """Loads, and ends the process on any image."""

    def forward(self, prepared: Sequence[_PreparedImage]) -> list[np.ndarray]:
        """End the process."""
        os._exit(7)


class StuckModel(BrightModel):
    """The same edition; each process waits for ever at its second batch."""

    def forward(self, prepared: Sequence[_PreparedImage]) -> list[np.ndarray]:
        """As `BrightModel.forward`, once."""
        if self.batches:
            threading.Event().wait()
        return super().forward(prepared)


class LoggedModel(BrightModel):
    """Writes a line for each image to FAKE_MODEL_LOG/<pid>: when, its parent, its first pixel.

    The parent of a worker is the raylet of its node. It then waits as long as there is a file
    FAKE_MODEL_HOLD.
    """

    def forward(self, prepared: Sequence[_PreparedImage]) -> list[np.ndarray]:
        """As `BrightModel.forward`."""
        raw = super().forward(prepared)
        log = Path(os.environ["FAKE_MODEL_LOG"]) / str(os.getpid())
        with log.open("a") as lines:
            for item in prepared:
                print(time.time(), os.getppid(), *item.first_pixel, file=lines)
        hold = os.environ.get("FAKE_MODEL_HOLD")
        while hold and Path(hold).exists():
            time.sleep(0.05)
        return raw


def _instances(mask: np.ndarray) -> Instances:
    height, width = mask.shape
    if not mask.any():
        return Instances.empty(height, width)
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return Instances(
        height=height,
        width=width,
        boxes=coco_mask.toBbox(rle)[None].astype(np.float32),
        scores=np.array([0.9], np.float32),
        category_ids=np.array([1], np.int32),
        areas=np.array([int(mask.sum())], np.int64),
        counts=[rle["counts"]],
    )


class BlindModel(BrightModel):
    """Another edition, which finds nothing anywhere."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.info = replace(self.info, name="blind", weights_sha256="1" * 64)

    def postprocess(self, raw: list[np.ndarray], prepared: Sequence[Any]) -> list[Instances]:
        """No instance, whatever there is."""
        return [Instances.empty(*mask.shape) for mask in raw]
