from __future__ import annotations

import json
import os
from typing import Any

import pyarrow as pa
import pytest

from segcore.errors import AccessDenied, ObjectNotFound, UsageError
from segcore.sources import SourceOptions, open_source
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, StorageOptions, join
from tests.support.archives import codes, image_bytes, open_and_read, parquet_bytes

storage = Storage(StorageOptions(retries=1))
NAMES = ["b/2.png", "a é.png", "c,d.png"]


def _write_images(folder: str) -> list[str]:
    uris = [join(folder, name) for name in NAMES]
    for seed, uri in enumerate(uris):
        storage.write(uri, image_bytes(seed))
    return sorted(uris)


def _manifests(column: str = "uri") -> dict[str, bytes]:
    quoted = "".join(f'1,"{name}"\n' for name in NAMES)
    lines = "".join(json.dumps({column: name, "n": 1}) + "\n" for name in NAMES)
    return {
        "m.txt": ("# a comment\n\n" + "\r\n".join(NAMES)).encode(),
        "m.csv": ("\ufeff" + f"n,{column}\n{quoted}").encode(),
        "m.tsv": (f"n\t{column}\n" + "".join(f"1\t{name}\n" for name in NAMES)).encode(),
        "m.jsonl": lines.encode(),
        "m.ndjson": "\n".join(json.dumps(name) for name in NAMES).encode(),
        "m.parquet": parquet_bytes({"n": [1, 2, 3], column: NAMES}),
    }


