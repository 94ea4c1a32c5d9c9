"""What `decode.scale: reduced` gains, and what it changes; run by hand.

    python -m tests.measure.reduced_decode --data FOLDER

FOLDER is the labelled images, with `coco-sample/` and `nuclei/`. All of them are small: they are
enlarged, so this says nothing of photos that are sharp at 12 megapixels.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from segcore.images import DecodeOptions
from segcore.instances import Instances
from segcore.models.base import Model, ModelOptions
from segcore.models.registry import load_model
from segcore.worker.preprocessing import Preprocessor

PHOTOS = 12
WIDTHS = (1600, 4000, 4003, 6000)  # reduced by 2, 4, 4 with a rest, 8
IOU = 0.9


def jpeg(path: Path, width: int, quality: int, grain: float = 0) -> bytes:
    """The image enlarged to `width`, with as much noise as a sensor may have, as JPEG."""
    image = cv2.imread(str(path))
    height = 3000 if grain else round(image.shape[0] * width / image.shape[1])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, grain, image.shape) if grain else 0
    return bytes(
        cv2.imencode(
            ".jpg",
            np.clip(image + noise, 0, 255).astype(np.uint8),
            [cv2.IMWRITE_JPEG_QUALITY, quality],
        )[1]
    )


def preparations(model: Model) -> tuple[Preprocessor, Preprocessor]:
    """In full, and reduced."""
    full, reduced = DecodeOptions(), DecodeOptions(scale="reduced")
    return Preprocessor(model.preprocess, full), Preprocessor(model.preprocess, reduced)


def segment(model: Model, preparation: Preprocessor, data: bytes) -> Instances:
    """Bytes -> instances."""
    prepared = [preparation.preprocess(preparation.decode(data))]
    return model.postprocess(model.forward(prepared), prepared)[0]


def paired_ms(work: Callable[..., Any], sides: Sequence[Preprocessor], data: bytes) -> list[float]:
    """CPU time of the process for each side; the least of three turns."""
    least = [math.inf] * len(sides)
    for _ in range(3):
        for i, side in enumerate(sides):
            began = time.process_time()
            work(side, data)
            least[i] = min(least[i], 1e3 * (time.process_time() - began))
    return least


def times(model: Model, photos: list[Path], grain: float) -> None:
    """12 MP, in pairs: decoding, and all of an image."""
    sides = preparations(model)
    files = [jpeg(photo, 4000, 90, grain) for photo in photos]
    segment(model, sides[0], files[0])  # warm
    size = statistics.median(map(len, files)) / 1e6
    for name, work in (
        ("decode", Preprocessor.decode),
        ("all of an image", partial(segment, model)),
    ):
        full, reduced = zip(*(paired_ms(work, sides, data) for data in files), strict=True)
        ratios = [x / y for x, y in zip(full, reduced, strict=True)]
        print(
            f"12 MP, {size:.1f} MB, {name}: "
            f"{statistics.median(full):.1f} -> {statistics.median(reduced):.1f} ms, "
            f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def matches(a: Instances, b: Instances) -> int:
    """Pairs of instances with an IoU of at least `IOU`, each in one pair, best first."""
    if not len(a) or not len(b):
        return 0
    ours, theirs = (
        [{"size": [x.height, x.width], "counts": counts} for counts in x.counts] for x in (a, b)
    )
    iou = np.asarray(coco_mask.iou(ours, theirs, [0] * len(theirs)))
    found = 0
    while iou.max() >= IOU:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row], iou[:, column] = 0, 0
        found += 1
    return found


def agreement(model: Model, files: list[Path], width: int) -> None:
    """The same instances? Beside it, what another JPEG quality does in full."""
    full, reduced = preparations(model)
    tally = np.zeros(5, int)
    for file in files:
        data, other = jpeg(file, width, 92), jpeg(file, width, 85)
        a, b, c = (segment(model, *how) for how in ((full, data), (reduced, data), (full, other)))
        tally += len(a), len(b), matches(a, b), len(c), matches(a, c)
    print(
        f"{width} px wide, {len(files)} images: full {tally[0]} instances, reduced {tally[1]}, "
        f"matched {tally[2]}; full at JPEG quality 85 instead of 92: {tally[3]}, matched {tally[4]}"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = load_model("nuclei-yolo11n", ModelOptions(device="cpu"))
    photos = sorted((data / "coco-sample" / "images").glob("*.jpg"))[:PHOTOS]
    for grain in (1.0, 5.0):
        times(model, photos, grain)
    labelled = json.loads((data / "nuclei" / "instances_val.json").read_text())
    files = [data / "nuclei" / "images" / image["file_name"] for image in labelled["images"][::2]]
    for width in WIDTHS:
        agreement(model, files, width)


if __name__ == "__main__":
    main()
