"""Every Arrow type of text and bytes is read; claims of a file are believed only so far."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.errors import UsageError
from segcore.sources import SourceOptions, open_source, parquet_rows, read_unit
from segcore.sources.parquet_pages import read_column_chunks
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, StorageOptions
from tests.support.archives import codes, image_bytes, open_and_read, parquet_bytes
from tests.support.paths import SHARED

storage = Storage(StorageOptions(retries=1))
IMAGES = [image_bytes(i) for i in range(3)]
WIDTH = max(map(len, IMAGES))
PADDED = [image.ljust(WIDTH, b"\0") for image in IMAGES]

BYTES_TYPES = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "fixed": pa.binary(WIDTH),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
    "opaque": pa.opaque(pa.binary(), "image", "somebody"),
    "opaque view": pa.opaque(pa.binary_view(), "image", "somebody"),
}
TEXT_TYPES = {
    "string": pa.string(),
    "large": pa.large_string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "opaque": pa.opaque(pa.string(), "name", "somebody"),
}


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def _write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


@pytest.mark.parametrize("text", list(TEXT_TYPES))
@pytest.mark.parametrize("kind", list(BYTES_TYPES))
def test_every_type_of_bytes_and_text_is_read(tmp_path: Path, kind: str, text: str) -> None:
    images = _array([*PADDED, None], BYTES_TYPES[kind])
    keys = _array(["a", "b", "a", "d"], TEXT_TYPES[text])
    for columns in ({"image": images, "key": keys}, {"pictures": images, "id": keys}):
        for limits in (UnitLimits(), UnitLimits(images=1)):
            uri = _write(tmp_path / "a.parquet", columns, row_group_size=2)
            _, samples = open_and_read(uri, storage, limits)
            assert [s.data for s in samples] == [*PADDED, None]
            assert [s.image_id.partition("#")[2] for s in samples] == ["a", "b", "a~2", "d"]
            assert codes(samples) == {f"{uri}#d": "empty"}


@pytest.mark.parametrize("kind", ["binary", "large", "view", "dictionary"])
def test_structs_of_bytes_and_path_are_read(tmp_path: Path, kind: str) -> None:
    images = _array(IMAGES, BYTES_TYPES[kind])
    paths = _array(["a", "b", "c"], TEXT_TYPES["view"])
    struct = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    uri = _write(tmp_path / "a.parquet", {"image": struct})
    _, samples = open_and_read(uri, storage)
    assert [s.data for s in samples] == IMAGES
    assert [s.image_id.partition("#")[2] for s in samples] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["image", "my.image", "image.bytes"])
@pytest.mark.parametrize("depth", [0, 1])
def test_structs_with_types_and_names_of_their_own_are_read(
    tmp_path: Path, name: str, depth: int
) -> None:
    images, paths = _array(IMAGES, pa.binary()), _array(["a", "b", "c"], pa.string())
    array = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    for _ in range(depth):
        array = pa.ExtensionArray.from_storage(pa.opaque(array.type, "image", "x"), array)
    uri = _write(tmp_path / "a.parquet", {name: array, "score": [1, 2, 3]}, row_group_size=2)
    for limits in (UnitLimits(), UnitLimits(images=1)):
        _, samples = open_and_read(uri, storage, limits)
        assert [s.data for s in samples] == IMAGES
        assert [s.image_id.partition("#")[2] for s in samples] == ["a", "b", "c"]


LIST_TYPES = {
    "list": pa.list_,
    "large": pa.large_list,
    "view": pa.list_view,
    "large view": pa.large_list_view,
    "of two": lambda element: pa.list_(element, 2),
}


@pytest.mark.parametrize("with_struct", [False, True])
@pytest.mark.parametrize("kind", list(LIST_TYPES))
def test_lists_of_images_are_a_row_each(tmp_path: Path, kind: str, with_struct: bool) -> None:
    lists: list[Any] = [IMAGES[:2], [IMAGES[2], None], None, IMAGES[1:3]]
    if kind != "of two":
        lists += [[], IMAGES]
    element: pa.DataType = pa.binary()
    rows: list[Any] = lists
    if with_struct:
        element = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = [row and [image and {"bytes": image, "path": "p"} for image in row] for row in lists]
    array = pa.array(rows, LIST_TYPES[kind](element))
    columns = {"images": array, "id": [f"k{i % 4}" for i in range(len(rows))]}
    expected = {
        f"k{i % 4}{'~2' * (i >= 4)}[{j}]": image
        for i, row in enumerate(lists)
        for j, image in enumerate(row or [])
    }
    for limits in (UnitLimits(), UnitLimits(images=2)):
        uri = _write(tmp_path / "a.parquet", columns, row_group_size=2)
        source = open_source(uri, SourceOptions(), storage)
        notes: Counter[str] = Counter()
        samples = []
        for unit in source.units(limits):
            assert unit.n_images is None
            samples += list(read_unit(unit, storage, SourceOptions(), notes))
        assert {s.image_id.removeprefix(f"{uri}#"): s.data for s in samples} == expected
        assert notes["rows_without_images"] == sum(not row for row in lists)


def test_one_image_in_each_row_is_preferred_to_lists(tmp_path: Path) -> None:
    columns = {"images": [[b"1"], [b"2"]], "photo": IMAGES[:2]}
    _, samples = open_and_read(_write(tmp_path / "a.parquet", columns), storage)
    assert [s.data for s in samples] == IMAGES[:2]
    uri = _write(tmp_path / "a.parquet", columns)
    _, samples = open_and_read(uri, storage, image_column="images")
    assert [s.image_id.partition("#")[2] for s in samples] == ["row0[0]", "row1[0]"]


@pytest.mark.parametrize("values", [[b"x" * 8, b"y" * 8], [b"\x01" * 40, b"\x02" * 64]])
def test_hashes_are_not_taken_for_images(tmp_path: Path, values: list[bytes]) -> None:
    for kind in (pa.binary(), pa.binary_view(), pa.binary(len(values[0]))):
        if pa.types.is_fixed_size_binary(kind):
            values = [value[: len(values[0])] for value in values]
        hashes = pa.array(values, kind)
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / name).write_bytes(name.encode())
        columns = {"path": ["a.jpg", "b.jpg"], "phash": hashes}
        source, samples = open_and_read(_write(tmp_path / "m.parquet", columns), storage)
        assert source.kind == "manifest"
        assert [s.data for s in samples] == [b"a.jpg", b"b.jpg"]
        (tmp_path / "shards").mkdir(exist_ok=True)
        _write(tmp_path / "shards" / "m.parquet", columns)
        with pytest.raises(UsageError, match=r"phash|no column is clearly") as caught:
            open_and_read(str(tmp_path / "shards"), storage)
        assert "source.image_column" in caught.value.hint
        options = {"kind": "parquet", "image_column": "phash"}
        _, samples = open_and_read(str(tmp_path / "m.parquet"), storage, **options)
        assert [s.data for s in samples] == values


def test_bytes_may_be_keys_where_asked_for(tmp_path: Path) -> None:
    uri = _write(tmp_path / "a.parquet", {"image": IMAGES, "sha": [b"a", b"b", b"\xff"]})
    _, samples = open_and_read(uri, storage, key_column="sha")
    assert [s.image_id.partition("#")[2] for s in samples] == ["a", "b", "\\xff"]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_the_pages_of_other_writers_are_understood(
    tmp_path: Path, version: str, compression: str
) -> None:
    """A false alarm would cost good rows: the chunks are those that pyarrow's own reader names."""
    path = tmp_path / "a.parquet"
    columns = {"image": pa.array([b"x" * 3000] * 50 + IMAGES), "key": [f"k{i}" for i in range(53)]}
    pq.write_table(
        pa.table(columns), path, compression=compression, data_page_version=version,
        row_group_size=20, data_page_size=5000, write_page_index=True,
    )  # fmt: skip
    written = [path]
    if compression != "none":
        name = str(tmp_path / "duckdb.parquet")
        duckdb.sql(f"COPY (FROM '{path}') TO '{name}' (FORMAT parquet, COMPRESSION {compression})")
        written.append(Path(name))
    for file_path in written:
        metadata = pq.ParquetFile(file_path).metadata
        expected = []
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                start = column.dictionary_page_offset or column.data_page_offset
                expected.append((column.path_in_schema, start, column.total_compressed_size))
        with file_path.open("rb") as file:
            chunks = [(".".join(c.path), c.start, c.n_bytes) for c in read_column_chunks(file)]
        assert chunks == expected
        _, samples = open_and_read(str(file_path), storage)
        assert [s.data for s in samples] == columns["image"].to_pylist()


