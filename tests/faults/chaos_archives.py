"""Small archives of every kind, some of their images broken, for jobs that are killed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from segcore.storage import Storage
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.bright_images import bright_png
from tests.support.fake_models import DEADLY, RAISES

KINDS = ("images", "tar", "parquet", "manifest")
IMAGES_PER_UNIT = 6

Members = list[tuple[str, bytes]]  # name, content


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
    n_good = rng.randrange(60, 91)
    files = {f"{i:03d}.png": bright_png(rng.randrange(1 << 30)) for i in range(n_good)}
    broken = {
        "empty": b"",
        "not_an_image": b"no image at all",
        "truncated": bright_png(1)[:70],
        "model_error": bright_png(2, RAISES),
    }
    if deadly:
        broken["crashed"] = bright_png(3, DEADLY)
    failures = dict.fromkeys(broken, 1)
    for code, data in broken.items():
        files[f"{rng.randrange(n_good):03d}-{code}.png"] = data
    members = sorted(files.items())
    if kind == "tar":
        _write_tars(storage, folder, members)
    elif kind == "parquet":
        _write_parquet(storage, folder, members)
    else:
        for name, data in members:
            storage.write(f"{folder}/{name}", data)
    if kind != "manifest":
        return Archive(kind, folder, len(members), failures)
    names = [name for name, _ in members] + ["030-gone.png", "zz-gone.png"]
    storage.write(f"{folder}/all.txt", "\n".join(names).encode())
    return Archive(kind, f"{folder}/all.txt", len(names), failures | {"not_found": 2})


def _write_tars(storage: Storage, folder: str, members: Members) -> None:
    """One shard for each unit."""
    for start in range(0, len(members), IMAGES_PER_UNIT):
        data = tar_bytes(members[start : start + IMAGES_PER_UNIT])
        storage.write(f"{folder}/{start:03d}.tar", data)


def _write_parquet(storage: Storage, folder: str, members: Members) -> None:
    """Two shards with a row group for each unit."""
    half = len(members) // 2
    for name, rows in (("a", members[:half]), ("b", members[half:])):
        columns = {"key": [key for key, _ in rows], "image": [data for _, data in rows]}
        storage.write(f"{folder}/{name}.parquet", parquet_bytes(columns, IMAGES_PER_UNIT))
