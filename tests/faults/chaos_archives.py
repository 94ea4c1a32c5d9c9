"""Small archives of every kind, some of their images broken, for jobs that are killed."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segcore.storage import Storage
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.fake_models import DEADLY, RAISES

KINDS = ("images", "tar", "parquet", "manifest")
PER_UNIT = 6


@dataclass(frozen=True)
class Archive:
    """An input whose right result is known beforehand.

    Attributes:
        images: Rows that `images` must have.
        failures: Failed images by error code.
    """

    kind: str
    uri: str
    images: int
    failures: dict[str, int]


def make_archive(
    storage: Storage, kind: str, folder: str, variant: int, deadly: bool = False
) -> Archive:
    """Write an archive below `folder`; a function of the other arguments."""
    rng = random.Random(f"{kind} {variant}")
    n = rng.randrange(60, 91)
    files = {f"{i:03d}.png": _png(rng.randrange(1 << 30)) for i in range(n)}
    broken = {
        "empty": b"",
        "not_an_image": b"no image at all",
        "truncated": _png(1)[:70],
        "model_error": _png(2, RAISES),
    }
    if deadly:
        broken["crashed"] = _png(3, DEADLY)
    failures = dict.fromkeys(broken, 1)
    for code, data in broken.items():
        files[f"{rng.randrange(n):03d}-{code}.png"] = data
    members = sorted(files.items())
    if kind == "tar":
        return _tars(storage, folder, members, failures)
    if kind == "parquet":
        return _parquet(storage, folder, members, failures)
    for name, data in members:
        storage.write(f"{folder}/{name}", data)
    if kind == "images":
        return Archive(kind, folder, len(members), failures)
    names = [name for name, _ in members] + ["030-gone.png", "zz-gone.png"]
    storage.write(f"{folder}/all.txt", "\n".join(names).encode())
    return Archive(kind, f"{folder}/all.txt", len(names), failures | {"not_found": 2})


def _tars(
    storage: Storage, folder: str, members: list[tuple[str, bytes]], failures: dict[str, int]
) -> Archive:
    for start in range(0, len(members), PER_UNIT):
        data = tar_bytes(members[start : start + PER_UNIT])
        storage.write(f"{folder}/{start:03d}.tar", data)
    return Archive("tar", folder, len(members), failures)


def _parquet(
    storage: Storage, folder: str, members: list[tuple[str, bytes]], failures: dict[str, int]
) -> Archive:
    half = len(members) // 2
    for name, some in (("a", members[:half]), ("b", members[half:])):
        columns = {"key": [key for key, _ in some], "image": [data for _, data in some]}
        storage.write(f"{folder}/{name}.parquet", parquet_bytes(columns, PER_UNIT))
    return Archive("parquet", folder, len(members), failures)


def _png(seed: int, first: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((40 + seed % 7, 56, 3), np.uint8)
    y, x = rng.integers(1, 20, 2)
    pixels[y : y + 9, x : x + 4 + seed % 11, 1] = 220
    pixels[0, 0] = first
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