def _peak_mb(data: bytes, path: Path, **options: Any) -> tuple[float, list[Any]]:
    """(most memory that Arrow took, samples without their bytes)."""
    path.write_bytes(data)
    chosen = SourceOptions(**options)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        samples = [
            (s.image_id.partition("#")[2], len(s.data or b""), s.error and str(s.error.code))
            for unit in open_source(str(path), chosen, storage).units(UnitLimits())
            for s in read_unit(unit, storage, chosen)
        ]
    finally:
        pa.set_memory_pool(before)
    return pool.max_memory() / (1 << 20), samples


@pytest.mark.slow
def test_a_page_that_claims_more_than_it_holds_is_not_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"image": [b"\0" * (30 << 20), b"x"], "key": ["a", "b"]}
    data = _bytes(columns, compression="zstd", use_dictionary=False)
    assert len(data) < 1 << 20
    _, samples = _peak_mb(data, tmp_path / "a.parquet")  # within what a page may always have
    assert [size for _, size, _ in samples] == [30 << 20, 1]
    monkeypatch.setattr("segcore.sources.parquet_pages._FREE_PAGE_BYTES", 20 << 20)
    peak, samples = _peak_mb(data, tmp_path / "a.parquet")
    assert [(key, code) for key, _, code in samples] == [
        ("a", "too_many_bytes"), ("b", "too_many_bytes"),
    ]  # fmt: skip
    assert peak < 5
    noise = _bytes({"image": [random.Random(1).randbytes(30 << 20)]}, compression="zstd")
    _, samples = _peak_mb(noise, tmp_path / "a.parquet")  # as many bytes, but they are there
    assert [size for _, size, _ in samples] == [30 << 20]


