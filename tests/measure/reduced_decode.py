"""What `decode.scale: reduced` gains, and what it changes.

    python -m tests.measure.reduced_decode --data FOLDER

FOLDER holds the labelled images, `coco-sample/` and `nuclei/`. All of them are small and are
enlarged, so this says nothing about photos that are sharp at 12 megapixels.
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

N_PHOTOS = 12
WIDTHS = (1600, 4000, 4003, 6000)  # pixels; reduced by 2, 4, 4 with a remainder, 8
MIN_IOU = 0.9


def enlarged_jpeg(path: Path, width: int, quality: int, grain: float = 0) -> bytes:
    """The image enlarged to `width` as JPEG, with noise of this deviation as of a sensor."""
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


def make_preprocessors(model: Model) -> tuple[Preprocessor, Preprocessor]:
    """At full size, and reduced."""
    full, reduced = DecodeOptions(), DecodeOptions(scale="reduced")
    return Preprocessor(model.preprocess, full), Preprocessor(model.preprocess, reduced)


def segment(model: Model, preprocessor: Preprocessor, data: bytes) -> Instances:
    """Instances of an encoded image."""
    prepared = [preprocessor.preprocess(preprocessor.decode(data))]
    return model.postprocess(model.forward(prepared), prepared)[0]


def paired_ms(
    work: Callable[..., Any], preprocessors: Sequence[Preprocessor], data: bytes
) -> list[float]:
    """CPU time of the process with each preprocessor, in ms; the smallest of three turns."""
    smallest = [math.inf] * len(preprocessors)
    for _ in range(3):
        for i, preprocessor in enumerate(preprocessors):
            started = time.process_time()
            work(preprocessor, data)
            smallest[i] = min(smallest[i], 1e3 * (time.process_time() - started))
    return smallest


def compare_times(model: Model, photos: list[Path], grain: float) -> None:
    """Print times of 12 megapixels at full size and reduced: of decoding, and of all steps."""
    preprocessors = make_preprocessors(model)
    files = [enlarged_jpeg(photo, 4000, 90, grain) for photo in photos]
    segment(model, preprocessors[0], files[0])  # warm up
    size = statistics.median(map(len, files)) / 1e6
    for name, work in (
        ("decode", Preprocessor.decode),
        ("all of an image", partial(segment, model)),
    ):
        full, reduced = zip(*(paired_ms(work, preprocessors, data) for data in files), strict=True)
        ratios = [x / y for x, y in zip(full, reduced, strict=True)]
        print(
            f"12 MP, {size:.1f} MB, {name}: "
            f"{statistics.median(full):.1f} -> {statistics.median(reduced):.1f} ms, "
            f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def count_matches(a: Instances, b: Instances) -> int:
    """Pairs of instances with an IoU of at least `MIN_IOU`, each in one pair, best first."""
    if not len(a) or not len(b):
        return 0
    rles_a, rles_b = (
        [{"size": [x.height, x.width], "counts": counts} for counts in x.counts] for x in (a, b)
    )
    iou = np.asarray(coco_mask.iou(rles_a, rles_b, [0] * len(rles_b)))
    n_pairs = 0
    while iou.max() >= MIN_IOU:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row], iou[:, column] = 0, 0
        n_pairs += 1
    return n_pairs


def compare_instances(model: Model, files: list[Path], width: int) -> None:
    """Print how many instances are the same, and how many with another JPEG quality instead."""
    full, reduced = make_preprocessors(model)
    tally = np.zeros(5, int)
    for file in files:
        data, data_85 = enlarged_jpeg(file, width, 92), enlarged_jpeg(file, width, 85)
        at_full = segment(model, full, data)
        at_reduced = segment(model, reduced, data)
        at_85 = segment(model, full, data_85)
        tally += (
            len(at_full),
            *(len(at_reduced), count_matches(at_full, at_reduced)),
            *(len(at_85), count_matches(at_full, at_85)),
        )
    print(
        f"{width} px wide, {len(files)} images: full {tally[0]} instances, reduced {tally[1]}, "
        f"matched {tally[2]}; full at JPEG quality 85 instead of 92: {tally[3]}, matched {tally[4]}"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled images")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = load_model("nuclei-yolo11n", ModelOptions(device="cpu"))
    photos = sorted((data / "coco-sample" / "images").glob("*.jpg"))[:N_PHOTOS]
    for grain in (1.0, 5.0):
        compare_times(model, photos, grain)
    labelled = json.loads((data / "nuclei" / "instances_val.json").read_text())
    files = [data / "nuclei" / "images" / image["file_name"] for image in labelled["images"][::2]]
    for width in WIDTHS:
        compare_instances(model, files, width)


if __name__ == "__main__":
    main()
