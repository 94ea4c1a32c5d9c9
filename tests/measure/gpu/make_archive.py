"""JPEG files of 640x480 pixels, in tar shards and as loose files.

    python -m tests.measure.gpu.make_archive FOLDER --photos PHOTOS --shards 48 --loose 8

Each is a photograph, cropped and mirrored at random; without `--photos`, a synthetic microscopy
image. The same arguments give the same images. Shards go to FOLDER/shards, loose copies of the
first shards' images to FOLDER/loose.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from segcore.testing.synthetic import render_scene
from tests.support.archives import tar_bytes

WIDTH, HEIGHT = 640, 480
JPEG_QUALITY = 88


@dataclass(frozen=True)
class ShardJob:
    """One shard to make.

    Attributes:
        number: Of the shard; seed of its images.
        images: How many it holds.
        photos: What to make them from; synthetic images if empty.
        folder: Where `shards` and `loose` are.
        loose: Whether to write its images as loose files, too.
    """

    number: int
    images: int
    photos: tuple[Path, ...]
    folder: Path
    loose: bool


def make_shard(job: ShardJob) -> int:
    """Write one shard; the number of its images."""
    cv2.setNumThreads(1)
    rng = random.Random(job.number)
    members = []
    for i in range(job.images):
        pixels = _photo(rng, job.photos) if job.photos else _synthetic(job.number, i)
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
        members.append((f"{job.number:05d}-{i:04d}.jpg", data))
    (job.folder / "shards" / f"shard-{job.number:05d}.tar").write_bytes(tar_bytes(members))
    if job.loose:
        for name, data in members:
            (job.folder / "loose" / name).write_bytes(data)
    return len(members)


def _photo(rng: random.Random, photos: Sequence[Path]) -> np.ndarray:
    """Three quarters of a photograph's width and height, mirrored or not; BGR."""
    image = cv2.imread(str(rng.choice(photos)))
    height, width = image.shape[:2]
    top, left = rng.randrange(height // 4), rng.randrange(width // 4)
    crop = image[top : top + height * 3 // 4, left : left + width * 3 // 4]
    crop = cv2.resize(crop, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def _synthetic(seed: int, index: int) -> np.ndarray:
    """A synthetic microscopy image; grey."""
    return cv2.resize(
        render_scene(seed, index).pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )


def make_archive(
    folder: Path, photos: Path | None, n_shards: int, images_per_shard: int, n_loose_shards: int
) -> int:
    """Write the archive with all cores; the number of images in the shards."""
    for name in ("shards", "loose"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = tuple(sorted(photos.glob("*.jpg"))) if photos else ()
    if photos and not sources:
        raise SystemExit(f"no *.jpg in {photos}")
    jobs = [
        ShardJob(number, images_per_shard, sources, folder, loose=number < n_loose_shards)
        for number in range(n_shards)
    ]
    with ProcessPoolExecutor() as pool:
        return sum(pool.map(make_shard, jobs))


def main() -> None:
    """Write the archive and print how many images it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, help="folder with JPEG photographs")
    parser.add_argument("--shards", type=int, default=48)
    parser.add_argument("--images-per-shard", type=int, default=256)
    parser.add_argument("--loose", type=int, default=8, help="shards also written as loose files")
    options = parser.parse_args()
    n_images = make_archive(
        options.folder, options.photos, options.shards, options.images_per_shard, options.loose
    )
    print(f"{n_images} images in {options.folder / 'shards'}")


if __name__ == "__main__":
    main()