@pytest.mark.parametrize("name", list(_manifests()))
def test_every_format_is_read_with_names_relative_to_the_manifest(folder: str, name: str) -> None:
    uris = _write_images(folder)
    storage.write(join(folder, name), _manifests()[name])
    source, samples = open_and_read(join(folder, name), storage)
    assert source.kind == "manifest"
    assert [s.image_id for s in samples] == uris
    assert samples[0].data == image_bytes(NAMES.index("a é.png"))


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_the_column_can_be_named(folder: str, name: str) -> None:
    uris = _write_images(folder)
    uri = join(folder, name)
    storage.write(uri, _manifests("where is it")[name])
    _, samples = open_and_read(uri, storage, uri_column="where is it")
    assert [s.uri for s in samples] == uris
    for options, message in (
        ({}, "no column is known to hold URIs; the columns are '"),
        ({"uri_column": "zz"}, "no column 'zz'; its columns are '"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            open_and_read(uri, storage, **options)
        assert "source.uri_column" in caught.value.hint


def test_duplicate_entries_are_read_once(folder: str) -> None:
    uris = _write_images(folder)
    text = "\n".join([*uris, "a é.png", "./b/2.png", "b/../b/2.png"])
    storage.write(join(folder, "sub.txt"), text.encode())
    # a manifest in a bucket may not name local files, but these have its own scheme
    source, samples = open_and_read(join(folder, "sub.txt"), storage)
    assert [s.uri for s in samples] == uris
    assert source.notes == [f"Ignored 3 duplicate entries of {join(folder, 'sub.txt')}."]


def test_entries_have_a_version_when_they_are_planned(folder: str) -> None:
    _write_images(folder)
    storage.write(join(folder, "m.txt"), b"b/2.png\nmissing.png")
    source, samples = open_and_read(join(folder, "m.txt"), storage)
    (unit,) = source.units(UnitLimits())
    is_known = [(member.size >= 0, member.etag != "") for member in unit.members]
    assert is_known == [(True, True), (False, False)]
    assert codes(samples) == {join(folder, "missing.png"): "not_found"}


def test_entries_may_not_lead_outside_the_folder(folder: str) -> None:
    storage.write(join(folder, "outside.png"), b"outside")
    storage.write(join(folder, "in/inside.png"), b"inside")
    uri = join(folder, "in/m.txt")
    storage.write(uri, b"inside.png\n../outside.png\nx/../../outside.png\n..\n.\n")
    _, samples = open_and_read(uri, storage)
    assert codes(samples) == dict.fromkeys(
        ["../outside.png", "x/../../outside.png", "..", "."], "unsafe_uri"
    )
    assert [s.data for s in samples if s.error is None] == [b"inside"]
    storage.write(uri, b"inside.png\n../outside.png\n")
    _, samples = open_and_read(uri, storage, allow_outside=True)
    assert [s.data for s in samples] == [b"inside", b"outside"]


@pytest.mark.s3
def test_a_remote_manifest_cannot_reach_local_files(s3_prefix: str, tmp_path: object) -> None:
    storage.write(f"{tmp_path}/local.png", b"local")
    entries = [f"{tmp_path}/local.png", f"file://{tmp_path}/local.png", "/etc/passwd"]
    storage.write(s3_prefix + "/m.txt", "\n".join(entries).encode())
    _, samples = open_and_read(s3_prefix + "/m.txt", storage)
    assert set(codes(samples).values()) == {"unsafe_uri"}
    assert len(samples) == 3
    _, samples = open_and_read(s3_prefix + "/m.txt", storage, allow=(str(tmp_path),))
    assert [s.data for s in samples if s.uri == f"{tmp_path}/local.png"] == [b"local"]


@pytest.mark.s3
def test_a_local_manifest_can_name_remote_images(s3_prefix: str, tmp_path: object) -> None:
    uris = _write_images(s3_prefix)
    with open(f"{tmp_path}/m.txt", "w", encoding="utf-8") as file:
        file.write("\n".join(uris))
    for allow in (("s3://",), ("s3://" + s3_prefix.split("/")[2],), (s3_prefix + "/",)):
        _, samples = open_and_read(f"{tmp_path}/m.txt", storage, allow=allow)
        assert [s.uri for s in samples] == uris
    for allow in ((), ("gs://",), (s3_prefix[:-1],), (s3_prefix + "/b",)):
        if allow == (s3_prefix + "/b",):  # only one of the images lies there
            source, samples = open_and_read(f"{tmp_path}/m.txt", storage, allow=allow)
            assert list(codes(samples).values()) == ["unsafe_uri"] * 2
            assert "2 entries lie outside" in source.notes[0]
            continue
        with pytest.raises(UsageError, match="names only images outside") as caught:
            open_and_read(f"{tmp_path}/m.txt", storage, allow=allow)
        assert "source.allow=" in caught.value.hint
    _, samples = open_and_read(f"{tmp_path}/m.txt", storage, allowed_schemes=("file",))
    assert set(codes(samples).values()) == {"unsafe_uri"}


def test_links_may_not_lead_outside_the_folder(tmp_path: object) -> None:
    storage.write(f"{tmp_path}/secret.png", b"secret")
    storage.write(f"{tmp_path}/in/m.txt", b"link.png")
    os.symlink(f"{tmp_path}/secret.png", f"{tmp_path}/in/link.png")
    _, samples = open_and_read(f"{tmp_path}/in/m.txt", storage)
    assert codes(samples) == {"link.png": "unsafe_uri"}
    _, samples = open_and_read(f"{tmp_path}/in/m.txt", storage, allow_outside=True)
    assert [s.data for s in samples] == [b"secret"]


def test_strange_entries_are_failed_rows_without_secrets(tmp_path: object) -> None:
    entries = [
        "https://host/a.png?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET",
        "s3://key:SECRET@bucket/a.png",
        "s3://bucket/a.png?X-Amz-Security-Token=SECRET",
        "s3://bucket//double.png",
        "gopher://x/y.png",
        "nul\0.png",
        "half \ud800 character.png",
        "n" * 5000 + ".png",
    ]
    storage.write(f"{tmp_path}/m.jsonl", "\n".join(map(json.dumps, entries)).encode())
    source, samples = open_and_read(f"{tmp_path}/m.jsonl", storage)
    assert len(samples) == len(entries)
    assert sorted(codes(samples).values()) == ["not_found"] + ["unsafe_uri"] * 7
    assert "SECRET" not in repr(samples) + repr(source) + repr(list(source.units(UnitLimits())))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"", "has no columns"),
        ("m.csv", b"n,uri\n1,a.png\n2\n", "line 3: no column 'uri'; it has 1 of 2 columns"),
        ("m.csv", b'uri\n"a.png\n', "not valid CSV"),
        ("m.csv", b"uri\n\xff\xfe.png\n", "not UTF-8"),
        ("m.txt", b"\xff\xfe.png\n", "not UTF-8"),
        ("m.txt", b"x" * (1 << 20), "line 1: longer than"),
        ("m.jsonl", b'{"uri": "a.png"}\n{"uri": ', "line 2: not valid JSON"),
        ("m.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("m.jsonl", b'{"uri": "a.png"}\n{"path": "b.png"}', "line 2: no key 'uri'"),
        ("m.jsonl", b'{"uri": 3}', "line 1: the URI is not a string"),
        ("m.parquet", parquet_bytes({"uri": [3], "text": ["x"]}), "'uri' holds int64, not strings"),
        ("m.parquet", b"rubbish", "cannot be read as Parquet"),
    ],
)
def test_a_bad_manifest_is_a_readable_error(
    tmp_path: object, name: str, content: bytes, message: str
) -> None:
    storage.write(f"{tmp_path}/{name}", content)
    with pytest.raises(UsageError, match=message):
        open_source(f"{tmp_path}/{name}", SourceOptions(kind="manifest"), storage)


def test_a_manifest_without_entries_is_an_error(tmp_path: object) -> None:
    storage.write(f"{tmp_path}/m.txt", b"# nothing\n")
    with pytest.raises(UsageError, match="names no images"):
        open_source(f"{tmp_path}/m.txt", SourceOptions(), storage)


@pytest.mark.slow
def test_missing_and_forbidden_manifests_are_errors(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ObjectNotFound, match="does not exist"):
        open_source(join(folder, "m.csv"), SourceOptions(), storage)
    if folder.startswith("s3"):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(AccessDenied):
            open_source(join(folder, "m.csv"), SourceOptions(), Storage(StorageOptions(retries=0)))


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"uri": ["a.png"]}, "manifest"),
        ({"uri": ["a.png"], "image": [b"1"]}, "parquet"),
        ({"uri": pa.array(["a.png"], pa.large_string()), "n": [1]}, "manifest"),
        ({"n": [1]}, "parquet"),
    ],
)
def test_a_parquet_file_without_bytes_is_a_manifest(
    tmp_path: object, columns: dict[str, Any], kind: str
) -> None:
    storage.write(f"{tmp_path}/x.parquet", parquet_bytes(columns))
    assert open_source(f"{tmp_path}/x.parquet", SourceOptions(), storage).kind == kind
