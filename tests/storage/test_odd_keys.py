"""Keys that S3 allows and that are no paths: each is listed, and read as what it is."""

from __future__ import annotations

import itertools
import re
import unicodedata

import pytest

from segcore.sources import SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, StorageOptions
from segcore.storage.s3_client import is_needed
from segcore.testing.loopback_s3 import LoopbackS3
from tests.support.fake_s3 import FakeS3

_SEGMENTS = ["", ".", "..", "a", " ", "a..", "%2F", "%", "e\u0301", "é", "~", "a\\b", "?#&=+*"]
_CONTROLS = [chr(code) for code in (*range(0x20), 0x7F, 0x85, 0xA0, 0x200B, 0x2028, 0xFEFF, 0xFFFD)]


def odd_keys() -> list[str]:
    """Keys below `p/`, with the extension of an image, each unlike all others."""
    pairs = [
        f"p/{first}/{second}/x.png" for first, second in itertools.product(_SEGMENTS, repeat=2)
    ]
    controls = [f"p/a{letter}b.png" for letter in _CONTROLS]
    edges = [f"p/{letter}edge{letter}.png" for letter in _CONTROLS]
    others = [
        "p/x.png/",
        "p/x.png//",
        "p/x.png/x.png",
        "p/x.png",
        "p/ends with blank .png",
        "p/status code: 507.png",
        "p/<Code>ExpiredToken</Code>.png",
        "p/日本語/😀.png",
        "p/" + "k" * (1024 - 6) + ".png",
        "p/" + "ü" * 509 + ".png",
        "p/" + "d/" * 508 + "1.png",
    ]
    keys = [*pairs, *controls, *edges, *others]
    assert len(set(keys)) == len(keys)
    assert max(len(key.encode()) for key in keys) == 1024
    return keys


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")


@pytest.mark.slow
def test_every_key_is_a_row_with_its_own_bytes(credentials: None) -> None:
    objects = {key: b"bytes of " + key.encode() for key in odd_keys()}
    markers = {"p/": b"", "p/folder/": b"", "p/folder.png/": b""}
    with FakeS3({**objects, **markers, "q/other.png": b"1"}, page_keys=100) as fake:
        storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
        source = open_source("s3://bucket/p/", SourceOptions(), storage)
        units = list(source.units(UnitLimits()))
        samples = [s for unit in units for s in read_unit(unit, storage, SourceOptions())]
    assert {s.image_id: s.data for s in samples if s.error is None} == {
        f"s3://bucket/{key}": data for key, data in objects.items()
    }
    assert all(s.error is None for s in samples)
    assert source.notes == []


def test_a_slash_at_the_start_names_another_object(credentials: None) -> None:
    objects = {"/p/a.png": b"1", "p/a.png": b"2", "//p/a.png": b"3", "/": b"4", "p/a.png/": b"5"}
    with FakeS3(objects) as fake:
        storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
        infos = list(storage.list("s3://bucket"))
        assert {info.uri for info in infos} == {f"s3://bucket/{key}" for key in objects}
        for key, data in objects.items():
            uri = f"s3://bucket/{key}"
            assert storage.read(uri) == data
            assert storage.stat(uri).size == 1
            assert storage.read_range(uri, 0, 5) == data
            assert storage.read_range(uri, 1, 5) == b""
            with storage.open(uri) as file:
                assert file.read() == data
        assert [info.uri for info in storage.list("s3://bucket//")] == [info.uri for info in infos]
        assert [info.uri for info in storage.list("s3://bucket//p")] == ["s3://bucket//p/a.png"]


@pytest.mark.parametrize("name", ["p", "p.v2", "p/q"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_an_object_named_like_the_folder_does_not_hide_it(
    credentials: None, name: str, slash: str
) -> None:
    with FakeS3({name: b"", f"{name}/a.png": b"1", f"{name}x.png": b"2"}) as fake:
        storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
        source = open_source(f"s3://bucket/{name}{slash}", SourceOptions(), storage)
        (unit,) = source.units(UnitLimits())
    assert [member.uri for member in unit.members] == [f"s3://bucket/{name}/a.png"]


def test_a_slash_at_the_end_chooses_the_folder(credentials: None) -> None:
    with FakeS3({"a.png": b"1", "a.png/b.png": b"2", "c.png": b"3"}) as fake:
        storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
        for text, expected in {
            "a.png": "a.png",
            "a.png/": "a.png/b.png",
            "c.png/": "c.png",
        }.items():
            source = open_source(f"s3://bucket/{text}", SourceOptions(), storage)
            (unit,) = source.units(UnitLimits())
            assert [member.uri for member in unit.members] == [f"s3://bucket/{expected}"]


@pytest.mark.slow
@pytest.mark.s3
def test_a_real_server_lists_for_us_what_it_lists_for_boto3(s3: LoopbackS3, s3_prefix: str) -> None:
    import boto3
    import botocore.config

    folder = s3_prefix.rpartition("/")[2]
    config = botocore.config.Config(
        s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}
    )
    client = boto3.client("s3", endpoint_url=s3.endpoint, config=config)
    storage, refused = Storage(), []
    for key in [key for key in odd_keys() if len(key.encode()) < 1000][::4]:
        key = f"{folder}/{key[2:]}"
        try:
            client.put_object(Bucket=s3.bucket, Key=key, Body=key.encode())
        except client.exceptions.ClientError:
            refused.append(key)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=folder + "/")
    listed = {item["Key"]: item for page in pages for item in page.get("Contents", ())}
    ours = {info.uri: info for info in storage.list(s3_prefix)}
    assert set(ours) == {f"s3://{s3.bucket}/{key}" for key in listed}
    for key, item in listed.items():
        info = ours[f"s3://{s3.bucket}/{key}"]
        assert (info.size, info.etag) == (item["Size"], item["ETag"].strip('"'))
        assert storage.read(info.uri) == client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()
    # SeaweedFS keeps objects as files. So it refuses segments "." and "..", NUL, names of more than
    # 255 bytes, and objects "below" an object. Everything else it takes.
    allowed = re.compile(r"(^|/)\.\.?(/|$)|\0|[^/]{256}|x\.png/")
    assert [key for key in refused if not allowed.search(key)] == []
    assert len(listed) > 40


def test_ordinary_keys_go_the_fast_way() -> None:
    for key in ("a.png", "a b/c+d%20é.png", ".hidden/..x/x..", "a\\b", "x\u0085y", "a?b#c"):
        assert not is_needed(f"s3://bucket/{key}")
    assert (
        unicodedata.normalize("NFC", "e\u0301") != "e\u0301"
    )  # the generated keys have both forms
    assert not is_needed("gs://bucket/a//b")
