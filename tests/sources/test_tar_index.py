"""Indexes of large tars: the same units as without, kept by version, never trusted blindly."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.sources import SourceOptions, open_source
from segcore.sources import tar as tar_source
from segcore.sources.tar import TarSource
from segcore.sources.tar_index import (
    IndexTask,
    build_index,
    decode_index,
    encode_index,
    keep_index,
    read_index,
)
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage
from tests.support.archives import tar_bytes

LIMITS = UnitLimits(images=3, bytes=4000)


@pytest.fixture(autouse=True)
def all_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_source, "MIN_KEPT_BYTES", 0)


def _inner() -> bytes:
    return tar_bytes([(f"{i}.png", b"i" * 700) for i in range(4)])


def _archives() -> dict[str, bytes]:
    """One of each kind: plain, duplicates, inner archives, damaged inside and at the end."""
    plain = [(f"{i}.png", bytes([i]) * (i * 150)) for i in range(12)]
    tar = tar_bytes(plain)
    return {
        "plain": tar,
        "duplicates": tar_bytes([*plain, *plain[3:6], ("n.txt", b"1" * 3000)]),
        "inner": tar_bytes([*plain[:4], ("in.tar", _inner()), *plain[4:8]]),
        "inner damage": tar_bytes([*plain[:4], ("in.tar", _inner()[:2000]), *plain[4:8]]),
        "joined": tar + tar,
        "truncated": tar[:9000],
        "corrupt": tar[:6144] + b"\xff" * 512 + tar[6656:],
        "empty": b"",
        "no images": tar_bytes([("a.txt", b"1" * 9000)]),
    }


class _Archive:
    """One tar in a folder, and the indexes that are kept beside it."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.storage = Storage()
        self.uri = f"{folder}/in/a.tar"
        self.kept = folder / "kept"
        self.storage.write(self.uri, data)

    def source(self, keep: bool) -> TarSource:
        source = open_source(self.uri, SourceOptions(), self.storage)
        assert isinstance(source, TarSource)
        source.index_uri = lambda key: f"{self.kept}/{key}"
        if keep:
            source.index_shards = lambda tasks: [keep_index(task) for task in tasks] and None
        return source

    def units(self, keep: bool = False) -> list[Unit]:
        return list(self.source(keep).units(LIMITS))

    def task(self) -> IndexTask:
        (shard,) = self.source(False).shards.to_pylist()
        return self.source(False)._index_task(shard)


@pytest.mark.parametrize("kind", _archives())
def test_units_are_the_same_with_an_index(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _Archive(tmp_path, _archives()[kind])
    without = archive.units()
    assert not archive.kept.exists()  # a dry run keeps nothing
    assert archive.units(keep=True) == without
    monkeypatch.setattr(tar_source, "build_index", None)  # from now on nothing is read
    assert archive.units() == without
    assert archive.units(keep=True) == without
    for limits in (UnitLimits(images=1), UnitLimits(bytes=1500)):
        kept = list(archive.source(False).units(limits))
        assert [unit.stop for unit in kept[:-1]] == [unit.start for unit in kept[1:]]


def test_a_dry_run_says_what_it_reads(tmp_path: Path) -> None:
    archive = _Archive(tmp_path, _archives()["plain"])
    source = archive.source(keep=False)
    list(source.units(LIMITS))
    size = f"{len(_archives()['plain']) / 1024:,.1f} KiB"
    assert source.notes == [
        f"1 tar shard of {size} had to be read for the most part, to find where to cut; a run "
        "keeps what it finds."
    ]
    list(archive.source(keep=True).units(LIMITS))
    source = archive.source(keep=False)
    list(source.units(LIMITS))
    assert source.notes == []


def test_another_version_has_another_index(tmp_path: Path) -> None:
    archive = _Archive(tmp_path, _archives()["plain"])
    archive.units(keep=True)
    archive.storage.write(archive.uri, _archives()["duplicates"])
    changed = archive.units(keep=True)
    assert len(list(archive.kept.iterdir())) == 2
    (tmp_path / "fresh").mkdir()
    assert [unit.start for unit in changed] == [unit.start for unit in archive.units()]
    other = replace(archive.task(), reader="jpg")
    assert other.key != archive.task().key


def test_a_shard_that_changed_meanwhile_has_no_index(tmp_path: Path) -> None:
    archive = _Archive(tmp_path, _archives()["plain"])
    task = archive.task()
    archive.storage.write(archive.uri, _archives()["joined"])
    keep_index(task)
    assert not archive.kept.exists()


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_damaged_indexes_are_not_taken(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    archive = _Archive(tmp_path_factory.mktemp("index"), _archives()["inner"])
    task = archive.task()
    content = bytearray(encode_index(build_index(task), task))
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "zeros"]))
    if how == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[at:]
    else:
        content[at : at + 40] = bytes(len(content[at : at + 40]))
    index = decode_index(bytes(content), task)  # never raises
    assert index is None or index.entries.num_rows <= task.size // 512 + 1


def _row(**values: Any) -> dict[str, Any]:
    usual = {"start": 0, "end": 600, "is_damage": False, "enclosing": "",
             "duplicate_id": None, "duplicate_name": None}  # fmt: skip
    return usual | values


@pytest.mark.parametrize(
    "rows",
    [
        [_row(start=-512)],
        [_row(start=10**6, end=10**7)],
        [_row(start=512), _row(start=0)],
        [_row(end=-1)],
        [_row(enclosing='[["a", 1000000]]')],
        [_row(enclosing="[" * 100_000)],
        [_row(enclosing='{"a": 1}')],
        [_row(duplicate_id="a")],
        [_row()] * 5000,
    ],
)
def test_entries_that_cannot_be_true_are_not_taken(tmp_path: Path, rows: list[dict]) -> None:
    archive = _Archive(tmp_path, _archives()["plain"])
    task = archive.task()
    true = build_index(task)
    forged = replace(true, entries=pa.Table.from_pylist(rows, true.entries.schema))
    assert decode_index(encode_index(true, task), task) is not None
    assert decode_index(encode_index(forged, task), task) is None
    archive.storage.write(task.index_uri, encode_index(forged, task))
    without = archive.units()
    assert archive.units(keep=True) == without  # it is built again,
    kept = read_index(task)
    assert kept is not None
    assert kept.entries.equals(true.entries)  # and replaced


def test_what_is_no_index_is_not_taken(tmp_path: Path) -> None:
    archive = _Archive(tmp_path, _archives()["plain"])
    task = archive.task()
    sink = io.BytesIO()
    metadata = pq.read_schema(io.BytesIO(encode_index(build_index(task), task))).metadata
    pq.write_table(pa.table({"start": np.arange(3)}).replace_schema_metadata(metadata), sink)
    for data in (sink.getvalue(), b"", b"PAR1"):
        assert decode_index(data, task) is None
    other = replace(task, etag="another")
    assert decode_index(encode_index(build_index(task), task), other) is None
