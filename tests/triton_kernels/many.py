"""Many instances through the kernels, in Triton's interpreter or on CUDA; prints JSON.

TRITON_INTERPRET=1 python -m tests.triton_kernels.many --instances 300
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time

import numpy as np
import torch

from segcore import masks
from segcore.masks.device.encode import ImageMasks, encode_images
from segcore.masks.device.triton_encode import Tiles, TritonChunk
from tests.masks.test_device import draw_scene
from tests.masks.test_from_logits import KINDS

IMAGES = 40  # encoded together
INTERPRETED_TILES = Tiles(8192, 512, 64, 8192, 4096)


def compare(instances: int, device: str, seed: int) -> dict[str, float]:
    """How many of so many instances have another string, area or place than NumPy gives."""
    rng = np.random.default_rng(seed)
    tiles = Tiles() if device == "cuda" else INTERPRETED_TILES
    total = different = 0
    started = time.process_time()
    while total < instances:
        scenes = [
            draw_scene(rng, kind, 120) for kind in itertools.islice(itertools.cycle(KINDS), IMAGES)
        ]
        images = [
            ImageMasks(torch.from_numpy(planes).to(device), None, *rest) for planes, *rest in scenes
        ]
        results = encode_images(images, start_chunk=lambda *args: TritonChunk(*args, tiles=tiles))
        for result, scene in zip(results, scenes, strict=True):
            expected = masks.encode_logits(*scene)
            found, wanted = (
                zip(r.keep.tolist(), r.areas.tolist(), r.counts, strict=True)
                for r in (result, expected)
            )
            different += sum(a != b for a, b in itertools.zip_longest(found, wanted))
            total += len(scene[0])
    return {"instances": total, "different": different, "cpu_s": time.process_time() - started}


def main() -> int:
    """Compare and print; 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=20_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = compare(options.instances, options.device, options.seed)
    print(json.dumps(figures))
    return int(figures["different"] > 0)


if __name__ == "__main__":
    sys.exit(main())
