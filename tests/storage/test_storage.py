from __future__ import annotations

import os
import pickle
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from obstore.store import MemoryStore

from segcore.errors import AccessDenied, ObjectNotFound, SegcoreError, StorageError
from segcore.storage import (
    ObjectTooLarge,
    Storage,
    StorageOptions,
    join,
    local_disk,
    object_store,
)
from segcore.testing.loopback_s3 import LoopbackS3

storage = Storage(StorageOptions(retries=1))


def test_written_bytes_are_read_back(folder: str) -> None:
    uri = join(folder, "a b", "é?#%41.bin")
    for data in (b"first", b"", b"x" * 100_000):
        storage.write(uri, data)
        assert storage.read(uri) == data
        assert storage.stat(uri).size == len(data)
        assert storage.stat(uri).etag
    assert storage.exists(uri)
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_ranges_end_at_the_end_of_the_object(folder: str) -> None:
    uri = join(folder, "x")
    storage.write(uri, bytes(range(100)))
    assert storage.read_range(uri, 10, 5) == bytes(range(10, 15))
    assert storage.read_range(uri, 95, 50) == bytes(range(95, 100))
    assert storage.read_range(uri, 100, 5) == b""
    assert storage.read_range(uri, 500, 5) == b""
    assert storage.read_range(uri, 5, 0) == b""


def test_open_gives_a_seekable_file(folder: str) -> None:
    uri, data = join(folder, "x"), os.urandom(10_000)
    storage.write(uri, data)
    with storage.open(uri, buffer_bytes=512) as file:
        assert file.read(3) == data[:3]
        assert file.seek(-5, os.SEEK_END) == 9_995
        assert file.read() == data[-5:]
        assert file.read(1) == b""
        file.seek(4_000)
        assert file.read(3_000) == data[4_000:7_000]
        file.seek(20_000)
        assert file.read(10) == b""


def test_listing_is_recursive_sorted_and_bounded_by_the_folder(folder: str) -> None:
    # A store that lists folder by folder returns a/x before a-1; the order must not depend on that.
    names = ["a/x", "a-1", "a.b", "a/b/c", "ab/x", "Z", "é"]
    for name in names:
        storage.write(join(folder, "in", name), name.encode())
    storage.write(join(folder, "in2"), b"a neighbour with the same prefix")
    infos = list(storage.list(join(folder, "in")))
    assert [info.uri for info in infos] == sorted(join(folder, "in", name) for name in names)
    for info in infos:
        assert info == storage.stat(info.uri)
    assert next(storage.list(join(folder, "in", "a"))).uri == join(folder, "in", "a/b/c")
    assert list(storage.list(join(folder, "nothing"))) == []


@pytest.mark.slow
@pytest.mark.s3
def test_long_listings_are_complete(s3_prefix: str) -> None:
    uris = {join(s3_prefix, f"{i:04}") for i in range(1_010)}  # more than one page of S3
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: storage.write(uri, b"x"), uris))
    assert {info.uri for info in storage.list(s3_prefix)} == uris


def test_a_folder_is_listed_without_what_lies_below_it(folder: str) -> None:
    names = ["a.json", "b c", "é", "sub/c", "sub/sub/d"]
    written = [storage.write(join(folder, name), name.encode()) for name in names]
    storage.write(f"{folder}x", b"beside it")
    listed = dict(storage.list_folder(folder))
    assert sorted(info.uri for info in listed) == sorted(info.uri for info in written[:3])
    assert set(listed) == set(written[:3])  # a write tells the size and etag that listings show
    everything = dict(storage.list_with_times(folder))
    assert set(everything) == set(written)
    assert listed == {info: everything[info] for info in written[:3]}
    assert list(storage.list_folder(join(folder, "missing"))) == []


def test_other_stores_list_a_folder_in_the_same_way() -> None:
    class Store(MemoryStore):
        retry_config = None

    store = Store()
    etags = [object_store.write(store, f"gs://b/{key}", b"x") for key in ("p/a", "p/q/b", "pq")]
    rows = object_store.files(store, "gs://b/p")
    assert [row[:3] for row in rows] == [("gs://b/p/a", 1, etags[0])]
    assert object_store.files(store, "gs://b/missing") == []


def test_a_missing_object_is_object_not_found(folder: str) -> None:
    uri = join(folder, "nope")
    for action in (storage.stat, storage.read, lambda missing: storage.read_range(missing, 0, 1)):
        with pytest.raises(ObjectNotFound, match="nope does not exist"):
            action(uri)
    storage.write(join(folder, "sub", "x"), b"1")
    with pytest.raises(ObjectNotFound):
        storage.stat(join(folder, "sub"))  # a folder is not an object


def test_an_object_over_the_limit_is_refused_before_reading(folder: str) -> None:
    uri = join(folder, "x")
    storage.write(uri, b"12345")
    assert storage.read(uri, max_bytes=5) == b"12345"
    with pytest.raises(ObjectTooLarge, match="5 bytes; the limit is 4"):
        storage.read(uri, max_bytes=4)


