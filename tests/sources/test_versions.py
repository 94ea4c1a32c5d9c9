"""Remote images of a manifest: their versions are known when the plan is made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from segcore.errors import StorageError
from segcore.sources import SourceOptions, open_source, read_unit
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage, StorageOptions
from tests.support.fake_s3 import FakeS3

ALL = [f"dense/{i:04}.png" for i in range(120)] + [f"sparse/{i}/x.png" for i in range(12)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with FakeS3({key: key.encode() for key in ALL}, page_keys=50) as server:
        yield server


def _plan(fake: FakeS3, keys: list[str]) -> Unit:
    fake.objects["list.txt"] = "\n".join(keys).encode()
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
    fake.requests.clear()
    source = open_source("s3://bucket/list.txt", SourceOptions(), storage)
    (unit,) = source.units(UnitLimits())
    return unit


def test_versions_are_listed_where_that_is_cheaper_and_asked_for_elsewhere(fake: FakeS3) -> None:
    unit = _plan(fake, ALL)
    found = {member.uri: (member.size, member.etag) for member in unit.members}
    assert found == {f"s3://bucket/{key}": (len(key), fake.etag(key)) for key in ALL}
    listings = [key for method, key, _ in fake.requests if key is None]
    heads = [key for method, key, _ in fake.requests if method == "HEAD" and key != "list.txt"]
    assert len(listings) == 3
    assert sorted(heads) == sorted(ALL[120:])


def test_a_folder_is_not_listed_for_few_of_its_objects(fake: FakeS3) -> None:
    """Ten of 1,200 objects are named: after one page the rest is asked for one by one."""
    fake.objects |= {f"wide/{i:04}.png": b"1" for i in range(1200)}
    named = [f"wide/{i:04}.png" for i in range(7, 1200, 120)]
    unit = _plan(fake, named)
    assert [member.etag for member in unit.members] == [fake.etag(key) for key in named]
    assert sum(key is None for _, key, _ in fake.requests) == 1


def test_a_changed_image_has_another_unit_and_an_unchanged_one_the_same(fake: FakeS3) -> None:
    before = _plan(fake, ALL)
    assert _plan(fake, ALL).unit == before.unit
    fake.objects[ALL[50]] = b"another version"
    assert _plan(fake, ALL).unit != before.unit


@pytest.mark.parametrize("is_listing_allowed", [True, False])
def test_what_cannot_be_looked_at_stays_unknown(fake: FakeS3, is_listing_allowed: bool) -> None:
    named = [*ALL, "dense/0007-gone.png", "sparse/gone.png", "dense/0009.png/odd//.png"]

    def refuse(method: str, key: str | None) -> tuple[int, str] | None:
        is_refused = key == ALL[3] or (key is None and not is_listing_allowed)
        return (403, "AccessDenied") if is_refused else None

    fake.refuse = refuse
    unit = _plan(fake, named)
    unknown = {member.uri for member in unit.members if member.size < 0}
    expected = {f"s3://bucket/{key}" for key in ("dense/0007-gone.png", "sparse/gone.png")}
    assert expected <= unknown
    assert (f"s3://bucket/{ALL[3]}" in unknown) == (not is_listing_allowed)
    storage = Storage(StorageOptions(endpoint_url=fake.endpoint, retries=0))
    samples = list(read_unit(unit, storage, SourceOptions()))
    assert sum(sample.error is None for sample in samples) == len(ALL) - 1


def test_an_outage_ends_planning(fake: FakeS3) -> None:
    fake.refuse = lambda method, key: None if key == "list.txt" else (503, "SlowDown")
    with pytest.raises(StorageError):
        _plan(fake, ALL)