def _bytes(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


@pytest.mark.slow
def test_rows_that_mean_one_large_value_are_not_built_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = b"\xff\xd8\xff" + b"x" * (2 << 20)
    data = _bytes({"image": [value] * 40, "key": [value.hex()[: 1 << 20]] * 40}, compression="zstd")
    assert len(data) < 100_000
    before, samples = _peak_mb(data, tmp_path / "a.parquet")
    assert [size for _, size, _ in samples] == [len(value)] * 40
    monkeypatch.setattr("segcore.sources.parquet_pages._MAX_REPEATED_BYTES", 4 << 20)
    peak, samples = _peak_mb(data, tmp_path / "a.parquet")
    assert [size for _, size, _ in samples] == [len(value)] * 40
    assert peak < 30 < before


def test_lists_that_claim_countless_images_are_refused(tmp_path: Path) -> None:
    rows = pa.array([[None] * (1 << 21)], pa.list_(pa.binary()))
    peak, samples = _peak_mb(_bytes({"images": rows}), tmp_path / "a.parquet")
    assert samples == [("row0", 0, "too_many_bytes")]
    assert peak < 50


def test_rows_without_bytes_are_read_in_bounded_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.sources.parquet._SPLIT_GROUP_ROWS", 1000)
    monkeypatch.setattr("segcore.sources.parquet._PIECE_ROWS", 300)
    keys = [None if i % 3 else f"k{i % 50}" for i in range(2500)]
    images = [IMAGES[0] if i % 700 == 0 else None for i in range(2500)]
    columns = {"key": pa.array(keys, pa.string()), "image": pa.array(images, pa.binary())}
    uri = _write(tmp_path / "a.parquet", columns, row_group_size=1500)
    source, samples = open_and_read(uri, storage)
    units = list(source.units(UnitLimits()))
    assert max(unit.n_images or 0 for unit in units) == 1000
    assert sum(unit.n_images or 0 for unit in units) == 2500
    assert len({unit.unit for unit in units}) == len(units) == 6
    monkeypatch.undo()
    _, whole = open_and_read(uri, storage)
    assert [(s.image_id, s.data) for s in samples] == [(s.image_id, s.data) for s in whole]
    assert len({s.image_id for s in whole}) == 2500


def test_many_rows_need_bytes_behind_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_rows = 4000
    columns = {"key": pa.nulls(n_rows, pa.string()), "image": pa.nulls(n_rows, pa.binary())}
    uri = _write(tmp_path / "a.parquet", columns, row_group_size=n_rows)
    n_bytes = Path(uri).stat().st_size
    assert n_bytes < n_rows
    _, samples = open_and_read(uri, storage)
    assert codes(samples) == {f"{uri}#row{i}": "empty" for i in range(n_rows)}
    monkeypatch.setattr("segcore.sources.parquet_rows._FREE_ROWS", n_rows - 1)
    _, samples = open_and_read(uri, storage)
    assert codes(samples) == {f"{uri}#file": "shard_corrupt"}
    assert f"claims 4,000 rows in {n_bytes:,} bytes" in str(samples[0].error)
    keys = [f"key {i:03d}" for i in range(700)]
    columns = {"key": pa.array(keys), "image": pa.nulls(700, pa.binary())}
    monkeypatch.setattr("segcore.sources.parquet_rows._FREE_ROWS", 10)
    uri = _write(tmp_path / "b.parquet", columns, row_group_size=100)
    assert len(open_and_read(uri, storage)[1]) == 700  # they have bytes


def test_a_short_file_cannot_ask_for_much(tmp_path: Path) -> None:
    """Any byte of headers and footer may lie; each byte of a small file is changed in turn."""
    data = parquet_bytes({"image": [b"\xff\xd8\xff" + b"x" * 50] * 3, "key": ["a", "b", "c"]})
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        with io.BytesIO(damaged) as file:
            read_column_chunks(file)  # never raises


@pytest.mark.faults
@pytest.mark.skipif(not SHARED.exists(), reason="the shared folder with the cases is not here")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pq-one-big", {"too_many_bytes": 2}),
        ("pq-dict-image", {"too_many_bytes": 64}),
        ("pq-null-rows", {"shard_corrupt": 1}),
    ],
)
def test_the_hostile_cases_are_bounded(name: str, expected: dict[Any, int]) -> None:
    path = str(SHARED / "cases" / "hostile" / f"{name}.parquet")
    options = SourceOptions()
    found: Counter[Any] = Counter()
    for unit in open_source(path, options, storage).units(UnitLimits()):
        for sample in read_unit(unit, storage, options):
            found[sample.error and str(sample.error.code)] += 1
    assert found == expected


