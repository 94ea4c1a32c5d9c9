"""Outages in the middle of a unit leave it undone; what is wrong with an image is its row."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segcore.errors import (
    AccessDenied,
    CredentialsRejected,
    ErrorCode,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    TooManyRequests,
)
from segcore.sources import Sample, SourceOptions, open_source, read_unit
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage, StorageOptions, remote_file
from tests.support.archives import codes, parquet_bytes, tar_bytes
from tests.support.fake_s3 import FakeS3

N_IMAGES = 120
NAMES = [f"p/{i:03}.png" for i in range(N_IMAGES)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with FakeS3({name: name.encode() for name in NAMES}) as server:
        yield server


def _open(fake: FakeS3) -> tuple[Storage, Unit]:
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
    (unit,) = open_source("s3://bucket/p", SourceOptions(), storage).units(UnitLimits())
    return storage, unit


def _read(storage: Storage, unit: Unit, exclude: tuple[str, ...] = ()) -> list[Sample]:
    return list(read_unit(unit, storage, SourceOptions(read_threads=4), exclude=exclude))


OUTAGES = [
    (400, "ExpiredToken", CredentialsRejected),
    (403, "InvalidAccessKeyId", CredentialsRejected),
    (403, "SignatureDoesNotMatch", CredentialsRejected),
    (403, "RequestTimeTooSkewed", CredentialsRejected),
    (401, "", CredentialsRejected),
    (403, "AccessDenied", AccessDenied),
    (404, "NoSuchKey", ObjectNotFound),
    (503, "SlowDown", TooManyRequests),
    (503, "", TooManyRequests),  # a gateway without a server
    (502, "", StorageError),
    (500, "InternalError", StorageError),
]


def _refuse_after(fake: FakeS3, n_served: int, status: int, code: str) -> None:
    """Let the server refuse all requests after the next `n_served`."""
    served = 0
    lock = threading.Lock()

    def refuse(method: str, key: str | None) -> tuple[int, str] | None:
        nonlocal served
        with lock:
            served += 1
            return None if served <= n_served else (status, code)

    fake.refuse = refuse


@pytest.mark.slow
@pytest.mark.parametrize(("status", "code", "expected"), OUTAGES)
@pytest.mark.parametrize(
    "n_served",
    [70, *(pytest.param(number, marks=pytest.mark.faults) for number in (1, N_IMAGES - 1))],
)
def test_what_begins_in_the_middle_of_a_unit_gives_no_failed_rows(
    fake: FakeS3, status: int, code: str, expected: type[StorageError], n_served: int
) -> None:
    storage, unit = _open(fake)
    _refuse_after(fake, n_served, status, code)
    with pytest.raises(expected) as caught:
        _read(storage, unit)
    assert type(caught.value) is expected
    assert "Generic" not in caught.value.message
    fake.refuse = lambda *_: None
    assert [s.data for s in _read(storage, unit)] == [name.encode() for name in NAMES]


@pytest.mark.faults
@pytest.mark.parametrize(("status", "code", "expected"), OUTAGES)
def test_what_begins_in_the_middle_of_a_retry_gives_no_failed_rows(
    fake: FakeS3, status: int, code: str, expected: type[StorageError]
) -> None:
    """Whether it has read something, or only the run before it has."""
    for n_done, n_served in ((1, 50), (N_IMAGES // 2, 0)):
        storage, unit = _open(fake)
        done = tuple(member.image_id for member in unit.members[:n_done])
        _refuse_after(fake, n_served, status, code)
        if expected is ObjectNotFound and n_served == 0:  # they may be gone since the last run
            assert set(codes(_read(storage, unit, done)).values()) == {"not_found"}
        else:
            with pytest.raises(expected):
                _read(storage, unit, done)
        fake.refuse = lambda *_: None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_what_begins_in_the_middle_of_a_shard_gives_no_failed_rows(
    fake: FakeS3, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_RANGE_BYTES", 20_000)
    images = {name: random.Random(name).randbytes(5_000) for name in NAMES[:40]}
    columns = {"key": list(images), "image": list(images.values())}
    data = tar_bytes(images.items()) if kind == "tar" else parquet_bytes(columns, 5)
    fake.objects = {f"p/a.{kind}": data}
    for status, code, _ in (OUTAGES[0], OUTAGES[5], OUTAGES[-2]):
        for n_served in (1, 3, 8):
            storage, unit = _open(fake)
            _refuse_after(fake, n_served, status, code)
            with pytest.raises(StorageError) as caught:
                _read(storage, unit)
            assert "Generic" not in caught.value.message
            fake.refuse = lambda *_: None
    assert len(_read(storage, unit)) == len(images)


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey")])
@pytest.mark.parametrize("every", [1.5, 40])
def test_images_that_are_refused_for_themselves_are_rows(
    fake: FakeS3, status: int, code: str, every: float
) -> None:
    bad = {NAMES[int(i * every)] for i in range(int(N_IMAGES / every))}
    storage, unit = _open(fake)
    fake.refuse = lambda method, key: (status, code) if key in bad else None
    fake.requests.clear()
    samples = _read(storage, unit)
    assert [s.image_id for s in samples] == [member.image_id for member in unit.members]
    expected = ErrorCode.ACCESS_DENIED if status == 403 else ErrorCode.NOT_FOUND
    assert codes(samples) == {f"s3://bucket/{name}": expected for name in bad}
    assert len(fake.requests) <= N_IMAGES + 10  # witnesses are asked, but not for every image


def test_a_unit_of_which_nothing_may_be_read_is_undone_unless_there_is_a_witness(
    fake: FakeS3,
) -> None:
    storage, unit = _open(fake)
    fake.refuse = lambda method, key: (403, "AccessDenied")
    with pytest.raises(AccessDenied):
        _read(storage, unit)
    fake.refuse = lambda *_: None
    fake.objects["q/good.png"] = b"1"
    (other,) = open_source("s3://bucket/q", SourceOptions(), storage).units(UnitLimits())
    _read(storage, other)  # of an earlier unit of the same process
    fake.refuse = lambda method, key: None if key == "q/good.png" else (403, "AccessDenied")
    assert set(codes(_read(storage, unit)).values()) == {"access_denied"}


@pytest.mark.parametrize("is_outage", [True, False])
def test_a_retry_of_failed_images_asks_for_one_that_was_read(fake: FakeS3, is_outage: bool) -> None:
    """All images but two are known to be good, and the two are refused again."""
    storage, unit = _open(fake)
    bad = set(NAMES[10:12])
    good = tuple(member.image_id for member in unit.members if member.uri[-9:] not in bad)
    assert len(good) == N_IMAGES - 2
    fake.refuse = lambda method, key: (403, "AccessDenied") if is_outage or key in bad else None
    if is_outage:
        with pytest.raises(AccessDenied):
            _read(storage, unit, exclude=good)
    else:
        assert set(codes(_read(storage, unit, exclude=good)).values()) == {"access_denied"}


def test_a_witness_that_was_deleted_is_replaced_by_another(fake: FakeS3) -> None:
    storage, unit = _open(fake)
    samples = read_unit(unit, storage, SourceOptions(read_threads=1))
    for _ in range(60):
        next(samples)
    for name in (NAMES[-1], storage.witnesses["s3//bucket"][-1][-9:]):
        del fake.objects[name]
    assert codes(list(samples)) == {f"s3://bucket/{NAMES[-1]}": "not_found"}


# --- versions


@pytest.mark.parametrize("position", [0, N_IMAGES - 1])
def test_an_image_that_changed_since_planning_leaves_its_unit_undone(
    fake: FakeS3, position: int
) -> None:
    storage, unit = _open(fake)
    fake.objects[NAMES[position]] = b"another version"
    with pytest.raises(ObjectChanged, match=f"{NAMES[position]} changed while") as caught:
        _read(storage, unit)
    assert "Rerun the same command" in caught.value.hint
    storage, unit = _open(fake)
    assert _read(storage, unit)[position].data == b"another version"


def test_a_local_image_that_changed_since_planning_leaves_its_unit_undone(tmp_path: Path) -> None:
    storage = Storage()
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"1")
    (unit,) = open_source(str(tmp_path), SourceOptions(), storage).units(UnitLimits())
    os.utime(tmp_path / "b.png", ns=(1, 1))
    with pytest.raises(ObjectChanged, match=r"b\.png changed while"):
        list(read_unit(unit, storage, SourceOptions()))


@pytest.mark.slow
def test_a_server_that_lists_other_etags_than_it_sends_is_believed(fake: FakeS3) -> None:
    fake.listed_etag = lambda key: "listed-" + fake.etag(key)
    storage, unit = _open(fake)
    assert [s.data for s in _read(storage, unit)] == [name.encode() for name in NAMES]
    fake.objects[NAMES[5]] = b"another version"
    with pytest.raises(ObjectChanged):
        _read(storage, unit)


# --- pipes and devices


def test_pipes_and_devices_never_block(tmp_path: Path) -> None:
    storage, folder = Storage(), tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(b"1")
    os.mkfifo(folder / "pipe.png")
    os.symlink(folder / "pipe.png", folder / "link.png")
    os.symlink("/dev/zero", folder / "device.png")
    manifest = folder / "all.txt"
    manifest.write_text("good.png\npipe.png\nlink.png\ndevice.png\n/dev/zero\n/dev/tty\n")
    for source_uri, allow_outside in ((folder, False), (folder, True), (manifest, True)):
        options = SourceOptions(allow_outside=allow_outside)
        (unit,) = open_source(str(source_uri), options, storage).units(UnitLimits())
        samples = list(read_unit(unit, storage, options))
        assert [s.data for s in samples if s.error is None] == [b"1"]
        assert set(codes(samples).values()) == {"unsafe_uri"}
        assert len(samples) == (6 if source_uri == manifest else 4)
    for uri in (folder / "pipe.png", folder / "link.png"):
        with pytest.raises(StorageError, match="a named pipe, not a regular file"):
            storage.open(str(uri))
        with pytest.raises(StorageError, match="a named pipe"):
            open_source(str(uri), SourceOptions(), storage)
