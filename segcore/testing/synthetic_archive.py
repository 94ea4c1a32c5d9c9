"""A synthetic archive: tar shards of nuclei, some images broken on purpose, and the truth."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from segcore.errors import ErrorCode, UsageError
from segcore.storage import Storage, join
from segcore.storage.uris import basename, normalize
from segcore.testing.synthetic import Scene, render_scene

_SHARD_NAME = "nuclei-{:04d}.tar"
_SHARD_PATTERN = re.compile(r"nuclei-\d{4,}\.tar")
_BOMB_SIDE_PIXELS = 60_000  # far over any sensible limit


@dataclass(frozen=True)
class Breakage:
    """A way to break an image file, and the error code that its row must get."""

    code: ErrorCode
    suffix: str
    make: Callable[[bytes], bytes]


def _cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _overwrite_middle(data: bytes) -> bytes:
    """Put noise over a tenth of the file: the headers stay, the pixels cannot be trusted."""
    start, length = len(data) // 2, len(data) // 10
    noise = np.random.default_rng(length).bytes(length)
    return data[:start] + noise + data[start + length :]


def _claim_huge_size(data: bytes) -> bytes:
    """Make the header of a PNG claim sides of 60,000 pixels, with a correct checksum."""
    header = b"IHDR" + struct.pack(">II", _BOMB_SIDE_PIXELS, _BOMB_SIDE_PIXELS) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


BREAKAGES = (
    Breakage(ErrorCode.EMPTY, "png", lambda data: b""),
    Breakage(ErrorCode.TRUNCATED, "png", _cut_in_half),
    Breakage(ErrorCode.NOT_AN_IMAGE, "png", lambda data: b"This is not an image.\n"),
    Breakage(ErrorCode.TRUNCATED, "jpg", _cut_in_half),
    Breakage(ErrorCode.CORRUPT, "png", _overwrite_middle),
    Breakage(ErrorCode.TOO_MANY_PIXELS, "png", _claim_huge_size),
    Breakage(ErrorCode.CORRUPT, "jpg", _overwrite_middle),
)

CATEGORY = {"id": 1, "name": "nucleus"}
LICENCE = "CC0-1.0"
_JPEG_EVERY = 20  # one of so many images is a JPEG


@dataclass(frozen=True)
class SyntheticArchive:
    """What was written, and what a correct run must find in it.

    Attributes:
        shards: URI of the folder of tar shards: the input of a run.
        ground_truth: URI of the COCO instances JSON of all readable images.
        broken: File name of each broken member -> the error code of its failed row.
        n_instances: Nuclei in the ground truth.
    """

    shards: str
    ground_truth: str
    broken: dict[str, ErrorCode]
    n_shards: int
    n_images: int
    n_instances: int


def write_archive(
    storage: Storage,
    destination: str,
    n_images: int = 400,
    n_broken: int = 7,
    per_shard: int = 50,
    seed: int = 2024,
    progress: Callable[[int], None] = lambda done: None,
) -> SyntheticArchive:
    """Write ``shards/*.tar`` (WebDataset layout), ``ground_truth.json`` and ``broken.json``.

    The same arguments and library versions give the same bytes.

    Args:
        destination: Folder or prefix, local or s3://.
        n_images: All members, broken ones included.
        n_broken: Members that are broken on purpose; they are not in the ground truth.
        per_shard: Images in a shard.
        progress: Called with the number of images done, after each shard.

    Raises:
        UsageError: The numbers contradict each other.
        StorageError: The archive cannot be written.
    """
    if not (per_shard >= 1 and 0 <= n_broken <= n_images and n_images >= 1):
        raise UsageError(
            f"Cannot write {n_images} images, {n_broken} of them broken, {per_shard} per shard.",
            hint="Use at least one image, one per shard, and no more broken ones than images.",
        )
    members = _plan_members(n_images, n_broken, seed)
    truth = _GroundTruth(seed)
    destination = normalize(destination)
    shards = join(destination, "shards")
    starts = range(0, n_images, per_shard)
    current = {join(shards, _SHARD_NAME.format(number)) for number in range(len(starts))}
    for info in storage.list(shards):  # an earlier, larger archive may have left more
        if _SHARD_PATTERN.fullmatch(basename(info.uri)) and info.uri not in current:
            storage.delete(info.uri)
    for number, start in enumerate(starts):
        stop = min(start + per_shard, n_images)
        data = _make_tar(_render_members(members, range(start, stop), seed, truth))
        storage.write(join(shards, _SHARD_NAME.format(number)), data)
        progress(stop)
    broken = {name: breakage.code for name, breakage in members if breakage}
    ground_truth = join(destination, "ground_truth.json")
    storage.write(ground_truth, _encode_json(truth.document))
    storage.write(join(destination, "broken.json"), _encode_json(broken))
    return SyntheticArchive(
        shards=shards,
        ground_truth=ground_truth,
        broken=broken,
        n_shards=len(starts),
        n_images=n_images,
        n_instances=len(truth.document["annotations"]),
    )


class _GroundTruth:
    """The COCO document, filled while the shards are written."""

    def __init__(self, seed: int) -> None:
        self.document: dict[str, Any] = {
            "info": {"description": "segcore synthetic nuclei", "seed": seed},
            "licenses": [{"id": 1, "name": LICENCE, "url": ""}],
            "categories": [CATEGORY],
            "images": [],
            "annotations": [],
        }

    def add(self, index: int, file_name: str, scene: Scene) -> None:
        height, width = scene.labels.shape
        image_id = index + 1
        self.document["images"].append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width, "license": 1}
        )
        for rle in encode_labels(scene.labels):
            self.document["annotations"].append(
                {
                    "id": len(self.document["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY["id"],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                    "area": int(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )


def encode_labels(labels: np.ndarray) -> list[dict[str, Any]]:
    """(H, W) labels, 0 for background -> compressed COCO RLE of label 1, 2, ..."""
    flat = labels.T.ravel()  # COCO counts runs down the columns
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=flat.size)
    values = flat[starts]
    rles = []
    for label in range(1, int(values.max(initial=0)) + 1):
        runs = np.flatnonzero(values == label)
        edges = np.stack([starts[runs], starts[runs] + lengths[runs]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        size = [int(side) for side in labels.shape]
        rles.append(coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size))
    return rles


def _plan_members(n_images: int, n_broken: int, seed: int) -> list[tuple[str, Breakage | None]]:
    """File name of each image, and how it is broken, if it is."""
    chosen = np.random.default_rng([seed, n_images, 1]).permutation(n_images)[:n_broken]
    broken = {int(i): BREAKAGES[k % len(BREAKAGES)] for k, i in enumerate(chosen)}
    members: list[tuple[str, Breakage | None]] = []
    for index in range(n_images):
        breakage = broken.get(index)
        suffix = "jpg" if index % _JPEG_EVERY == _JPEG_EVERY - 1 else "png"
        members.append((f"nuclei-{index:06d}.{breakage.suffix if breakage else suffix}", breakage))
    return members


def _render_members(
    members: list[tuple[str, Breakage | None]], indices: range, seed: int, truth: _GroundTruth
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of some members; the readable ones are added to the ground truth."""
    for index in indices:
        name, breakage = members[index]
        scene = render_scene(seed, index)
        data = _encode_image(scene, name)
        if breakage is None:
            truth.add(index, name, scene)
        yield name, breakage.make(data) if breakage else data


def _encode_image(scene: Scene, name: str) -> bytes:
    options = (
        [cv2.IMWRITE_JPEG_QUALITY, 95] if name.endswith("jpg") else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    ok, data = cv2.imencode(name[-4:], scene.pixels, options)
    if not ok:
        raise RuntimeError(f"OpenCV could not encode {name}")
    return data.tobytes()


def _make_tar(members: Iterator[tuple[str, bytes]]) -> bytes:
    """A plain tar with nothing in it that depends on time, user or machine."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _encode_json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
