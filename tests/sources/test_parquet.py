from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.errors import StorageError, UsageError
from segcore.sources import SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, StorageOptions, join
from tests.support.archives import codes, image_bytes, open_and_read, parquet_bytes

storage = Storage(StorageOptions(retries=1))


def _keys(samples: list[Any], uri: str) -> list[str]:
    return [s.image_id.removeprefix(uri + "#") for s in samples]


def test_plain_bytes_are_named_by_the_key_column(folder: str) -> None:
    for shard in range(2):
        columns = {
            "label": [1, 2, 3],
            "image": [image_bytes(10 * shard + i) for i in range(3)],
            "id": [f"n{i}" for i in range(3)],
        }
        storage.write(join(folder, f"{shard}.parquet"), parquet_bytes(columns))
    source, samples = open_and_read(folder, storage)
    assert source.kind == "parquet"
    assert [s.data for s in samples] == [image_bytes(i) for i in (0, 1, 2, 10, 11, 12)]
    assert samples[4].image_id == join(folder, "1.parquet#n1")
    assert samples[4].uri == join(folder, "1.parquet")
    assert samples[4].etag == storage.stat(samples[4].uri).etag
    units = list(source.units(UnitLimits()))
    assert [(u.start, u.stop, u.n_images) for u in units] == [(0, 1, 3)] * 2


def test_the_hugging_face_layout_is_read(folder: str) -> None:
    rows = [{"bytes": image_bytes(i), "path": f"p{i}.png"} for i in range(4)]
    rows += [{"bytes": None, "path": "only-a-path.png"}, None, {"bytes": b"", "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"text": ["x"] * 7, "image": pa.array(rows, kind)})
    uri = join(folder, "train-00000.parquet")
    storage.write(uri, parquet_bytes(table, rows_per_group=2))
    for limits in (UnitLimits(), UnitLimits(images=2)):
        _, samples = open_and_read(uri, storage, limits)
        assert _keys(samples, uri) == [
            "p0.png", "p1.png", "p2.png", "p3.png", "only-a-path.png", "row5", "row6",
        ]  # fmt: skip
        assert [s.data for s in samples[:4]] == [image_bytes(i) for i in range(4)]
        assert list(codes(samples).values()) == ["empty", "empty"]
        assert samples[6].data == b""


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary(3), pa.dictionary(pa.int32(), pa.binary())]
)
def test_the_columns_can_be_named(tmp_path: object, kind: pa.DataType) -> None:
    uri = f"{tmp_path}/a.parquet"
    table = pa.table(
        {"image": [b"no"], "thumb": pa.array([b"yes"], kind), "id": ["a"], "number": [7]}
    )
    storage.write(uri, parquet_bytes(table))
    _, samples = open_and_read(uri, storage, image_column="thumb", key_column="number")
    assert [(s.data, s.image_id) for s in samples] == [(b"yes", f"{uri}#7")]