@pytest.mark.parametrize("batch_rows", [3, 4096])
def test_the_units_of_a_huge_row_group_read_their_own_keys_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    keys = [f"k{i}" if i % 7 else "twice" for i in range(50)]
    uri = _write(tmp_path / "a.parquet", {"image": [image_bytes(1)] * 50, "key": keys})
    monkeypatch.setattr("segcore.sources.parquet._SPLIT_GROUP_ROWS", 10)
    monkeypatch.setattr("segcore.sources.parquet._PIECE_ROWS", 8)
    monkeypatch.setattr("segcore.sources.parquet_rows._KEY_BATCH_ROWS", batch_rows)
    units = list(open_source(uri, SourceOptions(), storage).units(UnitLimits()))
    assert [unit.n_images for unit in units] == [8] * 6 + [2]
    converted: list[Any] = []
    to_python = parquet_rows._to_python
    monkeypatch.setattr(
        parquet_rows, "_to_python", lambda value: converted.append(value) or to_python(value)
    )
    names = [
        sample.image_id.partition("#")[2]
        for unit in units
        for sample in read_unit(unit, storage, SourceOptions())
    ]
    assert len(converted) == 50  # one conversion for each row, however many units
    n_twice = 0
    for name, key in zip(names, keys, strict=True):
        n_twice += key == "twice"
        assert name == (f"twice~{n_twice}" if key == "twice" and n_twice > 1 else key)


@pytest.mark.slow
def test_a_small_file_cannot_mean_a_large_page(tmp_path: Path) -> None:
    large = PADDED[0].ljust(66 << 20, b"\0")
    columns = {"image": pa.DictionaryArray.from_arrays(pa.array([0] * 5), [large])}
    limit = 1 << 30
    uri = _write(tmp_path / "a.parquet", columns, dictionary_pagesize_limit=limit,
                 compression="zstd")  # fmt: skip
    assert Path(uri).stat().st_size < 1 << 20
    _, samples = open_and_read(uri, storage)
    assert set(codes(samples).values()) == {"too_many_bytes"}
    assert len(samples) == 5


@pytest.mark.slow
def test_damaged_headers_of_pages_are_failed_rows(tmp_path: Path) -> None:
    """Fields of another type, and lists in lists without end."""
    whole = parquet_bytes({"key": ["a", "b"], "image": [b"x" * 6000, IMAGES[0]]})
    starts = [chunk.start for chunk in read_column_chunks(io.BytesIO(whole))]
    damages = [(start, b"\x19" * 5000) for start in starts]
    damages += [
        (start + place, bytes([value]))
        for start in starts
        for place in range(0, 24)
        for value in (0x15, 0x1C)
    ]
    path = tmp_path / "a.parquet"
    n_failed = 0
    for at, damage in damages:
        path.write_bytes(whole[:at] + damage + whole[at + len(damage) :])
        try:
            _, samples = open_and_read(str(path), storage)
        except UsageError:
            continue
        n_failed += "shard_corrupt" in codes(samples).values()
    assert n_failed > 10
