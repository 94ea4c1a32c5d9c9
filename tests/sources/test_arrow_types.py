"""Columns of every Arrow type that Parquet holds, two levels deep: right values or refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.errors import UsageError
from segcore.storage import Storage, StorageOptions
from tests.support.archives import image_bytes, open_and_read

storage = Storage(StorageOptions(retries=1))
WIDTH = max(len(image_bytes(i)) for i in range(3))
IMAGES = [image_bytes(i).ljust(WIDTH, b"\0") for i in range(3)]
KEYS = [b"a", b"b\n/", b"c#1"]
_PATH = [("path", pa.string())]

LEAVES: list[Callable[[int], pa.DataType]] = [  # of values of so many bytes
    lambda n: pa.binary(),
    lambda n: pa.large_binary(),
    lambda n: pa.binary_view(),
    lambda n: pa.binary(n),
    lambda n: pa.string(),
    lambda n: pa.large_string(),
    lambda n: pa.string_view(),
    lambda n: pa.null(),
    lambda n: pa.bool_(),
    lambda n: pa.int64(),
    lambda n: pa.list_(pa.uint8()),
]
WRAPPERS: list[Callable[[pa.DataType], pa.DataType]] = [
    lambda leaf: leaf,
    lambda leaf: pa.dictionary(pa.int32(), leaf),
    lambda leaf: pa.run_end_encoded(pa.int32(), leaf),
    lambda leaf: pa.opaque(leaf, "image", "somebody"),
    pa.list_,
    pa.large_list,
    pa.list_view,
    lambda leaf: pa.list_(leaf, 1),
    lambda leaf: pa.struct([("bytes", leaf), *_PATH]),
    lambda leaf: pa.struct([("other", leaf)]),
    lambda leaf: pa.map_(pa.string(), leaf),
]


def _is_list(kind: pa.DataType) -> bool:
    return hasattr(kind, "value_type") and not (
        pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) or pa.types.is_map(kind)
    )


def _wrap(kind: pa.DataType, value: bytes) -> Any:
    """The value as one of this type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _wrap(kind.storage_type, value)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _wrap(kind.value_type, value)
    if pa.types.is_map(kind):
        return [("k", _wrap(kind.item_type, value))]
    if pa.types.is_struct(kind):
        return {f.name: "p" if f.name == "path" else _wrap(f.type, value) for f in kind}
    if _is_list(kind):
        return list(value) if kind.value_type == pa.uint8() else [_wrap(kind.value_type, value)]
    if pa.types.is_null(kind):
        return None
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return bool(value[0] % 2) if pa.types.is_boolean(kind) else value[0]
    return value.decode("latin1") if "string" in str(kind) else value


def _array(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _array(kind.storage_type, values))
    if pa.types.is_run_end_encoded(kind):
        ends = pa.array(range(1, len(values) + 1), pa.int32())
        return pa.RunEndEncodedArray.from_arrays(ends, _array(kind.value_type, values))
    if pa.types.is_dictionary(kind):
        return _array(kind.value_type, values).dictionary_encode()
    return pa.array(values, kind)


def _written(path: Path, n_bytes: int, column: str, values: list[bytes]) -> Iterator[list[Any]]:
    """Writes a file with a column of each type; yields its values as pyarrow reads them."""
    combinations = list(itertools.product(LEAVES, WRAPPERS, WRAPPERS))
    for leaf, inner, outer in random.Random(n_bytes).sample(combinations, 150):
        try:
            kind = outer(inner(leaf(n_bytes)))
            array = _array(kind, [*(_wrap(kind, value) for value in values), None])
            other = ("image", [*IMAGES, IMAGES[0]]) if column == "key" else ("key", list("abcd"))
            table = pa.table({column: array, other[0]: other[1]})
            pq.write_table(table, path, row_group_size=2)
            expected = pq.read_table(path, columns=[column])[column].to_pylist()
        except (pa.ArrowException, OSError):  # neither Arrow nor Parquet has all combinations
            continue
        yield expected


def _first_leaf(value: Any) -> Any:
    if isinstance(value, dict):
        return _first_leaf(value.get("bytes"))
    return _first_leaf(value[0]) if isinstance(value, list) and value else value


@pytest.mark.faults  # many types
def test_images_of_any_type_are_those_of_pyarrow_or_refused(tmp_path: Path) -> None:
    path, n_read, refusals = tmp_path / "a.parquet", 0, []
    for expected in _written(path, WIDTH, "image", IMAGES):
        try:
            _, samples = open_and_read(str(path), storage, kind="parquet")
        except UsageError as error:
            refusals.append(f"{error.message} {error.hint}")
            continue
        images = [_first_leaf(value) for value in expected if value is not None]
        assert [s.data for s in samples if s.error is None] == images == IMAGES
        assert {str(s.error.code) for s in samples if s.error} <= {"empty"}
        n_read += 1
    assert n_read >= 8
    assert len(refusals) >= 30
    reasons = ("source.image_column", "does not hold", "over a dictionary")
    assert all(any(reason in refusal for reason in reasons) for refusal in refusals)


@pytest.mark.faults  # many types
def test_keys_of_any_type_are_those_of_pyarrow_or_refused(tmp_path: Path) -> None:
    path, n_read, refusals = tmp_path / "a.parquet", 0, []
    keys = [key.ljust(3, b"_") for key in KEYS]
    for expected in _written(path, 3, "key", keys):
        try:
            _, samples = open_and_read(str(path), storage, key_column="key")
        except UsageError as error:
            refusals.append(error.message)
            continue
        texts = [value.decode() if isinstance(value, bytes) else value for value in expected]
        names = [f"row{i}" if text is None else str(text) for i, text in enumerate(texts)]
        assert [s.image_id.partition("#")[2] for s in samples] == names
        assert [s.data for s in samples] == [*IMAGES, IMAGES[0]]
        n_read += 1
    assert n_read >= 5
    assert len(refusals) >= 30
    reasons = ("does not hold text or integers", "over a dictionary")
    assert all(any(reason in refusal for reason in reasons) for refusal in refusals)


@pytest.mark.parametrize("column", ["image", "key"])
def test_a_type_at_which_pyarrow_ends_the_process_is_refused(tmp_path: Path, column: str) -> None:
    values = {"image": IMAGES, "key": list("abc")}
    array = pa.array(values[column]).dictionary_encode()
    values[column] = pa.ExtensionArray.from_storage(pa.opaque(array.type, "x", "y"), array)
    pq.write_table(pa.table(values), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=f"column '{column}': its type is an extension type over"):
        open_and_read(str(tmp_path / "a.parquet"), storage)
    pq.write_table(pa.table({"uri": values["key"]}), tmp_path / "m.parquet")
    if column == "key":
        with pytest.raises(UsageError, match="column 'uri': its type is an extension type over"):
            open_and_read(str(tmp_path / "m.parquet"), storage, kind="manifest")