def test_a_wrong_column_is_a_readable_error(folder: str) -> None:
    uri = join(folder, "a.parquet")
    storage.write(uri, parquet_bytes({"a": [b"1"], "b": [b"2"], "text": ["x"], "f": [0.5]}))
    cases: list[tuple[dict[str, str], str]] = [
        ({}, r"no column is clearly the one with image bytes; its columns are a \(binary\)"),
        ({"image_column": "zz"}, "has no column 'zz'; its columns are a"),
        ({"image_column": "text"}, "'text' does not hold image bytes"),
        ({"image_column": "a", "key_column": "zz"}, "has no column 'zz'"),
        ({"image_column": "a", "key_column": "f"}, "'f' does not hold text or integers"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            open_and_read(uri, storage, **options)
        assert caught.value.message.startswith(uri)


def test_image_ids_do_not_depend_on_how_row_groups_are_cut_into_units(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.parquet"
    keys = [f"k{i % 13}" if i % 5 else None for i in range(40)]
    images = [bytes([i]) * 500 for i in range(40)]
    storage.write(uri, parquet_bytes({"key": keys, "image": images}, rows_per_group=4))
    source, uncut = open_and_read(uri, storage)
    assert len({s.image_id for s in uncut}) == 40
    assert [s.data for s in uncut] == images
    assert _keys(uncut, uri)[0] == "row0"
    assert _keys(uncut, uri)[14] == "k1~2"
    for limits in (UnitLimits(images=8), UnitLimits(images=1), UnitLimits(bytes=300)):
        units = list(source.units(limits))
        assert len(units) >= 5
        assert [u.stop for u in units[:-1]] == [u.start for u in units[1:]]
        from_cut_units, notes = [], Counter[str]()
        for unit in units:
            samples = list(read_unit(unit, storage, SourceOptions(), notes))
            assert len(samples) == unit.n_images
            from_cut_units += samples
        assert from_cut_units == uncut
        assert notes["duplicate_names"] == sum(s.warning == "duplicate_name" for s in uncut) > 0


def test_another_image_column_gives_other_units(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.parquet"
    storage.write(uri, parquet_bytes({"image": [b"1"], "thumb": [b"2"]}))
    unit_ids = {
        next(open_source(uri, SourceOptions(image_column=column), storage).units(UnitLimits())).unit
        for column in ("image", "thumb", None)
    }
    assert len(unit_ids) == 2


def test_rows_over_the_limit_are_failed_rows(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.parquet"
    storage.write(uri, parquet_bytes({"image": [b"x" * 100, b"y"]}))
    _, samples = open_and_read(uri, storage, max_image_bytes=50)
    assert codes(samples) == {f"{uri}#row0": "too_many_bytes"}
    assert samples[1].data == b"y"


def test_a_damaged_shard_is_one_failed_row(folder: str) -> None:
    good = parquet_bytes({"image": [image_bytes()]})
    contents = {"1": b"", "2": b"PAR1 and then nothing", "3": good[: len(good) // 2], "4": good}
    for name, data in contents.items():
        storage.write(join(folder, f"{name}.parquet"), data)
    source, samples = open_and_read(folder, storage)
    assert codes(samples) == {
        join(folder, f"{name}.parquet#file"): "shard_corrupt" for name in "123"
    }
    assert samples[-1].data == image_bytes()
    assert [u.n_images for u in source.units(UnitLimits())] == [1, 1, 1, 1]


def test_a_damaged_row_group_fails_its_rows_under_their_own_keys(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.parquet"
    images = [image_bytes(i) for i in range(12)]
    data = bytearray(parquet_bytes({"id": list("abcdefghijkl"), "image": images}, 4))
    start = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(1)
    at = start.dictionary_page_offset or start.data_page_offset
    data[at : at + 60] = b"\xff" * 60
    storage.write(uri, bytes(data))
    for limits in (UnitLimits(), UnitLimits(images=4)):
        _, samples = open_and_read(uri, storage, limits)
        assert _keys(samples, uri) == list("abcdefghijkl")
        assert codes(samples) == {f"{uri}#{key}": "shard_corrupt" for key in "efgh"}
        assert [s.data for s in samples if s.error is None] == images[:4] + images[8:]


@pytest.mark.parametrize(
    ("rows", "total"), [([2, 3], 6), ([2, -1], 1), ([2, 1 << 40], 2 + (1 << 40))]
)
def test_a_shard_with_a_false_footer_is_a_failed_row(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, rows: list[int], total: int
) -> None:
    uri = f"{tmp_path}/a.parquet"
    storage.write(uri, parquet_bytes({"image": [b"1", b"2", b"3"]}, rows_per_group=2))
    groups = [SimpleNamespace(num_rows=n, total_byte_size=10) for n in rows]
    metadata = SimpleNamespace(
        num_row_groups=len(rows), num_rows=total, row_group=lambda index: groups[index]
    )
    monkeypatch.setattr(pq.ParquetFile, "metadata", property(lambda self: metadata))
    source, samples = open_and_read(uri, storage)
    assert codes(samples) == {f"{uri}#file": "shard_corrupt"}
    assert [u.n_images for u in source.units(UnitLimits())] == [1]


def test_images_are_read_if_the_key_column_is_damaged(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.parquet"
    images = [image_bytes(i) for i in range(4)]
    keys = ["key one is long enough to find", "k2", "k3", "k4"]
    data = bytearray(parquet_bytes({"id": keys, "image": images}, 2))
    start = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0).column(0)
    at = start.dictionary_page_offset or start.data_page_offset
    data[at : at + 20] = b"\xff" * 20
    storage.write(uri, bytes(data))
    for limits in (UnitLimits(), UnitLimits(images=2)):
        _, samples = open_and_read(uri, storage, limits)
        assert _keys(samples, uri) == ["row0", "row1", "k3", "k4"]
        assert [s.data for s in samples] == images


def test_a_table_without_rows_has_no_units(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.parquet"
    storage.write(uri, parquet_bytes({"image": pa.array([], pa.binary())}))
    source, samples = open_and_read(uri, storage)
    assert samples == []
    assert list(source.units(UnitLimits())) == []


def test_a_shard_that_changed_after_planning_raises(folder: str) -> None:
    uri = join(folder, "a.parquet")
    storage.write(uri, parquet_bytes({"image": [b"1"]}))
    (unit,) = open_source(uri, SourceOptions(), storage).units(UnitLimits())
    storage.write(uri, parquet_bytes({"image": [b"1", b"2"]}))
    with pytest.raises(StorageError, match="changed while the run"):
        list(read_unit(unit, storage, SourceOptions()))


@pytest.mark.s3
def test_storage_failures_while_reading_are_not_failed_rows(
    s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3_prefix + "/a.parquet"
    storage.write(uri, parquet_bytes({"image": [b"1" * 1000]}))
    (unit,) = open_source(uri, SourceOptions(), storage).units(UnitLimits())

    def broken(*_: object) -> bytes:
        raise StorageError("the network is down")

    monkeypatch.setattr("segcore.storage.object_store.read_range", broken)
    with pytest.raises(StorageError, match="network is down"):
        list(read_unit(unit, storage, SourceOptions()))


def test_a_key_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    keys = pa.array([b"\xdax", b"ok"]).view(pa.string())  # as damage leaves it: unchecked
    table = pa.table({"key": keys, "image": [image_bytes(0), image_bytes(1)]})
    uri = f"{tmp_path}/a.parquet"
    storage.write(uri, parquet_bytes(table))
    _, samples = open_and_read(uri, storage)
    assert [(s.image_id, s.error) for s in samples] == [
        (f"{uri}#\\xdax", None),
        (f"{uri}#ok", None),
    ]
