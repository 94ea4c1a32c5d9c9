"""What metrics cost of a CPU job: CPU seconds of recording, by those of the images.

    python -m tests.measure.metrics

Without Ray: each stage of an image is recorded as a worker does, many times, and compared with the
CPU seconds that the bundled model takes for an image of 640 x 480.
"""

from __future__ import annotations

import os
import time

import numpy as np

from segcore.models.base import ModelOptions
from segcore.models.registry import load_model
from segcore.worker.measures import Measures

N_IMAGES, N_RECORDED = 20, 20_000


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def recording_seconds() -> float:
    """CPU seconds of all that is recorded for one image, at a batch of one: the most it can be."""
    measures = Measures()
    began = _cpu_seconds()
    for _ in range(N_RECORDED):
        for stage in ("read", "decode", "network", "masks"):
            with measures.stage(stage):
                pass
        for queue in ("window", "memory", "images", "model"):
            with measures.wait(queue):
                pass
        with measures.in_model(1, 1):
            pass
    measures.take()
    return (_cpu_seconds() - began) / N_RECORDED


def image_seconds() -> float:
    """CPU seconds of the model for one image; reading, decoding and writing come on top."""
    model = load_model("nuclei-yolo11n", ModelOptions(device="cpu"))
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    batch = [model.preprocess(image)] * model.batch_size
    model.postprocess(model.forward(batch), batch)
    began, count = _cpu_seconds(), 0
    while count < N_IMAGES:
        model.postprocess(model.forward(batch), batch)
        count += len(batch)
    return (_cpu_seconds() - began) / count


def main() -> None:
    """Print both, and the share."""
    began = time.monotonic()
    recording, image = recording_seconds(), image_seconds()
    print(f"recording: {recording * 1e6:.1f} us of CPU for each image")
    print(f"model:     {image * 1e3:.1f} ms of CPU for each image")
    print(f"share:     {recording / image:.3%}   ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
