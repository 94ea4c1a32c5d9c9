"""S3 Inventories in place of listings: the same rows, the same plan."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.errors import UsageError
from segcore.planning.plan import make_plan
from segcore.sources import SourceOptions, open_source
from segcore.sources.inventory import read_inventory
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, StorageOptions
from tests.support.fake_s3 import FakeS3

_MANIFEST = "inventory/2026-11-28T01-00Z/manifest.json"
_KEYS = [
    *(f"photos/2026/{i:03d}.jpg" for i in range(40)),
    'photos/a b+c%2F,"d".jpg',
    "photos/été/日本.png",
    "photos/folder/",
    "photos-other/x.jpg",
    "photos.jpg",
    "notes.txt",
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    objects = {key: b"" if key.endswith("/") else key.encode() for key in _KEYS}
    with FakeS3(objects) as server:
        yield server


@pytest.fixture
def storage(fake: FakeS3) -> Storage:
    return Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))


def _rows(fake: FakeS3) -> list[dict]:
    current = [
        {"Bucket": "bucket", "Key": key, "IsLatest": True, "IsDeleteMarker": False,
         "Size": len(fake.objects[key]), "ETag": fake.etag(key)}
        for key in _KEYS
    ]  # fmt: skip
    old = [
        current[0] | {"IsLatest": False, "ETag": "0" * 32},
        current[0] | {"Key": "photos/gone.jpg", "IsDeleteMarker": True, "Size": None, "ETag": None},
    ]
    return [*reversed(current), *old]  # an inventory is in no particular order


def _csv(rows: list[dict], encode=quote_plus) -> bytes:
    lines = []
    for row in rows:
        values = [encode(row["Key"], safe="/") if name == "Key" else row[name] for name in row]
        texts = ["" if v is None else str(v).lower() if isinstance(v, bool) else v for v in values]
        lines.append(",".join(f'"{text}"' for text in texts) + "\n")
    return gzip.compress("".join(lines).encode())


def _parquet(rows: list[dict]) -> bytes:
    names = {"Bucket": "bucket", "Key": "key", "IsLatest": "is_latest", "Size": "size",
             "IsDeleteMarker": "is_delete_marker", "ETag": "e_tag"}  # fmt: skip
    table = pa.Table.from_pylist([{names[k]: v for k, v in row.items()} for row in rows])
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=10)
    return file.getvalue()


def _put_inventory(fake: FakeS3, contents: list[bytes], file_format: str, **changes: object) -> str:
    entries = []
    for i, data in enumerate(contents):
        key = f"inventory/data/{i}"
        fake.objects[key] = data
        md5 = hashlib.md5(data).hexdigest()
        entries.append({"key": key, "size": len(data), "MD5checksum": md5})
    schema = "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag"
    document = {"sourceBucket": "bucket", "destinationBucket": "arn:aws:s3:::elsewhere",
                "fileFormat": file_format, "fileSchema": schema, "files": entries}  # fmt: skip
    fake.objects[_MANIFEST] = json.dumps(document | changes).encode()
    return f"s3://bucket/{_MANIFEST}"


@pytest.mark.parametrize("kind", ["CSV", "CSV with %20", "Parquet"])
@pytest.mark.parametrize("prefix", ["s3://bucket/photos", "s3://bucket"])
def test_rows_are_those_of_a_listing(
    fake: FakeS3, storage: Storage, kind: str, prefix: str
) -> None:
    listed = storage.listing(prefix).to_table()
    assert listed.num_rows == {"s3://bucket/photos": 42, "s3://bucket": 45}[prefix]
    rows = _rows(fake)
    encode = {"CSV": _csv, "CSV with %20": lambda rows: _csv(rows, quote), "Parquet": _parquet}[
        kind
    ]
    uri = _put_inventory(fake, [encode(rows[:20]), encode(rows[20:])], kind.partition(" ")[0])
    assert read_inventory(uri, prefix, storage).to_table().equals(listed)


def test_a_plan_from_an_inventory_is_that_from_a_listing(fake: FakeS3, storage: Storage) -> None:
    expected = make_plan(open_source("s3://bucket/photos", SourceOptions(), storage), UnitLimits())
    uri = _put_inventory(fake, [_parquet(_rows(fake))], "Parquet")
    fake.requests.clear()
    options = SourceOptions(inventory=uri)
    plan = make_plan(open_source("s3://bucket/photos/", options, storage), UnitLimits())
    assert (plan.run, plan.input) == (expected.run, expected.input)
    assert {key for _, key, _ in fake.requests} == {_MANIFEST, "inventory/data/0"}  # no listing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sourceBucket": "other"}, "an inventory of the bucket 'other'"),
        ({"fileFormat": "ORC"}, "'ORC' are not read"),
        ({"fileSchema": "Bucket, Key, Size"}, "the inventory has no ETag"),
        ({"files": None}, "is not the manifest.json of an S3 Inventory"),
        ({"files": [{"key": "inventory/data/0", "MD5checksum": "0" * 32}]}, "its MD5 differs"),
        ({"fileFormat": "Parquet"}, "cannot be read"),
    ],
)
def test_what_is_no_such_inventory_is_refused(
    fake: FakeS3, storage: Storage, changes: dict, message: str
) -> None:
    uri = _put_inventory(fake, [_csv(_rows(fake))], "CSV", **changes)
    with pytest.raises(UsageError, match=message):
        read_inventory(uri, "s3://bucket/photos", storage)


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b'{"files": 3}'])
def test_a_file_that_is_no_manifest_is_refused(fake: FakeS3, storage: Storage, data: bytes) -> None:
    fake.objects[_MANIFEST] = data
    with pytest.raises(UsageError, match="is not the manifest"):
        read_inventory(f"s3://bucket/{_MANIFEST}", "s3://bucket/photos", storage)


def test_an_inventory_of_a_local_folder_is_refused(storage: Storage, tmp_path) -> None:
    with pytest.raises(UsageError, match="and the input /"):
        read_inventory("s3://bucket/manifest.json", str(tmp_path), storage)
