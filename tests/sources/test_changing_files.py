"""Files that change after they were listed: their unit is left undone, or they are failed rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from segcore.errors import ObjectChanged, ObjectNotFound
from segcore.sources import SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, StorageOptions
from segcore.storage.local_disk import SpecialFile
from tests.support.archives import image_bytes, parquet_bytes, tar_bytes

storage = Storage(StorageOptions(retries=0))


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(5000))


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _rewrite(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[::-1])
    os.utime(path, ns=(1, 1))


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _become_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "grows": _grow,
    "shrinks": _shrink,
    "is emptied": lambda path: os.truncate(path, 0),
    "is rewritten": _rewrite,
    "vanishes": Path.unlink,
    "becomes a folder": _become_folder,
    "becomes a pipe": _become_pipe,
    "becomes a device": _become_device,
    "becomes a loop of links": _loop,
}


def _write_archive(folder: Path, kind: str) -> Path:
    """An archive of four images; returns the file that changes."""
    images = {f"{i}.png": image_bytes(i) for i in range(4)}
    if kind == "images":
        for name, data in images.items():
            (folder / name).write_bytes(data)
        return folder / "2.png"
    path = folder / f"a.{kind}"
    if kind == "tar":
        path.write_bytes(tar_bytes(list(images.items())))
    else:
        columns = {"key": list(images), "image": list(images.values())}
        path.write_bytes(parquet_bytes(columns, rows_per_group=1))
    return path


@pytest.mark.timeout(60)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["images", "tar", "parquet"])
@pytest.mark.parametrize("n_read", [None, 1], ids=["before", "while"])
def test_what_changes_is_never_taken_for_what_was_planned(
    tmp_path: Path, kind: str, change: str, n_read: int | None
) -> None:
    """`n_read`: images of the unit that are read before the change; None: before reading begins."""
    path = _write_archive(tmp_path, kind)
    right = [image_bytes(i) for i in range(4)]
    (unit,) = open_source(str(tmp_path), SourceOptions(), storage).units(UnitLimits())
    message = ""
    try:
        if n_read is None:
            CHANGES[change](path)
        samples = []
        for sample in read_unit(unit, storage, SourceOptions()):
            samples.append(sample)
            if len(samples) == n_read:
                CHANGES[change](path)
    except (ObjectChanged, ObjectNotFound, SpecialFile) as error:
        message = error.message
    finally:
        if path.is_dir():
            shutil.rmtree(path)
    if message:
        assert path.name in message
        return
    # What was read is what was planned; what is not is a failed row with a reason.
    assert len(samples) >= 4 or (kind != "images" and samples[-1].error)
    for i, sample in enumerate(samples):
        assert sample.error if sample.data is None else sample.data == right[i], (i, sample)
