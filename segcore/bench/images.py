"""What is measured: tar shards on local disk, of synthetic or of given images."""

from __future__ import annotations

import io
import itertools
import re
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segcore.errors import UsageError
from segcore.planning.plan import Plan, make_plan
from segcore.sources import Sample, SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, join
from segcore.testing.synthetic import render

NAMED_SIZES = {"vga": (640, 480), "1080p": (1920, 1080), "12mp": (4000, 3000)}
_MAX_SIDE = 16_384
_DISTINCT = 16  # rendered images of each size; the rest repeats them
_QUALITY = 90  # of their JPEGs
_SEED = 2024


@dataclass(frozen=True)
class Shards:
    """A folder of tars, `per_shard` images in each; every tar is one unit.

    Attributes:
        read_ms: Milliseconds an image took to be read from where it was; None for images made here.
    """

    folder: str
    label: str
    images: int
    bytes: int
    read_ms: float | None = None


def parse_size(text: str) -> tuple[int, int]:
    """``1920x1080`` or a name -> (width, height).

    Raises:
        UsageError: It is neither.
    """
    if text.lower() in NAMED_SIZES:
        return NAMED_SIZES[text.lower()]
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(32 <= side <= _MAX_SIDE for side in sides):
        raise UsageError(
            f"--size {text}: expected WIDTHxHEIGHT of 32 to {_MAX_SIDE} pixels each, "
            f"or one of {', '.join(NAMED_SIZES)}."
        )
    return sides


def synthetic(
    storage: Storage, folder: str, size: tuple[int, int], images: int, per_shard: int
) -> Shards:
    """JPEGs of fluorescent nuclei: rendered scenes side by side, enlarged to `size`."""
    width, height = size
    files = [_scene(index, width, height) for index in range(min(images, _DISTINCT))]
    members = [(f"{i:06d}.jpg", files[i % len(files)]) for i in range(images)]
    return _write(storage, folder, f"{width}x{height}", members, per_shard)


def copied(
    storage: Storage, folder: str, uri: str, options: SourceOptions, images: int, per_shard: int
) -> Shards:
    """The first readable images of an archive, repacked on local disk; the archive is only read.

    Raises:
        UsageError: The archive holds no image that can be read.
    """
    plan = make_plan(open_source(uri, options, storage), UnitLimits(images=per_shard))
    samples = (s for unit in plan.units for s in read_unit(unit, storage, options))
    found: list[Sample] = []
    began = time.perf_counter()
    for sample in itertools.islice(samples, images):
        if sample.data:
            found.append(sample)
    took = time.perf_counter() - began
    if not found:
        raise UsageError(f"{uri} holds no image that can be read.")
    members = [(f"{i:06d}.{_extension(s)}", s.data or b"") for i, s in enumerate(found)]
    return _write(storage, folder, uri, members, per_shard, 1e3 * took / len(found))


def plan_shards(shards: Shards, storage: Storage) -> Plan:
    """Units of these shards."""
    return make_plan(open_source(shards.folder, SourceOptions(), storage), UnitLimits())


def _scene(index: int, width: int, height: int) -> bytes:
    pixels = render(_SEED, index).pixels
    if width / height > pixels.shape[1] / pixels.shape[0]:  # wide: two beside each other
        pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    enlarged = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    rgb = np.repeat(enlarged[:, :, None], 3, axis=2)
    ok, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a JPEG of {width}x{height}")
    return data.tobytes()


def _extension(sample: Sample) -> str:
    suffix = sample.image_id.rpartition(".")[2].lower()
    return suffix if suffix in ("jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp") else "jpg"


def _write(
    storage: Storage,
    folder: str,
    label: str,
    members: Sequence[tuple[str, bytes]],
    per_shard: int,
    read_ms: float | None = None,
) -> Shards:
    for number, start in enumerate(range(0, len(members), per_shard)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members[start : start + per_shard]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        storage.write(join(folder, f"shard-{number:05d}.tar"), buffer.getvalue())
    total = sum(len(data) for _, data in members)
    return Shards(folder, label, len(members), total, read_ms)
