"""The images to measure with: tar shards on local disk, of synthetic or of given images."""

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
from segcore.testing.synthetic import render_scene

NAMED_SIZES = {"vga": (640, 480), "1080p": (1920, 1080), "12mp": (4000, 3000)}
_MAX_SIDE_PIXELS = 16_384
_N_DISTINCT = 16  # images that are rendered for each size; the others repeat them
_JPEG_QUALITY = 90
_SEED = 2024


@dataclass(frozen=True)
class BenchArchive:
    """A folder of tar shards on local disk; each shard is one unit.

    Attributes:
        folder: The folder, the input of a job.
        label: For people: the size of the images, or where they came from.
        images: Number of images.
        bytes: Sum of their encoded sizes.
        read_ms: Milliseconds to read one image from the archive it was copied from; None for
            synthetic images.
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
    if not all(32 <= side <= _MAX_SIDE_PIXELS for side in sides):
        raise UsageError(
            f"--size {text}: expected WIDTHxHEIGHT of 32 to {_MAX_SIDE_PIXELS} pixels each, "
            f"or one of {', '.join(NAMED_SIZES)}."
        )
    return sides


def write_synthetic(
    storage: Storage, folder: str, size: tuple[int, int], images: int, per_shard: int
) -> BenchArchive:
    """Write shards of JPEGs of fluorescent nuclei: rendered scenes, enlarged to `size`.

    Args:
        size: (width, height) in pixels.
        per_shard: Images in each shard.
    """
    width, height = size
    files = [_render_jpeg(index, width, height) for index in range(min(images, _N_DISTINCT))]
    members = [(f"{i:06d}.jpg", files[i % len(files)]) for i in range(images)]
    return _write_shards(storage, folder, f"{width}x{height}", members, per_shard)


def copy_images(
    storage: Storage, folder: str, uri: str, options: SourceOptions, images: int, per_shard: int
) -> BenchArchive:
    """Copy the first readable images of an archive into shards on local disk.

    The archive is only read.

    Raises:
        UsageError: The archive holds no image that can be read.
    """
    plan = make_plan(open_source(uri, options, storage), UnitLimits(images=per_shard))
    samples = (s for unit in plan.units for s in read_unit(unit, storage, options))
    start = time.perf_counter()
    readable = [sample for sample in itertools.islice(samples, images) if sample.data]
    seconds = time.perf_counter() - start
    if not readable:
        raise UsageError(f"{uri} holds no image that can be read.")
    members = [(f"{i:06d}.{_extension(s)}", s.data or b"") for i, s in enumerate(readable)]
    return _write_shards(storage, folder, uri, members, per_shard, 1e3 * seconds / len(readable))


def plan_archive(archive: BenchArchive, storage: Storage) -> Plan:
    """The units of this archive, one for each shard."""
    return make_plan(open_source(archive.folder, SourceOptions(), storage), UnitLimits())


def _render_jpeg(index: int, width: int, height: int) -> bytes:
    pixels = render_scene(_SEED, index).pixels
    if width / height > pixels.shape[1] / pixels.shape[0]:  # wide: two scenes side by side
        pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    enlarged = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    rgb = np.repeat(enlarged[:, :, None], 3, axis=2)
    ok, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a JPEG of {width}x{height}")
    return data.tobytes()


def _extension(sample: Sample) -> str:
    suffix = sample.image_id.rpartition(".")[2].lower()
    return suffix if suffix in ("jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp") else "jpg"


def _write_shards(
    storage: Storage,
    folder: str,
    label: str,
    members: Sequence[tuple[str, bytes]],
    per_shard: int,
    read_ms: float | None = None,
) -> BenchArchive:
    for number, start in enumerate(range(0, len(members), per_shard)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members[start : start + per_shard]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        storage.write(join(folder, f"shard-{number:05d}.tar"), buffer.getvalue())
    total_bytes = sum(len(data) for _, data in members)
    return BenchArchive(folder, label, len(members), total_bytes, read_ms)