@pytest.mark.slow
def test_of_many_concurrent_writers_one_creates_the_object(folder: str) -> None:
    uri, n_writers = join(folder, "lease"), 32
    barrier = threading.Barrier(n_writers)

    def try_to_create(number: int) -> int | None:
        barrier.wait()
        return number if storage.write_if_absent(uri, b"%d" % number) else None

    with ThreadPoolExecutor(n_writers) as pool:
        winners = [n for n in pool.map(try_to_create, range(n_writers)) if n is not None]
    assert len(winners) == 1
    assert storage.read(uri) == b"%d" % winners[0]
    assert storage.write_if_absent(uri, b"late") is False


def test_readers_never_see_half_an_object(folder: str) -> None:
    uri, contents = join(folder, "x"), [bytes([i]) * 200_000 for i in range(3)]
    storage.write(uri, contents[0])
    done = threading.Event()
    contents_read = []

    def read() -> None:
        while not done.is_set():
            contents_read.append(storage.read(uri))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        for data in contents:
            storage.write(uri, data)
    done.set()
    reader.join()
    assert contents_read
    assert set(contents_read) <= set(contents)


def test_a_pickled_storage_works(folder: str) -> None:
    storage.write(join(folder, "x"), b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.options == storage.options
    assert copy.read(join(folder, "x")) == b"1"


# --- disk only


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(str(tmp_path / "x"), b"old")

    def no_space(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_disk.os, "fsync", no_space)
    for write in (storage.write, storage.write_if_absent):
        with pytest.raises(StorageError, match="No space left"):
            write(str(tmp_path / "x"), b"new")
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        storage.write(str(tmp_path / "x"), b"1")
        storage.write_if_absent(str(tmp_path / "y"), b"1")
    finally:
        os.umask(previous)
    for name in "xy":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_write_if_absent_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(local_disk.os, "link", no_links)
    assert storage.write_if_absent(str(tmp_path / "x"), b"1") is True
    assert storage.write_if_absent(str(tmp_path / "x"), b"2") is False
    assert (tmp_path / "x").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_name_keeps_the_bytes_of_the_first(
    folder: str, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", _refuse_link)
    first, second = join(folder, "a b", "é?#%41.bin"), join(folder, "other", "b%41.bin")
    storage.write(first, b"one")
    for _ in range(2):
        storage.link_or_copy(first, second)
    storage.write(first, b"two")
    storage.delete(first)
    assert storage.read(second) == b"one"
    with pytest.raises(ObjectNotFound):
        storage.link_or_copy(first, join(folder, "other", "c.bin"))


def _refuse_link(*args: object) -> None:
    raise OSError(18, "Invalid cross-device link")


def test_a_file_that_is_deleted_during_the_listing_is_not_listed(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"x")
    rows = local_disk.walk(str(tmp_path), False)
    first = next(rows)[0]
    deleted = next(path for path in tmp_path.iterdir() if str(path) != first)
    deleted.unlink()
    assert {first, *(row[0] for row in rows)} == {str(path) for path in tmp_path.iterdir()}


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in (".git/x", ".x", "x"):
        (tmp_path / name).write_bytes(b"1")
    assert [info.uri for info in storage.list(str(tmp_path))] == [str(tmp_path / "x")]


def test_links_are_listed_by_their_targets(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "real", outside):
        path.mkdir(parents=True)
        (path / "f").write_bytes(b"1")
    (root / "inside").symlink_to(root / "real" / "f")
    (root / "out").symlink_to(outside / "f")
    (root / "broken").symlink_to(root / "nothing")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)

    def list_root(follow_links: bool) -> dict[str, tuple[int, str]]:
        rows = storage.listing(str(root), follow_links).to_table().to_pylist()
        return {row["uri"][len(str(root)) + 1 :]: (row["size"], row["etag"]) for row in rows}

    unfollowed = list_root(follow_links=False)
    assert unfollowed["inside"][0] == unfollowed["real/f"][0] == 1
    assert unfollowed["out"] == (-1, local_disk.OUTSIDE_LINK)
    assert unfollowed["broken"] == (-1, "")
    assert unfollowed["folder"] == unfollowed["loop"] == (-1, local_disk.LINKED_FOLDER)
    followed = list_root(follow_links=True)
    assert followed["out"][0] == followed["folder/f"][0] == 1
    assert set(followed) == {"inside", "out", "broken", "real/f", "folder/f"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_access_denied(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "x").chmod(0)
    with pytest.raises(AccessDenied, match="No permission for"):
        storage.read(str(tmp_path / "x"))


def test_a_changed_file_has_another_etag(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    before = storage.stat(str(path)).etag
    os.utime(path, ns=(1, 1))
    assert storage.stat(str(path)).etag == "1-1" != before


# --- S3 only


@pytest.mark.s3
def test_wrong_credentials_are_access_denied(
    s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(s3_prefix + "/x", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONGSECRET")
    denied = Storage(StorageOptions(retries=0))
    actions = [
        lambda: denied.stat(s3_prefix + "/x"),
        lambda: denied.read(s3_prefix + "/x"),
        lambda: denied.write(s3_prefix + "/y", b""),
        lambda: denied.write_if_absent(s3_prefix + "/y", b""),
        lambda: list(denied.list(s3_prefix)),
    ]
    for action in actions:
        with pytest.raises(AccessDenied, match="No permission for s3://") as caught:
            action()
        assert "WRONGSECRET" not in caught.value.message + caught.value.hint


@pytest.mark.s3
def test_anonymous_requests_are_not_signed(s3_prefix: str) -> None:
    storage.write(s3_prefix + "/x", b"1")
    with pytest.raises(AccessDenied):
        Storage(StorageOptions(anonymous=True, retries=0)).read(s3_prefix + "/x")


@pytest.mark.s3
def test_missing_credentials_are_access_denied(
    s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(AccessDenied, match="No AWS credentials were found"):
        Storage().read(f"s3://{s3.bucket}/x")


@pytest.mark.s3
def test_credentials_and_endpoint_come_from_the_profile(
    s3: LoopbackS3, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(s3_prefix + "/x", b"1")
    for name in s3.environment:
        monkeypatch.delenv(name)
    config = tmp_path / "config"
    config.write_text(
        f"[profile mine]\naws_access_key_id = {s3.access_key}\n"
        f"aws_secret_access_key = {s3.secret_key}\n"
        f"endpoint_url = {s3.endpoint}\nregion = eu-west-1\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert Storage().read(s3_prefix + "/x") == b"1"
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(AccessDenied, match="absent"):
        Storage().read(s3_prefix + "/x")


@pytest.mark.s3
def test_a_missing_bucket_and_a_bucket_read_as_object_are_not_found(s3: LoopbackS3) -> None:
    with pytest.raises(ObjectNotFound, match="no such bucket"):
        list(storage.list("s3://absent-bucket/x"))
    with pytest.raises(ObjectNotFound, match="is a bucket"):
        storage.stat(f"s3://{s3.bucket}")


@pytest.mark.s3
def test_large_objects_are_uploaded_in_parts(
    s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.storage.object_store._SINGLE_PUT_BYTES", 1 << 20)
    data = os.urandom(12 << 20)
    written = storage.write(s3_prefix + "/x", data)
    assert storage.read(s3_prefix + "/x") == data
    assert list(storage.list(s3_prefix)) == [written]


def test_an_unreachable_server_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SECRETKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETKEY")
    dead = Storage(StorageOptions(endpoint_url="http://127.0.0.1:9", retries=0))
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        dead.read("s3://bucket/x")
    assert "SECRETKEY" not in caught.value.message
    assert "\n" not in caught.value.message


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        StorageOptions(endpoint="http://x")  # type: ignore[call-arg]


def test_errors_survive_pickling() -> None:
    error = AccessDenied("message", "hint")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, SegcoreError)
    assert (copy.message, copy.hint) == ("message", "hint")


@pytest.mark.s3
@pytest.mark.parametrize("is_ours", [True, False])
def test_an_object_that_the_server_created_empty_is_made_whole_by_its_creator(
    s3: LoopbackS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch, is_ours: bool
) -> None:
    """What SeaweedFS leaves of a PUT whose connection broke off before its body."""
    import boto3

    monkeypatch.setattr(object_store.secrets, "token_hex", lambda n: "ours")
    boto3.client("s3", endpoint_url=s3.endpoint).put_object(
        Bucket=s3.bucket,
        Key=f"{s3_prefix.rpartition('/')[2]}/x",
        Metadata={"segcore-nonce": "ours" if is_ours else "theirs"},
    )
    assert storage.write_if_absent(f"{s3_prefix}/x", b"data") is is_ours
    assert storage.read(f"{s3_prefix}/x") == (b"data" if is_ours else b"")


def test_many_objects_are_deleted_at_once(folder: str) -> None:
    uris = [f"{folder}/{i:04d}" for i in range(12)]
    for uri in uris[:10]:
        storage.write(uri, b"x")
    storage.delete_all(uris[5:])  # two of them were never there
    assert [info.uri for info in storage.list(folder)] == uris[:5]
    storage.delete_all([])


@pytest.mark.parametrize("n_bytes", [0, 1000, 6 << 20])
def test_content_that_is_written_to_a_file_replaces_the_object(
    folder: str, n_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_SINGLE_PUT_BYTES", 1 << 20)
    uri = join(folder, "a")
    storage.write(uri, b"old")
    data = bytes(range(256)) * (n_bytes // 256)

    def write(file: BinaryIO) -> None:
        file.write(data[:300])
        file.write(data[300:])

    storage.write_with(uri, write)
    assert storage.read(uri) == data

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        storage.write_with(uri, fail)
    assert storage.read(uri) == data
    assert [info.uri for info in storage.list(folder)] == [uri]
