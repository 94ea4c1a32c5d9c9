"""What is known of parts without opening them is what their footers say, whatever happened."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.errors import AccessDenied, ErrorCode, ImageError, StorageError
from segcore.instances import Instances
from segcore.output.committed import list_committed
from segcore.output.counts_cache import CountsCache
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts, list_part_names, newest_generations, read_part_metadata
from segcore.output.tables import ImageResult
from segcore.output.unit_counts import (
    UNIT_COUNTS_SCHEMA,
    UnitCounts,
    decode_unit_counts,
    encode_unit_counts,
    rows_of_table,
    sum_counts,
    unit_counts_table,
)
from segcore.sources.units import Member, Unit, make_objects_unit
from segcore.storage import ObjectInfo, Storage, StorageOptions
from tests.support.fake_s3 import FakeS3

_CLOCK_TICK_S = 0.01  # files that are written in the same tick have the same time
CODES = (ErrorCode.CORRUPT, ErrorCode.EMPTY, ErrorCode.CRASHED)


def make_parts(prefix: str, storage: Storage | None = None) -> Parts:
    return Parts(storage or Storage(), prefix, "e", "r", "CC0-1.0", ((1, "one"),))


def make_unit(number: int) -> Unit:
    names = [f"{number}-{i}" for i in range(3)]
    return make_objects_unit([Member(name, name, "1", 1) for name in names])


def make_results(unit: Unit, failures: tuple[ErrorCode, ...] = ()) -> list[ImageResult]:
    """Rows of a unit of which the first images failed."""
    return [
        ImageResult(m.image_id, m.uri, m.etag, error=ImageError(failures[i], "bad"))
        if i < len(failures)
        else ImageResult(m.image_id, m.uri, m.etag, 3, 2, Instances.empty(2, 3))
        for i, m in enumerate(unit.members)
    ]


def recount(parts: Parts) -> dict[str, PartCounts]:
    """What the newest parts say, one after the other."""
    layout = parts.layout
    generations = newest_generations(list_part_names(parts.storage, layout, "images"))
    metadata = (
        read_part_metadata(parts.storage, layout.part("images", *name))
        for name in generations.items()
    )
    return {counts.unit: counts for counts in map(PartCounts.from_metadata, metadata)}


def counts_by_cache(parts: Parts, cache: CountsCache) -> dict[str, PartCounts]:
    table = cache.counts_of(list_committed(parts.storage, parts.layout).newest)
    rows = list(rows_of_table(table))
    assert len({row.unit for row in rows}) == len(rows)
    return {row.unit: row.counts for row in rows}


class _World:
    """An edition in which things happen, and the cache of the run in progress."""

    def __init__(self, folder: str, seed: int) -> None:
        self.parts = make_parts(folder)
        self.random = random.Random(seed)
        self.units = [make_unit(i) for i in range(8)]
        self.cache = self._open_cache()

    def _open_cache(self) -> CountsCache:
        return CountsCache(self.parts.storage, self.parts.layout)

    def _results(self, unit: Unit) -> list[ImageResult]:
        return make_results(unit, tuple(self.random.choices(CODES, k=self.random.randrange(4))))

    def _files(self) -> list[str]:
        folder = self.parts.layout.counts_folder
        return [info.uri for info, _ in self.parts.storage.list_folder(folder)]

    def step(self) -> None:
        steps = (
            self.commit, self.commit, self.retry, self.delete, self.edit, self.keep_older,
            self.save, self.save, self.die, self.damage_cache, self.lose_cache,
        )  # fmt: skip
        self.random.choice(steps)()

    def commit(self) -> None:
        unit = self.random.choice(self.units)
        if unit.unit not in self.parts.list_generations():
            time.sleep(_CLOCK_TICK_S)
            counts = self.parts.commit(unit, self._results(unit))
            if self.random.random() < 0.8:  # else its worker died before it said so
                self.cache.add_written(counts)

    def _committed_unit(self) -> Unit | None:
        committed = self.parts.list_generations()
        units = [unit for unit in self.units if unit.unit in committed]
        return self.random.choice(units) if units else None

    def retry(self) -> None:
        if (unit := self._committed_unit()) is not None:
            self._replace(unit)

    def _replace(self, unit: Unit) -> None:
        parts = self.parts.as_listed(self.parts.list_generations())
        self.cache.add_written(parts.replace(unit, self._results(unit)))

    def keep_older(self) -> None:
        """A retry that died before it deleted the older generation."""
        if (unit := self._committed_unit()) is not None:
            generation = self.parts.list_generations()[unit.unit]
            older = self.parts.layout.part("images", unit.unit, generation)
            data = self.parts.storage.read(older)
            self._replace(unit)
            self.parts.storage.write(older, data)

    def delete(self) -> None:
        if (unit := self._committed_unit()) is not None:
            name = unit.unit, self.parts.list_generations()[unit.unit]
            self.parts.storage.delete(self.parts.layout.part("images", *name))

    def edit(self) -> None:
        """A part is written again behind the back of the run."""
        if (unit := self._committed_unit()) is not None:
            time.sleep(_CLOCK_TICK_S)
            generation = self.parts.list_generations()[unit.unit]
            results = self._results(unit)
            counts = PartCounts.of_results(unit.unit, results, {})
            parts = self.parts.as_listed({unit.unit: generation})
            images = parts.read_tables(unit.unit)
            self.parts.commit_tables(*images, counts, generation)

    def save(self) -> None:
        listed = list_committed(self.parts.storage, self.parts.layout).newest
        self.cache.save(self.random.choice([None, listed]))

    def die(self) -> None:
        self.cache = self._open_cache()

    def damage_cache(self) -> None:
        if files := self._files():
            uri = self.random.choice(files)
            data = bytearray(self.parts.storage.read(uri))
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            cut = self.random.choice([len(data), self.random.randrange(len(data))])
            self.parts.storage.write(uri, bytes(data[:cut]))
            self.die()

    def lose_cache(self) -> None:
        self.parts.storage.delete_all(self._files())
        self.cache = self._open_cache()


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_whatever_happens_the_counts_are_those_of_the_footers(tmp_path, seed, monkeypatch):
    monkeypatch.setattr("segcore.output.counts_cache._ROWS_PER_SAVE", 3)
    monkeypatch.setattr("segcore.output.counts_cache._SPARE_ROWS", 2)
    world = _World(str(tmp_path), seed)
    for _ in range(16):
        world.step()
        expected = recount(world.parts)
        assert counts_by_cache(world.parts, world.cache) == expected
        fresh = CountsCache(world.parts.storage, world.parts.layout)
        assert counts_by_cache(world.parts, fresh) == expected


def _files_of_cache(parts: Parts) -> dict[str, int]:
    """Rows of each file."""
    infos = parts.storage.list_folder(parts.layout.counts_folder)
    return {i.uri: decode_unit_counts(parts.storage.read(i.uri)).num_rows for i, _ in infos}


def test_rows_are_written_few_times_and_files_stay_few(tmp_path, monkeypatch):
    monkeypatch.setattr("segcore.output.counts_cache._ROWS_PER_SAVE", 10)
    monkeypatch.setattr("segcore.output.counts_cache._SPARE_ROWS", 0)
    n_written = 0

    class Counting(Storage):
        def write(self, uri: str, data: bytes) -> ObjectInfo:
            nonlocal n_written
            n_written += decode_unit_counts(data).num_rows
            return super().write(uri, data)

    parts = make_parts(str(tmp_path), Counting())
    cache = CountsCache(parts.storage, parts.layout)
    for i in range(320):
        cache.add(UnitCounts(PartCounts(f"{i:020x}", 1, 0, 0), 0, 1, "e"))
    files = _files_of_cache(parts)
    assert sum(files.values()) == 320
    assert len(files) <= 6
    assert n_written <= 320 * 6

    cache.save(list_committed(parts.storage, parts.layout).newest)  # all these parts are gone
    assert _files_of_cache(parts) == {}


class _Refusing(Storage):
    def write(self, uri: str, data: bytes) -> ObjectInfo:
        raise AccessDenied(f"No permission for {uri}.")

    def list_folder(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
        raise AccessDenied(f"No permission for {prefix}.")


def test_storage_that_refuses_the_cache_is_no_error(tmp_path):
    parts = make_parts(str(tmp_path), _Refusing())
    counts = make_parts(str(tmp_path)).commit(make_unit(1), make_results(make_unit(1)))
    cache = CountsCache(parts.storage, parts.layout)
    cache.add_written(counts)
    cache.save()
    assert counts_by_cache(parts, cache) == {counts.unit: counts}


def test_a_part_that_is_of_another_unit_or_damaged_is_named(tmp_path):
    parts = make_parts(str(tmp_path))
    first, second = (parts.commit(unit, make_results(unit)).unit for unit in map(make_unit, (1, 2)))
    paths = [parts.layout.part("images", unit) for unit in (first, second)]
    for data in (parts.storage.read(paths[1]), b"PAR1 no", b""):
        parts.storage.write(paths[0], data)
        with pytest.raises(StorageError, match=paths[0]):
            counts_by_cache(parts, CountsCache(parts.storage, parts.layout))


def test_no_part_is_opened_that_is_known(tmp_path):
    """Requests of a listing of 1,200 parts in S3: the pages, and those of the cache."""
    parts = make_parts(str(tmp_path))
    unit = make_unit(0)
    written = parts.commit(unit, make_results(unit, (ErrorCode.EMPTY,)))
    data = parts.storage.read(parts.layout.part("images", unit.unit))
    ids = [f"{i:0{len(unit.unit)}x}" for i in range(1200)]
    objects = {f"out/images/{i}.parquet": data.replace(unit.unit.encode(), i.encode()) for i in ids}
    with FakeS3(objects, page_keys=500) as s3:
        storage = Storage(StorageOptions(endpoint_url=s3.endpoint, retries=0, anonymous=True))
        layout = replace(parts, prefix="s3://bucket/out").layout
        listed = list_committed(storage, layout).newest
        known = [
            UnitCounts(replace(written, unit=row["unit"]), 0, row["size"], row["etag"])
            for row in listed.to_pylist()
        ]
        del known[7]
        s3.objects["out/counts/0123456789abcdef.parquet"] = encode_unit_counts(
            unit_counts_table(known)
        )
        s3.requests.clear()
        listed = list_committed(storage, layout).newest
        totals = sum_counts(CountsCache(storage, layout).counts_of(listed))
        requests = [key for _, key, _ in s3.requests if key is not None]
    assert (totals.units, totals.failed, totals.failures) == (1200, 1200, {"empty": 1200})
    assert sorted(requests) == [
        "out/counts/0123456789abcdef.parquet",
        f"out/images/{ids[7]}.parquet",
    ]


def make_rows(seed: int) -> list[UnitCounts]:
    draw = random.Random(seed)

    def counter() -> dict[str, int]:
        names = draw.sample(["a", "b.c", "é"], draw.randrange(3))
        return {name: draw.randrange(1, 9) for name in names}

    rows = []
    for i in range(draw.randrange(40)):
        failures = counter()
        numbers = draw.randrange(9), sum(failures.values()), draw.randrange(99)
        counts = PartCounts(f"{i:08x}", *numbers, failures, counter(), counter())
        rows.append(UnitCounts(counts, draw.randrange(3), draw.randrange(1 << 40), f"e{i}"))
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_rows_survive_as_tables_files_and_texts(seed):
    rows = make_rows(seed)
    table = unit_counts_table(rows)
    assert list(rows_of_table(table)) == rows
    assert decode_unit_counts(encode_unit_counts(table, {"a": "b"})).equals(table)
    assert encode_unit_counts(table) == encode_unit_counts(unit_counts_table(rows))
    assert [UnitCounts.from_text(row.to_text()) for row in rows] == rows
    totals = sum_counts(table)
    assert totals.images == sum(row.counts.images for row in rows)
    for name in ("failures", "notes", "warnings"):
        expected: dict[str, int] = {}
        for row in rows:
            for key, number in getattr(row.counts, name).items():
                expected[key] = expected.get(key, 0) + number
        assert getattr(totals, name) == expected


def _file(**columns: list) -> bytes:
    """A file of the cache with one good row, except for these columns."""
    row = UnitCounts(PartCounts("00000000", 1, 1, 0, {"empty": 1}), 0, 5, "e")
    table = unit_counts_table([row])
    arrays = {name: table[name] for name in table.column_names} | columns
    n_rows = max(map(len, arrays.values()))
    sink = io.BytesIO()
    table = {
        name: values if len(values) == n_rows else pa.repeat(values[0], n_rows)
        for name, values in arrays.items()
    }
    pq.write_table(pa.table(table), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "columns",
    [
        {"ok": [-1]},
        {"ok": [None]},
        {"ok": [1 << 62]},
        {"size": ["x"]},
        {"unit": [None]},
        {"failed": [2]},
        {"failures": ["[]"]},
        {"failures": ["{"]},
        {"failures": ['{"empty": "1"}']},
        {"failures": ['{"empty": true}']},
        {"failures": ["[" * 100_000]},
        {"notes": ['{"a": -1}']},
        {"generation": [1 << 40]},
        {"unit": ["x" * 100_000] * 500},
        {"unit": ["x"] * 400_000},
        {"etag": [b"\xff"]},
    ],
)
def test_hostile_files_are_refused_before_they_take_memory(columns):
    assert decode_unit_counts(_file()).schema == UNIT_COUNTS_SCHEMA
    before = pa.total_allocated_bytes()
    data = _file(**columns)
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match=r"."):
        decode_unit_counts(data)
    assert pa.default_memory_pool().max_memory() <= max(peak, before + (64 << 20))
